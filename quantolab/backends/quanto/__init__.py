"""The only door to optimum.quanto: nothing else in quantolab imports it.

`quantize` works on a module in memory, `load` reads a component from disk layer by layer,
`weight_bytes` counts what a module really holds. Known faults of Quanto are cured in `cures`.
"""

from __future__ import annotations

from .quantize import QuantizeReport, QuantoLinear, is_quantized, quantize
from .reading import load
from .single_file import load_single_file
from .tensors import weight_bytes

__all__ = [
    "QuantizeReport",
    "QuantoLinear",
    "is_quantized",
    "load",
    "load_single_file",
    "quantize",
    "weight_bytes",
]
