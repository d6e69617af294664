"""Plans: FLUX.1-dev to the byte without a weight, sums, budgets, and what loading takes at most."""

import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import chroma, lumina_2, qwen_image

import quantolab as ql
from quantolab.backends.quanto.bytes import layer_bytes, quantizing_bytes, scratch_bytes
from quantolab.errors import ArgumentError, ModelNotFoundError
from quantolab.models.layers import linear_layers
from quantolab.planning.plan import PIPELINE, plan
from quantolab.shapes import Layer

WEIGHTS = ["none", "float8", "int8", "int4", "int2"]
TRANSFORMER = [23_802_816_640, 11_910_627_552, 11_910_627_552, 6_327_162_976, 3_352_582_240]


@pytest.fixture(scope="module")
def flux():
    return plan("FLUX.1-dev", vram="16GB")


def held(table, component, recipe):
    rows = table[(table.component == component) & (table.recipe == recipe)]
    return rows.weight_bytes.item()


def test_flux_dev_without_a_download(flux):
    rows = flux[flux.component == "transformer"]
    assert list(rows.recipe) == WEIGHTS
    assert list(rows.weight_bytes) == TRANSFORMER
    assert set(rows.parameters) == {11_901_408_320}
    assert list(rows.quantized_layers) == [0, 504, 504, 504, 504]


def test_a_name_an_id_and_a_folder_plan_the_same(flux, flux_dev):
    by_id = plan("black-forest-labs/FLUX.1-dev", vram="16GB")
    by_folder = plan(flux_dev)
    same = ["component", "recipe", "weight_bytes", "load_peak_bytes"]
    assert by_id[same].equals(flux[same])
    assert list(by_folder.component) == ["transformer"] * 5  # one component, no pipeline
    assert list(by_folder.weight_bytes) == TRANSFORMER


def test_every_part_is_counted_and_summed(flux):
    assert list(dict.fromkeys(flux.component)) == [
        "transformer", "text_encoder", "text_encoder_2", "vae", PIPELINE,
    ]  # fmt: skip
    assert held(flux, "text_encoder_2", "none") == 9_524_621_312
    assert held(flux, "vae", "none") == 167_639_366
    assert list(flux[flux.component == "vae"].recipe) == ["none"]
    rest = sum(held(flux, name, "none") for name in ("text_encoder", "text_encoder_2", "vae"))
    for recipe, transformer in zip(WEIGHTS, TRANSFORMER, strict=True):
        assert held(flux, PIPELINE, recipe) == transformer + rest


def test_a_budget_says_what_fits(flux):
    fits = flux[flux.fits]
    assert list(fits[fits.component == "transformer"].recipe) == WEIGHTS[1:]
    assert list(fits[fits.component == PIPELINE].recipe) == ["int4", "int2"]
    assert plan("FLUX.1-dev", ["int8"]).fits.isna().all()


def test_components_decide_what_the_sums_quantize():
    table = plan("FLUX.1-dev", ["int8"], components=["transformer", "text_encoder_2"])
    whole = table[(table.component == PIPELINE) & (table.recipe == "int8")]
    assert whole.quantized.item() == "transformer, text_encoder_2"
    parts = [held(table, name, "int8") for name in ("transformer", "text_encoder_2")]
    parts += [held(table, name, "none") for name in ("text_encoder", "vae")]
    assert whole.weight_bytes.item() == sum(parts)
    # a part that no recipe is meant for has its unquantized row alone
    assert list(table[table.component == "text_encoder"].recipe) == ["none"]
    named = plan("FLUX.1-dev", ql.Recipe("int8", (), ("transformer", "text_encoder_2")))
    assert list(named.weight_bytes) == list(table.weight_bytes)


def test_kept_layers_cost_what_the_skip_report_says():
    recipe = ql.Recipe("int8", skip=("proj_out",))
    row = plan("FLUX.1-dev", recipe).query("component == 'transformer' and weights == 'int8'")
    added = ql.skip_report("FLUX.1-dev", ["proj_out"]).attrs["totals"]["int8"]["added"]
    assert row.quantized_layers.item() == 504 - 39
    assert row.weight_bytes.item() == TRANSFORMER[2] + added


def test_a_quantized_model_holds_what_was_planned(pipeline_folder):
    table = plan(pipeline_folder, dtype="float32")
    for name, weights in (
        ("transformer", "int4"),
        ("text_encoder_2", "int8"),
        ("text_encoder", "none"),
    ):
        module = ql.load(pipeline_folder, weights, name, dtype="float32", device="cpu")
        assert held(table, name, weights) == ql.weight_bytes(module)


@pytest.mark.parametrize("make", [lumina_2, qwen_image, chroma])  # Gemma 2, Qwen2.5-VL, T5
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_text_encoders_hold_what_was_planned(make, weights, tmp_path):
    """Some hold numbers that no file does, in torch's own dtype and not the asked one."""
    make().save_pretrained(tmp_path / "model")
    recipe = ql.Recipe(weights, components=("text_encoder",))
    table = ql.plan(tmp_path / "model", [recipe])
    planned = table[table.component == "text_encoder"].set_index("recipe").weight_bytes
    for label, asked in (("none", "none"), (str(recipe), recipe)):
        held = ql.load(tmp_path / "model", asked, component="text_encoder", device="cpu")
        assert ql.weight_bytes(held) == planned[label]


def test_a_pipeline_in_memory_is_planned_by_its_configuration(pipeline_folder):
    pipe = DiffusionPipeline.from_pretrained(pipeline_folder)
    of_memory, of_files = (ql.plan(model, ["none", "int8"]) for model in (pipe, pipeline_folder))
    assert (of_memory.pop("model") == type(pipe).__name__).all()
    del of_files["model"]
    pd.testing.assert_frame_equal(of_memory, of_files)


def test_a_part_of_an_unknown_class_is_named(write_pipeline, flux_dev):
    import json

    config = json.loads((flux_dev / "config.json").read_text())
    folder = write_pipeline(
        "FluxPipeline", {"transformer": config, "vae": {"_class_name": "NoVAE"}}
    )
    table = plan(folder, ["int8"])
    assert table.attrs["not_counted"] == ("vae",)
    assert held(table, PIPELINE, "int8") == TRANSFORMER[2]


def test_a_part_of_a_module_that_a_model_names_is_not_imported(
    write_pipeline, flux_dev, monkeypatch, tmp_path
):
    import json

    (tmp_path / "evilmodule.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((flux_dev / "config.json").read_text())
    folder = write_pipeline("FluxPipeline", {"transformer": config, "vae": {}})
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["evilmodule", "Evil"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert plan(folder, ["int8"]).attrs["not_counted"] == ("vae",)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"recipes": ["int9"]}, "did you mean 'int8'"),
        ({"components": "transfromer"}, "did you mean 'transformer'"),
        ({"dtype": "fp16"}, "allowed: bfloat16, float16, float32"),
        ({"vram": "much"}, "a size such as 16GB"),
        ({"recipes": ql.Recipe("int8", skip=("prj_out",))}, "did you mean 'proj_out'"),
        ({"recipes": ql.Recipe("int8", skip=("*",))}, "nothing to quantize"),
    ],
)
def test_bad_requests_are_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        plan("FLUX.1-schnell", **arguments)


def test_an_unknown_name_suggests():
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'SD3\.5-large'"):
        plan("SD35-large")


# -- what loading takes


def allocated(call):
    """Return what a call gives, and the most that torch's tensors took meanwhile on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    return result, top


@pytest.mark.parametrize("weights", WEIGHTS[1:])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(4096, 1024), (4112, 1024), (4100, 1024), (4097, 96), (1, 4096), (4096, 96)],
)
def test_quantizing_a_layer_takes_no_more_than_said(weights, out_features, in_features):
    from quantolab.backends.quanto.layers import quantize_linear

    layer = Layer("layer", in_features, out_features, bias=False)
    weight = torch.randn(out_features, in_features, dtype=torch.bfloat16)
    quantize_linear(layer, weights, weight, None)  # what is made once a process
    _, top = allocated(lambda: quantize_linear(layer, weights, weight, None))
    said = quantizing_bytes(layer, weights, "bfloat16")
    assert top <= said
    assert said <= 1.3 * top + scratch_bytes("bfloat16")  # and not far above


@pytest.fixture(scope="module")
def larger_flux(tmp_path_factory):
    """A random FLUX transformer of 60 MB in bfloat16: larger than what quantizing takes beside."""
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("larger")
    torch.manual_seed(0)
    module = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=128,
        num_attention_heads=6, joint_attention_dim=512, pooled_projection_dim=128,
        axes_dims_rope=[16, 56, 56], guidance_embeds=False,
    )  # fmt: skip
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("weights", "dtype"), [("int8", "float32"), ("int4", "bfloat16")])
def test_loading_takes_no_more_than_planned(larger_flux, weights, dtype):
    row = plan(larger_flux, weights, dtype=dtype).query("weights == @weights")
    module, top = allocated(lambda: ql.load(larger_flux, weights, dtype=dtype, device="cpu"))
    assert row.weight_bytes.item() == ql.weight_bytes(module) <= top
    assert top <= row.load_peak_bytes.item()
    largest = max(layer_bytes(layer, weights, dtype) for layer in linear_layers(module))
    assert row.load_peak_bytes.item() <= top + 2 * (largest + scratch_bytes(dtype))


def test_a_text_encoder_is_read_whole(pipeline_folder):
    table = plan(pipeline_folder, "int8", dtype="bfloat16")
    rows = table[table.component == "text_encoder_2"].set_index("recipe")
    assert rows.load_peak_bytes["none"] == rows.weight_bytes["none"]
    assert rows.load_peak_bytes["int8"] > rows.weight_bytes["none"]


@pytest.mark.parametrize("vram", [12, "12", "999kB"])
def test_memory_that_no_device_has_is_refused(flux_dev, vram):
    with pytest.raises(ArgumentError, match=f"is {vram}GB meant"):
        plan(flux_dev, vram=vram)
