"""Built-in configurations build real classes, and have as many parameters as were published."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from quantolab.errors import ModelNotFoundError
from quantolab.models import known
from quantolab.models.known import find_known, known_folder, known_models, known_part
from quantolab.models.skeleton import build_skeleton
from quantolab.models.source import DENOISERS, LIBRARIES, Component, find_model

# Counted in published checkpoints (headers of safetensors files, model pages of the Hub).
EXACT = {
    "flux1-dev": 11_901_408_320,
    "clip-l-projection": 123_650_304,
    "clip-bigg-projection": 694_659_840,
    "t5-xxl": 4_762_310_656,
    "sd3-medium": 2_028_328_000,
    "pixart-sigma-1024": 610_856_096,
    "gemma-2-2b": 2_614_341_888,
    "qwen-image": 20_430_401_088,
    "qwen2.5-vl-7b": 8_292_166_656,
    "wan2.1-t2v-1.3b": 1_418_996_800,
    "wan2.1-t2v-14b": 14_288_491_584,
    "umt5-xxl": 5_680_910_336,
    "ltx-video-2b": 1_923_385_472,
    "flux1-vae": 83_819_683,
    "sd3-vae": 83_819_683,
    "sdxl-vae": 83_653_863,
    "dc-ae-f32c32-sana": 312_250_275,
    "qwen-image-vae": 126_892_531,
    "wan2.1-vae": 126_892_531,
    "sdxl-unet": 2_567_463_684,
    "sd1.5-unet": 859_520_964,
    "sd1.5-vae": 83_653_863,
    "mistral-small-3-24b": 24_011_361_280,
}

# As their makers call them, in billions; Stability counts the table of positions, a buffer here.
NAMED = {
    "flux1-schnell": (12, 0),
    "clip-l": (0.12, 0),
    "sd3.5-medium": (2.5, 384**2 * 1536),
    "sd3.5-large": (8.1, 192**2 * 2432),
    "sana-1.6b-1024": (1.6, 0),
    "sana-0.6b-1024": (0.6, 0),
    "z-image": (6, 0),
    "qwen3-4b": (4.0, 0),
    "auraflow-v0.1": (6.8, 0),
    "auraflow-v0.3": (6.8, -(9216 - 1024) * 3072),  # the name of v0.1, which has fewer positions
    "flux1-fill-dev": (12, 0),
    "flux2-dev": (32, 0),
    "flux2-klein-4b": (4, 0),
    "flux2-klein-9b": (9, 0),
    "qwen3-4b-causal": (4.0, 0),
    "qwen3-8b-causal": (8.2, 0),
    "qwen3-vl-4b": (4, 0),
    "gemma-3-12b": (12, 0),
    "chroma": (8.9, 0),
    "wan2.2-ti2v-5b": (5, 0),
    "wan2.2-i2v-14b": (14, 0),
    "ltx-2": (19, 0),
    "ltx-2.3": (22, 3_172_227_584),  # the name counts what connects it to the text encoder
}

# The encoder of a published whole, and what is published without a count. (Krea 2 is called one of
# 12 billion; its transformer has 12.8.)
OTHERS = {
    "pile-t5-xl", "ltx-video-0.9.0-vae", "flux2-vae", "wan2.2-vae", "krea-2",
    *(f"ltx-{v}-{part}" for v in ("2", "2.3") for part in ("vae", "connectors", "vocoder")),
    "ltx-2-audio-vae",
}  # fmt: skip
PILE_T5_XL = 2_849_804_288  # encoder and decoder, from its model card

PARTS = sorted(path.stem for path in (known._DATA / "parts").glob("*.json"))


def build(name, tmp_path):
    part = known_part(name)
    if part.library not in LIBRARIES:  # a pipeline's own, which `plan` names as not counted
        module = import_module(f"diffusers.pipelines.{part.library}.{name.rpartition('-')[2]}")
        cls = getattr(module, part.cls)
        with torch.device("meta"):
            return cls(**part.config)
    (tmp_path / "config.json").write_text(json.dumps(part.to_file()))
    return build_skeleton(Component("part", part.library, part.cls, tmp_path))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_every_part_is_checked_and_used():
    assert set(PARTS) == {*EXACT, *NAMED, *OTHERS}
    assert set(PARTS) == {part for model in known_models() for _, part in model.components}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_as_many_parameters_as_published(name, tmp_path):
    count = parameters(build(name, tmp_path))
    if name in EXACT:
        assert count == EXACT[name]
    elif name in NAMED:
        billions, buffers = NAMED[name]
        digits = len(f"{billions}".partition(".")[2])
        assert round((count + buffers) / 1e9, digits) == billions


def test_the_encoder_of_pile_t5_is_half_of_what_was_published(tmp_path):
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    with torch.device("meta"):
        whole = UMT5ForConditionalGeneration(UMT5Config(**known_part("pile-t5-xl").config))
    tied = whole.lm_head.weight.numel()  # its own in the published count
    assert parameters(whole) + tied == PILE_T5_XL
    assert parameters(build("pile-t5-xl", tmp_path)) == parameters(whole.encoder)


def test_every_part_says_where_it_is_from():
    for name in PARTS:
        assert known_part(name).source.startswith(
            ("github.com/", "huggingface.co/", "transformers")
        )
    assert all(model.source for model in known_models())


def test_names_and_hub_ids_are_one_word_each():
    words = [word.casefold() for m in known_models() for word in (m.name, *m.hub_ids)]
    assert len(words) == len(set(words))
    for model in known_models():
        assert all(find_known(word.upper()) is model for word in (model.name, *model.hub_ids))
    assert find_known("FLUX.1") is None


@pytest.mark.parametrize("model", known_models(), ids=lambda m: m.name)
def test_a_folder_is_in_diffusers_layout(model):
    import diffusers

    source = find_model(model.name, weights=False)
    assert source.folder == known_folder(model)
    assert hasattr(diffusers, source.pipeline)
    assert source.denoisers == tuple(n for n in DENOISERS if n in dict(model.components))
    other = {n for n, part in model.components if known_part(part).library not in LIBRARIES}
    assert {c.name for c in source.components} == {
        n for n, _ in model.components if "vae" not in n and n not in other
    }
    assert find_model(model.hub_ids[0], weights=False).folder == source.folder


def test_weights_are_not_built_in():
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'black-forest-labs/FLUX\.1-dev'"):
        find_model("FLUX.1-dev")
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'FLUX\.1-dev'"):
        find_model("FLUX1-dev", weights=False)


def test_a_hub_model_that_was_downloaded_is_itself(tmp_path, monkeypatch):
    """Somebody's own configuration under a known id is the one that counts."""
    import huggingface_hub

    index = {"_class_name": "FluxPipeline"}
    for name, library in (
        ("transformer", "diffusers"),
        ("text_encoder", "transformers"),
        ("text_encoder_2", "transformers"),
    ):
        index[name] = [library, "Anything"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    # nothing but an empty folder: the built-in one
    assert find_model("black-forest-labs/FLUX.1-dev", weights=False).folder != tmp_path
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert find_model("black-forest-labs/FLUX.1-dev", weights=False).folder == tmp_path
    # a name is never a download
    assert find_model("FLUX.1-dev", weights=False).folder != tmp_path


def test_readme_says_how_many():
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert f"The configurations of {len(known_models())} well-known models are built in" in readme
