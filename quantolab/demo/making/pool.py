"""The pictures that the demo model is trained on, drawn once and kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from .drawing import SIZE, sample

_CHUNK = 1000


_Job = tuple[int, int, int]
"""A seed, which part of the pictures, and how many these are."""

_Pairs = tuple[np.ndarray, list[str]]


def _chunk(job: _Job) -> _Pairs:
    seed, index, n = job
    rng = random.Random(f"pool {seed} {index}")
    pairs = [sample(rng) for _ in range(n)]
    return np.stack([np.asarray(image) for image, _ in pairs]), [text for _, text in pairs]


def training_pool(
    folder: Path, n: int, seed: int, processes: int
) -> tuple[torch.Tensor, list[str]]:
    """Draw training pictures, or read them back if they were drawn before.

    Parameters
    ----------
    folder
        Where they are kept.
    n
        How many pictures.
    seed
        Which ones.
    processes
        How many processes draw at the most.

    Returns
    -------
    tuple
        Pictures, uint8 of shape (n, 3, height, width), and their captions.
    """
    path = folder / f"pool-{seed}-{n}.pt"
    if not path.exists():
        jobs = [(seed, i, min(_CHUNK, n - i)) for i in range(0, n, _CHUNK)]
        images = torch.empty(n, 3, SIZE, SIZE, dtype=torch.uint8)
        captions: list[str] = []
        for part, texts in _drawn(jobs, min(processes, len(jobs))):
            start = len(captions)
            images[start : start + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
            captions += texts
        torch.save((images, captions), path)
    return torch.load(path, mmap=True)


def _drawn(jobs: list[_Job], processes: int) -> Iterator[_Pairs]:
    if processes == 1:
        yield from map(_chunk, jobs)
        return
    # Spawned, since a forked copy of a process that has used torch's threads can hang.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        yield from executor.map(_chunk, jobs)


def to_input(images: torch.Tensor) -> torch.Tensor:
    """Pixels from 0..255 to the VAE's -1..1."""
    return images.float() / 127.5 - 1
