"""The one place that imports bitsandbytes, without its line about a kernel on the Hub."""

from __future__ import annotations

import os

from ...quietly import quiet_imports

_OFFLINE = "HF_HUB_OFFLINE"  # or it asks the Hub for a kernel, of a publisher nobody named

_before = os.environ.get(_OFFLINE)
os.environ[_OFFLINE] = "1"
try:
    with quiet_imports():
        from bitsandbytes.functional import (
            QuantState,
            dequantize_4bit,
            get_4bit_type,
            int8_vectorwise_quant,
            quantize_4bit,
        )
finally:
    if _before is None:
        del os.environ[_OFFLINE]
    else:
        os.environ[_OFFLINE] = _before

__all__ = [
    "QuantState",
    "dequantize_4bit",
    "get_4bit_type",
    "int8_vectorwise_quant",
    "quantize_4bit",
]
