"""Activations are quantized by scales that calibration finds, or not at all."""

import copy

import pytest
import torch
from torch import nn

import quantolab as ql
from quantolab.backends import quantized_inputs
from quantolab.errors import ArgumentError, UnsupportedError
from quantolab.run.calibrating import calibrated

WIDE = 64


class Net(nn.Module):
    """One vector and some tokens flow in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.modulation = nn.Linear(WIDE, WIDE)
        self.first, self.second = nn.Linear(WIDE, 2 * WIDE), nn.Linear(2 * WIDE, WIDE)

    def forward(self, tokens, vector):
        scale = self.modulation(vector)[:, None]
        return self.second(torch.relu(self.first(tokens * (1 + scale))))


def inputs(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator) for shape in ((2, 24, WIDE), (2, WIDE)))
    return tuple(value.to(dtype) for value in made)


def error(found, wanted):
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activations", ["int8", "float8"])
@pytest.mark.parametrize("word", ["float8", "int8", "int4", "int2"])
def test_inputs_are_rounded_by_the_largest_that_was_seen(word, activations, dtype):
    plain, _ = ql.quantize(Net().to(dtype), word)
    module, report = ql.quantize(Net().to(dtype), f"{word} activations={activations}")
    assert ql.weight_bytes(module) == ql.weight_bytes(plain)  # one scale a layer is held anyway
    assert "3 layers wait to be calibrated" in report.notes()[0]
    x = inputs(1, dtype)
    with torch.no_grad():
        with pytest.raises(ArgumentError, match=r"'modulation'.*quantolab\.calibrate"):
            module(*x)
        report = calibrated(module, lambda: [module(*inputs(seed, dtype)) for seed in range(4)])
        assert quantized_inputs(module) == {"first": activations, "second": activations}
        assert "2 layers quantized" in report.notes()[0] and "(1 layers)" in report.notes()[1]
        found, wanted = module(*x), plain(*x)
        # Rounded by hand, from the definition.
        h = x[0] * (1 + plain.modulation(x[1])[:, None])
        for name in ("first", "second"):
            h = rounded(h, getattr(module, name).input_scale, activations)
            h = getattr(plain, name)(h)
            h = torch.relu(h) if name == "first" else h
    assert 1e-4 < error(found, wanted) < 0.1
    assert error(found, h) < (1e-5 if dtype == torch.float32 else 0.03)
    assert type(found) is torch.Tensor and found.dtype == dtype
    seen = max(
        float((x * (1 + plain.modulation(v)[:, None])).abs().max())
        for x, v in (inputs(seed, dtype) for seed in range(4))
    )
    most = 127 if activations == "int8" else 448
    assert float(module.first.input_scale) == pytest.approx(seen / most, rel=0.02)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(twin(*x), found)


def rounded(x, scale, word):
    if word == "int8":
        return (x / scale).round().clamp(-128, 127) * scale
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale


def test_words_of_other_backends_are_refused():
    pytest.importorskip("sdnq", reason="pip install 'quantolab[sdnq]'")
    with pytest.raises(UnsupportedError, match="which only Quanto's words can"):
        ql.quantize(Net(), "sdnq:int8 activations=int8")


def test_what_cannot_be_is_refused_by_a_sentence(tmp_path):
    with pytest.raises(ArgumentError, match="layers whose weights it keeps"):
        ql.quantize(Net(), ql.Recipe("none", activations="int8"))
    with pytest.raises(UnsupportedError, match="calibrated on final weights"):
        ql.quantize(Net(), "int8 activations=int8", trainable=True)
    for doing in (
        lambda: ql.diffusers_code("int8 activations=int8"),
        lambda: ql.sensitivity("demo", "int8 activations=int8"),
        lambda: ql.compile_report("demo", "int8 activations=int8"),
    ):
        with pytest.raises(UnsupportedError, match="weights alone"):
            doing()
    module, _ = ql.quantize(Net(), "int8 activations=int8")
    with pytest.raises(ArgumentError, match=r"nothing flowed into 3 of the 3 layers"):
        calibrated(module, lambda: None)
    with torch.no_grad(), pytest.raises(ArgumentError, match="isn't known yet"):
        module(*inputs(0, torch.float32))


def test_a_pipeline_calibrates_its_part_or_one_that_takes_its_place(pipeline_folder, tmp_path):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    own, call = pipe.transformer, {"steps": 1, "size": (32, 32)}
    with pytest.raises(ArgumentError, match="quantizes no activations"):
        ql.calibrate(own, pipe, "a")
    recipe = "int8 activations=int8"
    module, _ = ql.quantize(copy.deepcopy(own), recipe)
    with pytest.raises(ArgumentError, match="prompts is empty"):
        ql.calibrate(module, pipe, [])
    report = ql.calibrate(module, pipe, ["a", "b"], **call)
    assert pipe.transformer is own and report is module.quantize_report
    pipe.transformer, _ = ql.quantize(own, recipe)
    assert ql.calibrate(pipe.transformer, pipe, ("a", "b"), **call).notes() == report.notes()
    assert quantized_inputs(pipe.transformer) == quantized_inputs(module)
    for path in quantized_inputs(module):
        assert torch.equal(
            module.get_submodule(path).input_scale,
            pipe.transformer.get_submodule(path).input_scale,
        )
    with pytest.raises(UnsupportedError, match="only weights can be saved"):
        ql.save(module, tmp_path / "out")


def test_plans_and_skips_tell_the_same_bytes(flux_folder):
    table = ql.plan(flux_folder, ["int8", "int8 activations=int8"])
    held = table.groupby("recipe")["weight_bytes"].max()
    loaded = ql.load(flux_folder, "int8 activations=int8")
    assert held["int8"] == held["int8 activations=int8"] == ql.weight_bytes(loaded)
