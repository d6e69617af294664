"""Every architecture at every dtype: bytes as predicted, outputs near the unquantized ones."""

import warnings

import pytest
import torch
from uniform import predicted_bytes

from quantolab.loading.component import load
from quantolab.loading.in_memory import quantize
from quantolab.measure.held_bytes import weight_bytes
from quantolab.models.layers import KEEP_FP32, linear_layers
from quantolab.models.sample_inputs import first_output, sample_inputs
from quantolab.models.skeleton import build_skeleton
from quantolab.models.source import find_model
from quantolab.saved.doors import load_saved, save

# Largest relative error of an output, by weights dtype. Random weights are the hardest case:
# they have no structure that rounding could spare.
BOUNDS = {"float8": 0.06, "int8": 0.02, "int4": 0.15, "int2": 0.7}


@pytest.fixture(scope="session")
def skeleton(architecture_folder):
    return build_skeleton(find_model(architecture_folder).component())


@pytest.fixture(scope="session")
def reference(architecture, architecture_folder):
    """Return the unquantized model's output in a compute dtype, and its bytes, computed once."""
    known = {}

    def output(dtype):
        if dtype not in known:
            module = load(architecture_folder, "none", dtype=dtype, device="cpu")
            known[dtype] = architecture.output(module, getattr(torch, dtype)), weight_bytes(module)
        return known[dtype]

    return output


CELLS = [
    *(("bfloat16", weights) for weights in BOUNDS),
    ("float16", "int4"),
    ("float32", "int8"),
]


@pytest.mark.parametrize(("dtype", "weights"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_it_works(architecture, architecture_folder, skeleton, reference, dtype, weights):
    wanted, full_bytes = reference(dtype)
    module = load(architecture_folder, weights, dtype=dtype, device="cpu")
    assert weight_bytes(module) == predicted_bytes(skeleton, weights, dtype)
    assert predicted_bytes(skeleton, "none", dtype) == full_bytes
    assert weight_bytes(module) < 0.85 * full_bytes
    output = architecture.output(module, getattr(torch, dtype))
    assert output.dtype == wanted.dtype and output.shape == wanted.shape
    assert torch.isfinite(output).all()
    error = ((output.double() - wanted.double()).norm() / wanted.double().norm()).item()
    assert 0 < error < BOUNDS[weights]


def test_the_layers_are_those_of_diffusers(architecture, architecture_folder):
    import diffusers
    from optimum.quanto import QLinear

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = getattr(diffusers, architecture.cls).from_pretrained(
            architecture_folder,
            quantization_config=diffusers.QuantoConfig("int2", modules_to_not_convert=[]),
            torch_dtype=torch.bfloat16,
        )
    quantized = {name for name, module in theirs.named_modules() if isinstance(module, QLinear)}
    ours = load(architecture_folder, "int2", device="cpu")
    kept = {path for path, why in ours.quantize_report.kept if why == KEEP_FP32}
    # Diffusers compares leaf names with its own list and misses layers inside listed containers.
    assert quantized == set(ours.quantize_report.quantized) | kept
    assert {layer.path for layer in linear_layers(architecture.make())} == quantized
    assert bool(kept) == (architecture.name == "wan")


def test_wan_keeps_its_time_embedder_in_float32(architectures):
    wan = architectures["wan"].make()
    assert wan._keep_in_fp32_modules
    module, report = quantize(wan, "int4")
    embedder = module.condition_embedder.time_embedder
    assert [type(embedder.linear_1), type(embedder.linear_2)] == [torch.nn.Linear] * 2
    assert embedder.linear_1.weight.dtype == torch.float32
    assert report.kept == tuple(
        (f"condition_embedder.time_embedder.linear_{i}", KEEP_FP32) for i in (1, 2)
    )


@pytest.mark.parametrize("other", (torch.float32, torch.float16))
@pytest.mark.parametrize("weights", list(BOUNDS))
def test_inputs_of_another_dtype_never_crash(weights, other):
    """A plain layer refuses them. A quantized one may take them, but then it must be right."""
    layer = torch.nn.Sequential(torch.nn.Linear(256, 32, dtype=torch.bfloat16))
    inputs = torch.randn(5, 256)
    wanted = layer(inputs.to(torch.bfloat16))
    with pytest.raises(RuntimeError, match="dtype"):
        layer(inputs.to(other))
    quantized, _ = quantize(layer, weights)
    try:
        output = quantized(inputs.to(other))
    except RuntimeError as error:
        assert "dtype" in str(error) or "scalar type" in str(error)
    else:
        error = (output.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < BOUNDS[weights]


@pytest.mark.parametrize("weights", list(BOUNDS))
def test_what_is_saved_comes_back(architecture, architecture_folder, tmp_path, weights):
    module = load(architecture_folder, weights, device="cpu")
    before = architecture.output(module, torch.bfloat16)
    size = weight_bytes(module)
    save(module, tmp_path / "saved")
    again = load_saved(tmp_path / "saved", device="cpu")
    assert weight_bytes(again) == size
    assert torch.equal(architecture.output(again, torch.bfloat16), before)


def test_inputs_for_verifying_fit(architecture):
    """What `verify_saved` feeds a model whose pipeline it doesn't run."""
    module = architecture.make()
    assert torch.isfinite(first_output(module, sample_inputs(module, torch.float32))).all()
