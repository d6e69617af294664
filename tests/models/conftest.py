"""FLUX.1-dev's real configuration, and pipelines that are configurations alone."""

import json

import pytest

# As black-forest-labs/FLUX.1-dev publishes it.
FLUX_DEV = {
    "_class_name": "FluxTransformer2DModel",
    "_diffusers_version": "0.30.0.dev0",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def flux_dev(tmp_path_factory):
    """A folder with the configuration of FLUX.1-dev's transformer and no weights."""
    folder = tmp_path_factory.mktemp("flux-dev")
    write_json(folder / "config.json", FLUX_DEV)
    return folder


@pytest.fixture
def write_pipeline(tmp_path):
    """Return a function that writes a pipeline's JSON files and returns the folder."""

    def write(pipeline, configs, folder="model"):
        index = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
        for name, config in configs.items():
            library = "transformers" if name.startswith("text") else "diffusers"
            index[name] = [library, config.get("_class_name", "Anything")]
            write_json(tmp_path / folder / name / "config.json", config)
        write_json(tmp_path / folder / "model_index.json", index)
        return tmp_path / folder

    return write
