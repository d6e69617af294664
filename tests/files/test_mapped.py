"""Weights that are mapped: what safetensors itself reads, wherever it lies, also once let go."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantolab.errors import BrokenModelError
from quantolab.files.mapped import MappedWeights

TENSORS = {
    "one": torch.arange(5, dtype=torch.uint8),  # what follows begins at an odd address
    "matrix": torch.randn(6, 7),
    "half": torch.randn(3, 5).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({name: TENSORS[name] for name in ("one", "matrix")}, paths[0])
    save_file({name: TENSORS[name] for name in ("half", "scalar", "empty")}, paths[1])
    return paths


def test_mapped_tensors_are_those_of_safetensors(files):
    mapped = MappedWeights(files)
    expected = load_file(files[0]) | load_file(files[1])
    assert mapped.keys() == expected.keys() and len(mapped) == 5
    for name, tensor in expected.items():
        spec = mapped.spec(name)
        assert (spec.shape, spec.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert mapped[name].shape == tensor.shape and torch.equal(mapped[name], tensor)


def test_a_tensor_that_was_let_go_is_read_again(files):
    mapped = MappedWeights(files)
    matrix = mapped["matrix"]
    mapped.release()
    assert torch.equal(matrix, TENSORS["matrix"])


def test_writing_changes_no_file(files):
    before = files[0].read_bytes()
    mapped = MappedWeights(files)
    mapped["matrix"].zero_()
    assert not mapped["matrix"].any()
    del mapped
    assert files[0].read_bytes() == before


def test_a_file_cut_short_is_refused(files):
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(BrokenModelError, match=r"b\.safetensors can't be read as safetensors"):
        MappedWeights(files)
