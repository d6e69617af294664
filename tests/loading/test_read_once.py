"""However many recipes there are, the disk reads a model's files once, where memory allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import quantolab as ql

WORDS = ("none", "float8", "int8", "int4", "int2")

COUNTERS = Path("/proc/self/io")


def from_disk() -> int:
    """Return how many bytes this process has had read from disks, not from the system's cache."""
    return int(dict(line.split(": ") for line in COUNTERS.read_text().splitlines())["read_bytes"])


def forget(path: Path) -> None:
    """Have the system drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def weights(flux_folder, tmp_path_factory):
    """The weights file, of 17 MB, of a denoiser; a disk that counts what it reads holds it."""
    from diffusers import FluxTransformer2DModel

    if not COUNTERS.exists():
        pytest.skip("this system doesn't tell what disks read")
    folder = tmp_path_factory.mktemp("wide")
    config = FluxTransformer2DModel.load_config(flux_folder)
    wide = FluxTransformer2DModel.from_config(config, num_attention_heads=12, num_layers=0)
    wide.to(torch.bfloat16).save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    forget(path)
    before = from_disk()
    path.read_bytes()
    if from_disk() - before < path.stat().st_size:
        pytest.skip("this file system reads without a disk that counts")
    return path


def test_the_first_recipe_reads_the_file_and_the_others_nothing(weights):
    for word in WORDS:  # libraries are read then, and no more
        ql.load(weights.parent, word, device="cpu")
    forget(weights)
    read = []
    for word in WORDS:
        before = from_disk()
        ql.load(weights.parent, word, device="cpu")
        read.append(from_disk() - before)
    size = weights.stat().st_size
    assert size <= read[0] < 1.5 * size
    assert max(read[1:]) < size / 10, dict(zip(WORDS, read, strict=True))
