"""Saved models in another backend's form: the same weights, whatever is kept, and the way back."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from saved_models import assert_same_weights, output_of, run_fresh

import quantolab as ql
from quantolab.backends import exchange, quantized_layers
from quantolab.cli import main
from quantolab.errors import ArgumentError, UnsupportedError
from quantolab.weights import backends_of

for library in ("sdnq", "torchao"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"pip install 'quantolab[{library}]'", allow_module_level=True)

MIXED = "int4 *.attn.*=int8 proj_out=none"
WAYS = [
    ("int8", "sdnq"),
    (MIXED, "sdnq"),
    ("int8 proj_out=none *.ff.*=float8", "torchao"),
]
# SDNQ compiles for each word by itself; what leaves in all words, model by model, test_leaving has.
MORE = [("float8", "sdnq"), ("int4", "sdnq"), ("int2", "sdnq"), ("int8", "torchao")]
MORE += [("float8", "torchao")]


def deep(module, path):
    """Return a layer's weight in float32, from values and scales."""
    words = quantized_layers(module)
    backend = backends_of(words.values())[0]
    return exchange(backend).values_of(module.get_submodule(path)).dequantized()


@pytest.mark.parametrize(
    ("recipe", "to"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.sweep) for way in MORE)]
)
def test_there_and_back(recipe, to, flux_folder, tmp_path):
    from diffusers import FluxTransformer2DModel

    quanto = ql.load(flux_folder, recipe, device="cpu")
    before = output_of(quanto)
    ql.save(quanto, tmp_path / "quanto")
    report = ql.convert(tmp_path / "quanto", tmp_path / "new", to=to)
    assert report.weights_difference == 0 and f"({to})" in str(report)
    new = ql.load_saved(tmp_path / "new", device="cpu")
    words = quantized_layers(quanto)
    assert quantized_layers(new).keys() == words.keys() and report.layers == len(words)
    for path in words:
        assert torch.equal(deep(quanto, path), deep(new, path)), path
    output = output_of(new)
    assert (output - before).norm() < 0.05 * before.norm()
    assert report.weight_bytes == ql.weight_bytes(new)
    # Plain Diffusers reads it with equal weights and outputs: Quanto's scales are bfloat16.
    theirs = FluxTransformer2DModel.from_pretrained(tmp_path / "new", torch_dtype=torch.bfloat16)
    assert torch.equal(output_of(theirs.eval()), output)
    ql.convert(tmp_path / "new", tmp_path / "back", to="quanto")
    assert_same_weights(ql.load_saved(tmp_path / "back", device="cpu"), quanto)


def test_a_fresh_process_without_quantolab_reads_it(flux_folder, tmp_path):
    ql.save(ql.load(flux_folder, "int4", device="cpu"), tmp_path / "quanto")
    ql.convert(tmp_path / "quanto", tmp_path / "new", to="sdnq")
    code = """
import os, sys
os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
import torch
from diffusers import FluxTransformer2DModel
model = FluxTransformer2DModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
assert "quantolab" not in sys.modules
torch.save({name: value for name, value in model.state_dict().items()}, sys.argv[2])
"""
    done = run_fresh(code, tmp_path / "new", tmp_path / "state.pt")
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "state.pt", weights_only=True)
    ours = ql.load_saved(tmp_path / "new", device="cpu").state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.parametrize("to", ["sdnq", "torchao"])
def test_a_pipeline_with_its_text_encoder(to, pipeline_folder, tmp_path):
    pipe = ql.load_pipeline(pipeline_folder, "transformer=int8 text_encoder_2=float8", device="cpu")
    ql.save(pipe, tmp_path / "quanto")
    report = ql.convert(tmp_path / "quanto", tmp_path / "new", to=to)
    assert set(report.recipes) == {"transformer", "text_encoder_2"}
    new = ql.load_saved(tmp_path / "new", device="cpu")
    for name in report.recipes:
        old, now = getattr(pipe, name), getattr(new, name)
        assert quantized_layers(old).keys() == quantized_layers(now).keys()
        assert all(torch.equal(deep(old, path), deep(now, path)) for path in quantized_layers(old))
    from diffusers import FluxPipeline

    plain = FluxPipeline.from_pretrained(tmp_path / "new", torch_dtype=torch.bfloat16)
    for name in report.recipes:
        ours, theirs = getattr(new, name), getattr(plain, name)
        assert quantized_layers(ours).keys() == quantized_layers(theirs).keys()
        assert all(torch.equal(deep(ours, p), deep(theirs, p)) for p in quantized_layers(ours))


def test_what_has_no_such_form_is_refused_by_name_and_nothing_is_written(flux_folder, tmp_path):
    ql.save(ql.load(flux_folder, "int8 proj_out=int4", device="cpu"), tmp_path / "mixed")
    with pytest.raises(UnsupportedError, match=r"proj_out' \(int4\) can't be converted to torchao"):
        ql.convert(tmp_path / "mixed", tmp_path / "out", to="torchao")
    ql.save(ql.load(flux_folder, "sdnq:int8-row", device="cpu"), tmp_path / "sdnq")
    with pytest.raises(UnsupportedError, match="aren't numbers of bfloat16"):
        ql.convert(tmp_path / "sdnq", tmp_path / "out", to="quanto")
    assert ql.convert(tmp_path / "sdnq", tmp_path / "ao", to="torchao").weights_difference == 0
    ql.save(ql.load(flux_folder, "sdnq:uint4-svd8", device="cpu"), tmp_path / "svd")
    with pytest.raises(UnsupportedError, match="no other form"):
        ql.convert(tmp_path / "svd", tmp_path / "out", to="quanto")
    with pytest.raises(ArgumentError, match="no layer in another form"):
        ql.convert(tmp_path / "svd", tmp_path / "out", to="sdnq")
    assert not (tmp_path / "out").exists()


def test_the_command(flux_folder, tmp_path, capsys):
    ql.save(ql.load(flux_folder, "int4", device="cpu"), tmp_path / "quanto")
    arguments = [str(tmp_path / "quanto"), str(tmp_path / "new"), "--to"]
    assert main(["convert", *arguments, "sdnq"]) == 0
    assert "greatest difference of weights  0" in capsys.readouterr().out
    assert main(["convert", *arguments, "torchao"]) == 2
    assert "can't be converted to torchao" in capsys.readouterr().err
    assert main(["convert", *arguments, "hqq"]) == 2
    assert "sdnq, torchao, quanto, gguf" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("rows", [1, 2, 48])
@pytest.mark.parametrize("columns", [32, 96, 128, 160, 192, 320, 384])
@pytest.mark.parametrize("word", ["float8", "int8", "int4", "int2"])
def test_layers_of_all_shapes(word, columns, rows):
    module = torch.nn.Sequential(torch.nn.Linear(columns, rows, dtype=torch.bfloat16))
    ql.quantize(module, word)
    from quantolab.models.layers import linear_layers

    layer = linear_layers(module)[0]
    values = exchange("quanto").values_of(module[0])
    plain = module[0].weight.dequantize().float()
    assert (values.dequantized() - plain).abs().max() <= 0.01 * plain.abs().max()
    try:
        new = exchange("sdnq").layer_of(values, layer, module[0].bias, torch.bfloat16)
    except UnsupportedError as error:
        assert rows == 1, error  # Quanto's one row has a scale a column
        return
    again = exchange("sdnq").values_of(new)
    assert torch.equal(again.dequantized(), values.dequantized())
    x = torch.randn(3, columns, dtype=torch.bfloat16)
    apart = (new(x) - module(x)).norm() / module(x).norm()
    assert math.isfinite(apart) and apart < 0.05
