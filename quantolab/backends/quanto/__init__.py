"""The only door to optimum.quanto: nothing else in quantolab imports it.

`quantize` works on a module in memory, `load` reads a component from disk layer by layer,
`weight_bytes` counts what a module really holds, `save` and `load_saved` keep it. Known faults of
Quanto are cured in `cures`.
"""

from __future__ import annotations

from .converting import from_quanto, to_quanto
from .pipelines import load_pipeline
from .quantize import QuantizeReport, QuantoLinear, is_quantized, quantize
from .reading import load
from .restoring import load_saved
from .saving import save
from .single_file import load_single_file
from .tensors import weight_bytes
from .verifying import verify_saved

__all__ = [
    "QuantizeReport",
    "QuantoLinear",
    "from_quanto",
    "is_quantized",
    "load",
    "load_pipeline",
    "load_saved",
    "load_single_file",
    "quantize",
    "save",
    "to_quanto",
    "verify_saved",
    "weight_bytes",
]
