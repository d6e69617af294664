"""Quanto's compiled `unpack` against the plain torch one that quantolab uses, on this CPU.

    python tests/benchmarks/unpack.py

Builds Quanto's C++ extension if it isn't there (needs a compiler and ninja). Each figure is the
median of alternating calls in one process.
"""

from __future__ import annotations

import statistics
import time

import torch
from optimum.quanto.library.extensions import get_extension

from quantolab.backends.quanto import cures


def main() -> None:
    """Print the median milliseconds of both and their ratio, for both widths."""
    extension = get_extension("quanto_cpp")
    extension._lib = None  # quantolab has put its own in this place
    compiled = extension.lib.unpack
    for bits in (4, 2):
        packed = torch.randint(0, 256, (6144 * 1536 * bits // 8 // 128, 128), dtype=torch.uint8)
        assert torch.equal(compiled(packed, bits), cures.unpack(packed, bits))
        times: dict[str, list[float]] = {"compiled": [], "plain": []}
        for _ in range(50):
            for name, function in (("compiled", compiled), ("plain", cures.unpack)):
                started = time.perf_counter()
                function(packed, bits)
                times[name].append((time.perf_counter() - started) * 1e3)
        middle = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"{bits} bits, 6144x1536 values: compiled {middle['compiled']:.2f} ms, "
            f"plain {middle['plain']:.2f} ms, ratio {middle['plain'] / middle['compiled']:.2f}"
        )


if __name__ == "__main__":
    main()
