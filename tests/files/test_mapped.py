"""Weights that are mapped: what safetensors itself reads, wherever it lies, also once let go."""

from __future__ import annotations

import subprocess
import sys

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
    matrix = mapped["matrix"]
    matrix.zero_()
    assert not matrix.any()
    del mapped, matrix
    assert files[0].read_bytes() == before


def test_a_file_cut_short_is_refused(files):
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(BrokenModelError, match=r"b\.safetensors can't be read as safetensors"):
        MappedWeights(files)


def test_more_tensors_than_a_process_may_open_files_are_held_at_once(tmp_path):
    """As when a converter of original checkpoints takes them all."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    tensors = {f"{n}": torch.full((3,), float(n)) for n in range(min(most, 4000) + 100)}
    save_file(tensors, tmp_path / "many.safetensors")
    mapped = MappedWeights([tmp_path / "many.safetensors"])
    held = dict(mapped.items())
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits as Linux does")
@pytest.mark.long
def test_memory_is_promised_for_one_tensor_at_a_time(tmp_path):
    """Where the system promises no more than it has, a file may be larger than what is left."""
    save_file({f"{n}": torch.ones(1 << 20) for n in range(64)}, tmp_path / "a.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", _SCARCE, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["64", "MemoryError"], done.stderr


_SCARCE = """
import resource, sys
from pathlib import Path
import torch
from quantolab.files.mapped import MappedWeights

def leave(bytes):
    size = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (size * 1024 + bytes, resource.RLIM_INFINITY))

mapped = MappedWeights([Path(sys.argv[1])])
leave(64 << 20)  # of 256 MB in the file
print(sum(int(tensor.sum() == 1 << 20) for tensor in mapped.values()))
leave(1 << 20)
try:
    mapped["0"]
except MemoryError as error:
    print(type(error).__name__)
"""
