"""The one place that imports SDNQ: without compiling anything, and leaving torch as it was.

SDNQ compiles a function while it is imported (23 s and more, once for each process) and raises
dynamo's limits of the whole process, unless its own switch is off.
"""

from __future__ import annotations

import os

from ...quietly import quiet_imports

_SWITCH = "SDNQ_USE_TORCH_COMPILE"

_before = os.environ.get(_SWITCH)
os.environ[_SWITCH] = "0" if _before is None else _before
try:
    with quiet_imports():
        from sdnq import SDNQConfig
        from sdnq.layers import SDNQLayer
        from sdnq.packed_int import pack_int, unpack_int
        from sdnq.quant_utils import prepare_svd_for_matmul
        from sdnq.quantizer import sdnq_quantize_layer, sdnq_quantize_layer_weight
finally:
    if _before is None:
        del os.environ[_SWITCH]

__all__ = [
    "SDNQConfig",
    "SDNQLayer",
    "pack_int",
    "prepare_svd_for_matmul",
    "sdnq_quantize_layer",
    "sdnq_quantize_layer_weight",
    "unpack_int",
]
