"""Known faults of Quanto 0.2.7 on current torch: for each, its cause and one named cure.

A cure is decided from a layer's shape, the weights dtype, the compute dtype and the device, so
that a report can name it before any weight is read. The failing cases stand in the tests.
"""

from __future__ import annotations

import shutil

import torch

from ...shapes import Layer
from .bytes import group_size

INT8_PLAIN = "int8 rows not in steps of 16: plain matrix product"
"""Quanto sends int8 weights with bfloat16 inputs on a CPU to ``torch._weight_int8pack_mm``
whenever in_features is a multiple of 4. The kernel reads 16 at a time: other widths end in a
segmentation fault, or in garbage when out_features is 1. The cure multiplies by the
dequantized weight instead; the stored weight is the same."""

INT4_GENERIC = "int4 rows not in steps of 16: generic weight class"
"""int4 with bfloat16 and group size 128 becomes a TinyGemm weight, whose packing refuses
out_features that aren't multiples of 16. The cure keeps Quanto's generic int4 class; data,
scales and shifts are the same."""

FLOAT8_ZERO_ROWS = "float8 rows of zeros: stored as zeros"
"""A row of zeros has the scale 0, and 0/0 is NaN, which float8 keeps: every picture would be
NaN. (Integers turn the NaN into 0.) Zero-initialized output projections have such rows. The
cure stores zeros."""

CONTIGUOUS = "inputs made contiguous"
"""The CPU's int8 and int4 kernels refuse inputs that aren't contiguous, as Sana's are. Every
layer makes its input contiguous, which costs nothing where it is already."""

TINYGEMM_TRACED = "int4 by TinyGemm: traceable product"
"""Quanto's TinyGemm product asks ``type(input) is not torch.Tensor`` and, if so, dequantizes the
input. While ``torch.compile`` traces, the input's type is a stand-in, so a dequantize enters the
graph, turns bfloat16 into float32, and compiling fails ("expected scalar type Float but found
BFloat16"). Every TinyGemm layer calls a product of ours that asks for Quanto's own tensors
instead; eager results are the same to the bit."""

CUDA_WITHOUT_COMPILER = "no CUDA compiler: Quanto's fused CUDA kernels left out"
"""Quanto's AWQ and Marlin kernels are compiled at first use, which needs nvcc and ninja and
fails, or hangs behind a stale lock, without them. Where they can't be built they are
unregistered, and Quanto's generic classes run instead."""


CPU_KERNELS = ("int8", "int4")
"""Words for which Quanto multiplies by a kernel of the CPU's, in bfloat16."""


def cure_for(layer: Layer, word: str, dtype: torch.dtype, device: str) -> str | None:
    """Return the name of the cure that a layer's shape asks for, or None."""
    if dtype != torch.bfloat16:
        return None
    if word == "int8" and device == "cpu":
        reaches_kernel = layer.in_features % 4 == 0
        return INT8_PLAIN if reaches_kernel and layer.in_features % 16 else None
    tiny = word == "int4" and device in ("cpu", "cuda")
    if tiny and group_size(layer.in_features) == 128 and layer.out_features % 16:
        return INT4_GENERIC
    return None


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return int4/int2 values, one a byte, from packed bytes; the first rows lie in the low bits.

    Plain torch, as fast as Quanto's compiled one or faster (``tests/benchmarks/unpack.py``).
    """
    mask, on = 2**bits - 1, packed.device.type
    parts = [packed & mask]
    parts += [_shifted(packed, bits * i, on) & mask for i in range(1, 8 // bits)]
    return torch.cat(parts)


def _shifted(packed: torch.Tensor, bits: int, on: str) -> torch.Tensor:
    """Return bytes shifted to the right; MPS can't (optimum-quanto, ``library/unpack.py``)."""
    return packed // 2**bits if on == "mps" else packed >> bits


left_out: dict = {}
"""Quanto's extensions that `use_no_compiler` has unregistered, by name."""


class _Extension:
    """Stands where Quanto keeps a compiled extension: `unpack` needs no compiler, the rest does."""

    unpack = staticmethod(unpack)

    def __init__(self, extension) -> None:
        self._extension = extension

    def __getattr__(self, name: str):
        # Only CUDA's fused kernels come here, and only where a compiler was found (below).
        if name.startswith("__"):
            raise AttributeError(name)
        extension, real = self._extension, None
        extension._lib = None
        try:
            real = extension.lib
        finally:
            extension._lib = self
        for kernel in dir(real):
            if not kernel.startswith("_") and kernel != "unpack":
                setattr(self, kernel, getattr(real, kernel))
        return getattr(real, name)


def use_no_compiler() -> None:
    """Make Quanto run without building its extensions, once a process.

    Quanto compiles C++ on the first int4/int2 forward, for about a minute, inside
    site-packages, behind a lock that hangs for ever when stale. The extension's place is taken
    by `unpack`; what is registered with torch stays as it is.
    """
    from optimum.quanto.library.extensions import extension

    # `shipped.use_as_shipped` undoes this.
    can_build = bool(shutil.which("nvcc") and shutil.which("ninja"))
    for name, ext in list(extension._extensions.items()):
        if not isinstance(ext._lib, _Extension):
            ext._lib = _Extension(ext)
        if name == "quanto_cuda" and not can_build:
            # So that is_extension_available says no.
            left_out[name] = extension._extensions.pop(name)
