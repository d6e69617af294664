"""`find_model` finds what is meant, or says what is there; sizes are those a model can make."""

import json
import os
import subprocess
import sys

import pytest
import torch

import quantolab as ql
from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError, UnsupportedError
from quantolab.models.skeleton import component_class
from quantolab.models.source import (
    DENOISERS,
    LARGEST_SIDE,
    Component,
    check_size,
    default_size,
    find_model,
    size_step,
    vae_scale,
)


def test_a_pipeline_folder(pipeline_folder):
    source = find_model(pipeline_folder)
    assert source.model == str(pipeline_folder)
    assert source.folder == pipeline_folder
    assert source.pipeline == "FluxPipeline"
    # No VAE, scheduler or tokenizer: they aren't quantized.
    assert sorted(c.name for c in source.components) == [
        "text_encoder",
        "text_encoder_2",
        "transformer",
    ]
    assert source.denoiser == "transformer"
    part = source.component()
    assert (part.name, part.library, part.cls) == (
        "transformer",
        "diffusers",
        "FluxTransformer2DModel",
    )
    assert part.folder == pipeline_folder / "transformer"
    assert source.component("text_encoder_2").library == "transformers"
    assert source.config("scheduler")["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert source.config("nothing") == {}


def test_an_unknown_component_lists_the_known(pipeline_folder):
    with pytest.raises(ArgumentError) as caught:
        find_model(pipeline_folder).component("tranformer")
    assert "'tranformer' is not known; allowed: " in str(caught.value)
    assert "did you mean 'transformer'" in str(caught.value)


def test_a_component_folder(flux_folder, pipeline_folder):
    source = find_model(flux_folder)
    assert source.pipeline is None
    assert source.denoiser == "transformer"
    assert source.component().folder == flux_folder
    assert source.config("transformer")["_class_name"] == "FluxTransformer2DModel"
    encoder = find_model(pipeline_folder / "text_encoder_2").component()
    assert (encoder.name, encoder.library, encoder.cls) == (
        "text_encoder",
        "transformers",
        "T5EncoderModel",
    )


def test_a_unet_is_the_denoiser(write_pipeline):
    folder = write_pipeline(
        "StableDiffusionXLPipeline",
        {"text_encoder": {}, "unet": {"_class_name": "UNet2DConditionModel"}},
    )
    assert find_model(folder).denoiser == "unet"
    assert find_model(folder / "unet").component().name == "unet"


def test_relative_and_home_paths(pipeline_folder, monkeypatch):
    monkeypatch.chdir(pipeline_folder.parent)
    assert find_model(pipeline_folder.name).pipeline == "FluxPipeline"
    assert find_model(f"./{pipeline_folder.name}").pipeline == "FluxPipeline"
    monkeypatch.setenv("HOME", str(pipeline_folder.parent))
    assert find_model(f"~/{pipeline_folder.name}").pipeline == "FluxPipeline"


@pytest.mark.parametrize("word", (None, "demo"))
def test_the_demo_word(pipeline_folder, monkeypatch, word):
    import quantolab.demo

    monkeypatch.setattr(quantolab.demo, "demo_model", lambda: pipeline_folder)
    source = find_model(word)
    assert (source.model, source.folder) == ("demo", pipeline_folder)


# -- what isn't there


def test_a_misspelt_folder_suggests(pipeline_folder):
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(f"{pipeline_folder}e")
    asked, _, hint = str(caught.value).partition("; did you mean ")
    assert asked == (
        f"model '{pipeline_folder}e' is no folder here, no Hub id (owner/name) and not 'demo'"
    )
    assert f"'{pipeline_folder}'" in hint


def test_a_misspelt_demo_suggests():
    with pytest.raises(ModelNotFoundError, match="did you mean 'demo'"):
        find_model("dmeo")


def test_a_misspelt_relative_folder_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny-flux").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("models/tiny-flx")
    assert "'models/tiny-flx' is no folder here, and as a Hub model: " in str(caught.value)
    assert "did you mean 'models/tiny-flux'?" in str(caught.value)


def test_names_that_no_hub_model_can_have():
    for name in ("a--b/c", "owner/name.git", "a/..b"):
        with pytest.raises(ModelNotFoundError, match="is no folder here"):
            find_model(name)


def test_a_file_instead_of_a_folder(flux_folder):
    with pytest.raises(BrokenModelError, match="is a file; a folder in Diffusers layout"):
        find_model(flux_folder / "config.json")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(BrokenModelError, match=r"has neither model_index\.json nor config\.json"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", "can't be read as JSON"),
        ("config.json", "[1]", "holds a JSON list, not an object"),
        ("config.json", "{}", "names no model class"),
        ("config.json", '{"architectures": []}', "names no model class"),
        ("config.json", '{"_class_name": 3}', "names no model class"),
        ("model_index.json", "", "can't be read as JSON"),
        ("model_index.json", "{}", r"names no pipeline class \(_class_name\)"),
        ("model_index.json", '{"_class_name": "P"}', "lists no component with weights"),
        (
            "model_index.json",
            '{"_class_name": "P", "transformer": ["diffusers", "T"], "x": [null, null]}',
            "lists no component with weights",  # its folder isn't there
        ),
    ],
)
def test_broken_json(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(BrokenModelError, match=message):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "..", "a/../../outside", "/etc", "transformer/.."])
def test_components_lie_inside_their_model(write_pipeline, tmp_path, name):
    """A component's name is a folder inside the model, never a way out of it."""
    folder = write_pipeline("FluxPipeline", {"transformer": {"_class_name": "A"}})
    (tmp_path / "outside").mkdir()
    for place in (tmp_path, tmp_path / "outside"):
        (place / "config.json").write_text('{"_class_name": "Outside"}')
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = ["diffusers", "Outside"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert [part.cls for part in find_model(folder).components] == ["A"]
    with pytest.raises(ArgumentError):
        find_model(folder).component(name)


ODD_CONFIGS = {
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("odd", ODD_CONFIGS)
@pytest.mark.parametrize("part", ["transformer", "transformer_2", "text_encoder"])
def test_a_part_whose_configuration_cannot_be_read_is_never_left_out(write_pipeline, part, odd):
    """A second denoiser would be left unquantized, and nobody would be told."""
    parts = ("transformer", "transformer_2", "text_encoder")
    folder = write_pipeline("WanPipeline", {name: {"_class_name": "A"} for name in parts})
    (folder / part / "config.json").unlink()
    ODD_CONFIGS[odd](folder / part / "config.json")
    with pytest.raises(BrokenModelError, match=rf"{part}/config\.json"):
        find_model(folder)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BrokenModelError, match="can't be read as JSON"):
        find_model(tmp_path)


# -- the Hub's cache


def run_offline(code, cache):
    """Run code in a process whose Hub cache is a folder: the libraries read it once."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(cache)}
        | {"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_hub_model_in_the_local_cache(tmp_path, pipeline_folder):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(pipeline_folder)
    code = """
import json, sys
from quantolab.errors import ModelNotFoundError
from quantolab.models.source import find_model
source = find_model("owner/tiny")
try:
    find_model("owner/other")
except ModelNotFoundError as error:
    text = str(error)
print(json.dumps([source.model, source.pipeline, source.revision, text, "torch" in sys.modules]))
"""
    model, pipeline, revision, text, torch_loaded = run_offline(code, tmp_path)
    assert (model, pipeline, revision) == ("owner/tiny", "FluxPipeline", commit)
    assert text == (
        "'owner/other' is no folder here, and as a Hub model: owner/other isn't in the local "
        "cache, and HF_HUB_OFFLINE forbids to fetch it; did you mean 'owner/tiny'?"
    )
    assert not torch_loaded


# -- sizes

# Of the published pipelines, what decides sizes.
VAE = {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512]}
PIPELINES = {
    "FluxPipeline": (
        {"transformer": {"patch_size": 1}, "vae": VAE},
        (1024, 1024), 16,
    ),
    "StableDiffusion3Pipeline": (
        {
            "transformer": {"sample_size": 128, "patch_size": 2},
            "vae": VAE,
        },
        (1024, 1024), 16,
    ),
    "PixArtSigmaPipeline": (
        {
            "transformer": {"sample_size": [128, 96], "patch_size": 2},
            "vae": {"block_out_channels": [1] * 4},
        },
        (768, 1024), 16,
    ),
    "StableDiffusionXLPipeline": (
        {"unet": {"sample_size": 128}, "vae": VAE},
        (1024, 1024), 8,
    ),
    "SanaPipeline": (
        {
            "transformer": {"sample_size": 32, "patch_size": 1},
            "vae": {"encoder_block_out_channels": [1] * 6},
        },
        (1024, 1024), 32,
    ),
    "QwenImagePipeline": (
        {"transformer": {"patch_size": 2}, "vae": {"dim_mult": [1, 2, 4, 4]}}, None, 16,
    ),
    "ChromaPipeline": (
        {"transformer": {"patch_size": 1}, "vae": VAE},
        (1024, 1024), 16,
    ),
    "ZImagePipeline": (
        {"transformer": {"all_patch_size": [2]}, "vae": VAE},
        (1024, 1024), 16,
    ),
    "Krea2Pipeline": ({"transformer": {}, "vae": {"dim_mult": [1, 2, 4, 4]}}, None, 16),
    "Flux2Pipeline": ({"transformer": {"patch_size": 1}, "vae": VAE}, (1024, 1024), 16),
    "WanPipeline": (
        {"transformer": {"patch_size": [1, 2, 2]}, "vae": {"scale_factor_spatial": 8}}, None, 16,
    ),
    "LTXPipeline": (
        {
            "transformer": {"patch_size": 1},
            "vae": {
                "block_out_channels": [1] * 4, "patch_size": 4,
                "spatio_temporal_scaling": [True, True, True, False],
            },
        },
        None, 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_sizes_of_published_pipelines(write_pipeline, pipeline):
    configs, size, step = PIPELINES[pipeline]
    source = find_model(write_pipeline(pipeline, configs))
    assert default_size(source) == size
    assert size_step(source) == step


@pytest.mark.long
def test_scale_of_the_real_autoencoder_classes(write_pipeline):
    """The configuration says what the class itself computes."""
    from diffusers import AutoencoderDC

    with torch.device("meta"):
        vae = AutoencoderDC(encoder_block_out_channels=(8, 8, 8), attention_head_dim=4)
    config = dict(vae.config)
    source = find_model(
        write_pipeline("SanaPipeline", {"transformer": {}, "vae": json.loads(json.dumps(config))})
    )
    assert vae_scale(source) == 4


ODD_NUMBERS = (
    "x",
    [],
    [1, 2, 3],
    ["x", "x"],
    {"a": 1},
    -3,
    0.5,
    10**30,
    float("nan"),
    True,
    [[1], 2],
)


@pytest.mark.parametrize("value", ODD_NUMBERS)
@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("transformer", "sample_size"),
        ("transformer", "patch_size"),
        ("vae", "spatial_compression_ratio"),
        ("vae", "scale_factor_spatial"),
        ("vae", "spatio_temporal_scaling"),
        ("vae", "block_out_channels"),
        ("vae", "encoder_block_out_channels"),
        ("vae", "sample_size"),
    ],
)
def test_sizes_of_odd_configurations_are_refused_or_sizes(write_pipeline, part, key, value):
    """They are a stranger's, and all doors ask for sizes first."""
    configs = {"transformer": {}, "vae": {}}
    configs[part][key] = value
    source = find_model(write_pipeline("APipeline", configs))
    for ask in (default_size, vae_scale, size_step):
        try:
            found = ask(source)
        except BrokenModelError as error:
            assert f"{part} gives {key} as" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 300
            continue
        for number in found if isinstance(found, tuple) else (found,):
            assert number is None or (type(number) is int and 0 < number <= LARGEST_SIDE)


def test_a_size_that_can_be_made(pipeline_folder):
    source = find_model(pipeline_folder)
    assert size_step(source) == 2
    assert default_size(source) == (32, 32)
    assert check_size(source, (32, 64)) == (32, 64)
    assert check_size(source, [2, 4]) == (2, 4)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1000, 1024), "multiples of 16; did you mean 992x1024?"),
        ((1, 1), "did you mean 16x16?"),
        ((0, 64), "did you mean 16x64?"),
        ((-16, 64), "did you mean 16x64?"),
        ((64.0, 64), "size 64.0x64 can't be made"),
        (64, "size 64 can't be made"),
        ("64x64", "size '64x64' can't be made"),
        ((64,), "multiples of 16"),
        (None, "size None can't be made"),
    ],
)
def test_a_size_that_cannot_be_made(write_pipeline, size, message):
    source = find_model(write_pipeline("FluxPipeline", PIPELINES["FluxPipeline"][0]))
    with pytest.raises(ArgumentError) as caught:
        check_size(source, size)
    assert message in str(caught.value)


def test_no_module_that_a_model_names_is_imported(tmp_path, monkeypatch, write_pipeline):
    (tmp_path / "evilmodule.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = PIPELINES["FluxPipeline"][0]["transformer"]
    folder = write_pipeline("FluxPipeline", {"transformer": config})
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["evilmodule", "Evil"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match="only those of diffusers and transformers"):
        component_class(Component("vae", "evilmodule", "Evil", folder / "vae"))
    find_model(folder)
    assert not (tmp_path / "ran").exists()


# --- what denoises ---


@pytest.mark.parametrize(
    ("names", "denoisers"),
    [
        (["image_encoder", "text_encoder", "transformer"], ("transformer",)),
        (["a_first", "unet"], ("unet",)),
        (["transformer", "text_encoder", "transformer_2"], ("transformer", "transformer_2")),
        (["image_encoder", "prior", "text_encoder"], ("prior",)),
        (["decoder", "aaa", "text_encoder"], ("decoder",)),
        (["prior_prior", "decoder", "prior_text_encoder"], ("prior_prior", "decoder")),
    ],
)
def test_what_denoises_is_known_by_name_and_never_by_the_alphabet(write_pipeline, names, denoisers):
    source = find_model(write_pipeline("APipeline", {name: {} for name in names}))
    assert source.denoisers == source.default_components == denoisers
    assert source.denoiser == denoisers[0]


@pytest.mark.parametrize("names", [["image_encoder", "text_encoder"], ["brain", "a_transformer"]])
def test_where_nothing_is_known_to_denoise_the_names_are_told(write_pipeline, names):
    source = find_model(write_pipeline("APipeline", {name: {} for name in names}))
    assert source.denoisers == ()
    for ask in (
        lambda: source.denoiser,
        lambda: source.component(),
        lambda: ql.load(source.folder),
    ):
        with pytest.raises(ArgumentError, match="is known to denoise") as raised:
            ask()
        assert all(name in str(raised.value) for name in names)
    assert source.component(names[0]).name == names[0]


def test_every_denoiser_of_the_installed_pipelines_is_known():
    """The names that Diffusers' pipelines give to parts of a denoiser's class."""
    import inspect

    import diffusers

    unknown = set()
    for name in (n for n in dir(diffusers) if n.endswith("Pipeline")):
        cls = getattr(diffusers, name)
        for part, parameter in inspect.signature(cls.__init__).parameters.items():
            kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
            text = part.startswith(("text_encoder", "tokenizer")) or "Text" in kind
            denoises = kind.endswith(("Transformer2DModel", "Transformer3DModel", "UNet2DModel"))
            if (denoises or "UNet" in kind) and not text and part not in DENOISERS:
                unknown.add((name, part))
    assert not unknown


def test_a_denoiser_by_itself_is_no_vae(tmp_path, write_pipeline):
    """What it calls by the same name has another meaning: blocks of a UNet don't scale latents."""
    config = {"_class_name": "UNet2DConditionModel", "sample_size": 128,
              "block_out_channels": [320, 640, 1280]}  # fmt: skip
    folder = write_pipeline("APipeline", {"unet": config}) / "unet"
    source = find_model(folder)
    assert source.config("unet")["sample_size"] == 128
    assert source.config("vae") == source.config("scheduler") == {}
    assert default_size(source) == (1024, 1024)
    config["block_out_channels"] = 768  # UVit2DModel's
    write_pipeline("APipeline", {"unet": config})
    assert default_size(find_model(folder)) == (1024, 1024)


@pytest.mark.parametrize(
    ("name", "cls"),
    [("vqgan", "PaellaVQModel"), ("movq", "VQModel"), ("first_stage", "AutoencoderKLWan")],
)
def test_autoencoders_are_never_quantized(tmp_path, write_pipeline, name, cls):
    folder = write_pipeline("APipeline", {"unet": {}, name: {"_class_name": cls}})
    assert [part.name for part in find_model(folder).components] == ["unet"]
