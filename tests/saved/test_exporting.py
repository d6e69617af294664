"""Saved models as GGUF: what the file holds, under whose names, and what Diffusers reads of it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from saved_models import output_of

import quantolab as ql
from quantolab.backends import exchange, file_form, quantized_layers, stored_form_of
from quantolab.cli import main
from quantolab.errors import ArgumentError, OutputError, UnsupportedError
from quantolab.models.original_names import original_names
from quantolab.weights import backends_of

if importlib.util.find_spec("gguf") is None:
    pytest.skip("pip install 'quantolab[gguf]'", allow_module_level=True)

import gguf

SWEEP = pytest.mark.sweep


def swept(*cases):
    """Leave cases to `pytest -m sweep`."""
    return [pytest.param(case, marks=SWEEP) for case in cases]


def tensors_of(path):
    """Return every tensor of a file in float32, as the gguf package reads it, and its type."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        found[tensor.name] = (
            tensor.tensor_type.name,
            torch.from_numpy(value.copy()).reshape(shape),
        )
    return found


def weight_of(module, path):
    """Return what a layer stands for, in float32."""
    words = quantized_layers(module)
    if path not in words:
        return module.get_submodule(path).weight.detach().float()
    part = module.get_submodule(path)
    if "svd" in words[path]:
        return stored_form_of(part).plain_weight(part).float()
    return exchange(backends_of((words[path],))[0]).values_of(part).dequantized()


def read_by_diffusers(file, config, cls="FluxTransformer2DModel"):
    import diffusers

    return (
        getattr(diffusers, cls)
        .from_single_file(
            str(file),
            config=str(config),
            torch_dtype=torch.bfloat16,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        )
        .eval()
    )


def assert_as_diffusers_reads(weight, ours):
    """Compare with what Diffusers makes of a tensor, in float16 or bfloat16."""
    apart = (dequantized_by_diffusers(weight).reshape(ours.shape) - ours).abs().max()
    assert apart <= 2.0**-8 * ours.abs().max()


def dequantized_by_diffusers(weight):
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    is_quantized = isinstance(weight, GGUFParameter)
    return (dequantize_gguf_tensor(weight) if is_quantized else weight).detach().float()


@pytest.mark.parametrize(
    ("word", "kinds", "exact"),
    [
        ("int8", {"Q8_0"}, True),
        ("int4", {"Q4_1"}, True),
        pytest.param("int2", {"Q4_1"}, True, marks=SWEEP),
        ("float8", {"Q8_0"}, False),
        pytest.param("int4 *.attn.*=int8 proj_out=none", {"Q8_0", "Q4_1"}, True, marks=SWEEP),
        pytest.param("sdnq:int4-g32", {"Q4_0"}, False, marks=SWEEP),
        ("sdnq:uint4-svd8", {"Q4_1"}, False),
    ],
)
def test_a_file_says_what_the_model_is(word, kinds, exact, flux_folder, tmp_path):
    if word.startswith("sdnq") and importlib.util.find_spec("sdnq") is None:
        pytest.skip("pip install 'quantolab[sdnq]'")
    module = ql.load(flux_folder, word, device="cpu")
    ql.save(module, tmp_path / "saved")
    report = ql.convert(tmp_path / "saved", tmp_path / "out", to="gguf")
    assert report.files == ("saved.gguf",) and str(report.recipes[""]) == word
    found = tensors_of(tmp_path / "out" / "saved.gguf")
    names = {f"{path}.weight" for path in quantized_layers(module)}
    names -= {f"{path}.weight" for path in report.unquantized}
    # in 16 columns no block of 32 fits
    assert set(report.unquantized) == {"x_embedder"} and "16 values" in str(report)
    assert {n for n, (kind, _) in found.items() if kind != "F32"} == names
    assert {kind for kind, _ in found.values()} == {"F32", *kinds}
    greatest = 0.0
    for name, (_, value) in found.items():
        if name in names or name == "x_embedder.weight":
            was = weight_of(module, name.removesuffix(".weight"))
            greatest = max(greatest, (value - was).abs().max().item())
            assert (value - was).norm() < 0.1 * was.norm()
        else:
            assert torch.equal(value, module.state_dict()[name].float()), name
    assert report.weights_difference == greatest
    assert (greatest == 0) == exact == (not report.requantized)
    assert report.layers == len(names) == sum(report.types.values())
    assert report.carried == (len(names) if exact else 0)
    theirs = read_by_diffusers(tmp_path / "out" / "saved.gguf", tmp_path / "out")
    before = output_of(module)
    # Another kernel, and where quantized anew other weights.
    assert (output_of(theirs) - before).norm() < (0.03 if exact else 0.2) * before.norm()
    for name in names:
        assert_as_diffusers_reads(theirs.get_parameter(name), found[name][1])


@pytest.mark.parametrize("kind", ["Q5_1", "Q4_0", *swept("Q8_0", "Q5_0", "Q4_1")])
def test_a_type_that_is_asked_for(kind, flux_folder, tmp_path):
    ql.save(ql.load(flux_folder, "float8", device="cpu"), tmp_path / "saved")
    report = ql.convert(tmp_path / "saved", tmp_path / "x.gguf", to="gguf", gguf_type=kind)
    assert report.types == {kind: report.layers} and report.carried == 0
    bits = int(kind[1])
    assert 0.2 * 2.0**-bits < max(report.requantized.values()) < 2.5 * 2.0**-bits
    assert (tmp_path / "x.gguf").is_file() and report.files == ("x.gguf",)


@pytest.mark.parametrize("name", ["sd3", "wan", *swept("auraflow", "ltx", "qwen-image")])
def test_the_makers_names_are_read_by_diffusers(name, tmp_path):
    architecture = ARCHITECTURES[name]
    module, _ = ql.quantize(architecture.make().to(torch.bfloat16), "int8")
    ql.save(module, tmp_path / "saved")
    report = ql.convert(tmp_path / "saved", tmp_path / "out", to="gguf")
    assert report.names[""].startswith("the makers' own")
    theirs = read_by_diffusers(tmp_path / "out/saved.gguf", tmp_path / "out", architecture.cls)
    for path in quantized_layers(module):
        assert_as_diffusers_reads(theirs.get_submodule(path).weight, weight_of(module, path))
    assert report.weights_difference == 0 and report.carried == report.layers


def test_flux_has_its_makers_names_where_they_are_asked_for(flux_folder, tmp_path):
    from quantolab.models.converters import converter_for

    module = ql.load(flux_folder, "int8 *.attn.to_q=none proj_mlp=int4", device="cpu")
    ql.save(module, tmp_path / "saved")
    report = ql.convert(tmp_path / "saved", tmp_path / "x.gguf", to="gguf", names="original")
    found = {name: value for name, (_, value) in tensors_of(tmp_path / "x.gguf").items()}
    assert "double_blocks.0.img_attn.qkv.weight" in found
    # A layer that is kept lies in one tensor with others: all of it stays as it was.
    assert "single_transformer_blocks.0.proj_mlp" in report.unquantized
    assert "which is kept" in report.unquantized["transformer_blocks.0.attn.to_k"]
    back = converter_for(type(module), module.config)(checkpoint=dict(found))
    for path in [*quantized_layers(module), "transformer_blocks.0.attn.to_q"]:
        assert torch.equal(back[f"{path}.weight"], weight_of(module, path)), path
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.architecture"].contents() == "flux"


def test_a_name_that_no_table_knows_is_never_written():
    module = ARCHITECTURES["flux"].make()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert original_names(module, shapes) is None  # plain Diffusers' converter assumes 3072
    assert original_names(module, shapes, own_width=True)
    assert original_names(module, shapes | {"more.weight": (3, 3)}, own_width=True) is None
    pixart = ARCHITECTURES["pixart"].make()
    shapes = {name: tuple(tensor.shape) for name, tensor in pixart.state_dict().items()}
    assert original_names(pixart, shapes, own_width=True) is None


def test_what_can_not_be_exported_says_why_and_writes_nothing(
    flux_folder, pipeline_folder, tmp_path
):
    pipe = ql.load_pipeline(pipeline_folder, "transformer=int8 text_encoder_2=int8", device="cpu")
    ql.save(pipe, tmp_path / "pipe")
    with pytest.raises(UnsupportedError, match=r"layer 'text_encoder_2\..*llama.cpp"):
        ql.convert(tmp_path / "pipe", tmp_path / "out", to="gguf")
    ql.save(ql.load(flux_folder, "none", device="cpu"), tmp_path / "plain")
    with pytest.raises(ArgumentError, match="no quantized layer"):
        ql.convert(tmp_path / "plain", tmp_path / "out", to="gguf")
    ql.save(ql.load(flux_folder, "float8", device="cpu"), tmp_path / "saved")
    for wrong, said in (
        ({"gguf_type": "Q4_K"}, "Q8_0"),
        ({"names": "mine"}, "original"),
        ({"gguf_type": "Q8_0", "to": "sdnq"}, "are for to='gguf'"),
    ):
        with pytest.raises(ArgumentError, match=said):
            ql.convert(tmp_path / "saved", tmp_path / "out", **{"to": "gguf", **wrong})
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match="float16"):
        file_form().made(np.full((2, 32), 1e-9, np.float32), "Q8_0")


def test_a_pipeline_gets_a_file_and_its_configuration(pipeline_folder, tmp_path):
    ql.save(ql.load_pipeline(pipeline_folder, "int8", device="cpu"), tmp_path / "pipe")
    report = ql.convert(tmp_path / "pipe", tmp_path / "out", to="gguf")
    assert report.files == ("transformer.gguf",)
    read_by_diffusers(tmp_path / "out/transformer.gguf", tmp_path / "out/transformer")


def test_only_an_earlier_export_is_replaced(flux_folder, tmp_path, capsys):
    ql.save(ql.load(flux_folder, "int8", device="cpu"), tmp_path / "saved")
    asked = ["convert", str(tmp_path / "saved")]
    assert main([*asked, str(tmp_path / "x.gguf"), "--to", "gguf", "--type", "Q4_0"]) == 0
    first = (tmp_path / "x.gguf").read_bytes()
    assert main([*asked, str(tmp_path / "x.gguf"), "--to", "gguf"]) == 0
    assert (tmp_path / "x.gguf").read_bytes() != first
    assert main([*asked, str(tmp_path / "out"), "--to", "gguf"]) == 0
    assert main([*asked, str(tmp_path / "out"), "--to", "gguf"]) == 0
    capsys.readouterr()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "mine.gguf").write_bytes(b"GGUFmine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    for place in ("out", "mine.gguf", "folder", "saved"):
        assert main([*asked, str(tmp_path / place), "--to", "gguf"]) == 2
        assert "left as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.gguf").read_bytes() == b"GGUFmine"
    assert {p.name for p in tmp_path.iterdir()} == {
        "saved", "x.gguf", "out", "mine.gguf", "folder"
    }  # fmt: skip
    with pytest.raises(OutputError, match=r"mine\.txt"):
        ql.convert(tmp_path / "saved", tmp_path / "out", to="gguf")
