"""Every denoiser class of the installed Diffusers: read, quantized, foretold, saved, read again.

A few classes always; all of them with ``pytest -m sweep tests/saved/test_sweep.py``.
"""

from __future__ import annotations

import pytest
import torch
from denoisers import Denoiser, denoisers

import quantolab as ql
from quantolab.measure.held_bytes import weight_bytes
from quantolab.models.layers import linear_layers
from quantolab.weights import QUANTIZED

ALWAYS = ("WanAnimateTransformer3DModel", "StableCascadeUNet", "PriorTransformer")
EVERY = [
    pytest.param(one, word, id=f"{one}-{word}", marks=() if quick else pytest.mark.sweep)
    for one in denoisers()
    for word in QUANTIZED
    for quick in [one.cls in ALWAYS and one.number == 0 and word in ("int8", "int4")]
]


@pytest.mark.parametrize(("denoiser", "word"), EVERY)
def test_a_class_of_denoisers(denoiser: Denoiser, word, tmp_path):
    module = denoiser.make().to(torch.bfloat16)
    if not linear_layers(module):
        pytest.skip("it has no Linear layer")
    folder = tmp_path / "model"
    module.save_pretrained(folder)
    plain = type(module).from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert_equal(ql.load(folder, "none", device="cpu"), plain)
    quantized = ql.load(folder, word, device="cpu")
    assert_equal(ql.quantize(plain, word)[0], quantized)
    table = ql.plan(folder, [word])
    assert table[table.weights == word].weight_bytes.item() == weight_bytes(quantized)
    file = folder / "diffusion_pytorch_model.safetensors"
    assert_equal(ql.load_single_file(file, word, device="cpu"), quantized)
    saved = ql.load_saved(ql.save(quantized, tmp_path / "saved"), device="cpu")
    assert_equal(saved, quantized)
    assert_same_output(denoiser, module, quantized, saved)


def assert_equal(one, other):
    """The same tensors, those that no file holds among them."""
    one, other = ({**m.state_dict(), **dict(m.named_buffers())} for m in (one, other))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def assert_same_output(denoiser, plain, quantized, saved):
    """Where plain Diffusers can run it: equal before and after saving, and numbers."""
    if not denoiser.inputs:
        return
    try:
        expected = denoiser.output(plain, torch.bfloat16)
    except Exception:  # a library that it needs is missing, say (Cosmos: torchvision)
        return
    found = denoiser.output(quantized, torch.bfloat16)
    assert found.shape == expected.shape and torch.isfinite(found).all()
    assert torch.equal(denoiser.output(saved, torch.bfloat16), found)
