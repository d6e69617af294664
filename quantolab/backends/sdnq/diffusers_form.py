"""What plain Diffusers makes of a saved folder, and what to tell it: SDNQ's own configuration.

SDNQ compares full names of weights, and takes options for each: which layers are quantized, and
how, can always be said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from ...weights import weights_of
from .. import t5
from ..forms import DiffusersForm
from .library import SDNQConfig
from .settings import NO_SKIPS, settings

_ROUNDED = (
    "plain Diffusers rounds SDNQ's scales, which are float32, to the compute dtype when it loads "
    "them: its weights then differ from those saved by up to 0.4 %; load_saved doesn't"
)
_CAST = (
    "the T5 of transformers casts what it multiplies to the dtype of the weight of wo, so that "
    "without quantolab it fails: sdnq:int8 or none for *.wo runs there too; load_saved cures it"
)
_REGISTER = (
    "transformers knows SDNQ only once it was imported (import sdnq): without that it loads the "
    "weights as if they were missing, with a log line only; load_saved doesn't"
)


def diffusers_form(
    module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str], library: str
) -> DiffusersForm:
    """Return how plain Diffusers can be told what is quantized; arguments as for every backend."""
    base = Counter(quantized.values()).most_common(1)[0][0]
    config = SDNQConfig(
        **settings(base),
        **NO_SKIPS,
        modules_to_not_convert=sorted(f"{path}.weight" for path in kept),
        modules_quant_config={
            f"{path}.weight": settings(word) for path, word in quantized.items() if word != base
        },
    ).to_dict()
    config["modules_to_not_convert"] = sorted(config["modules_to_not_convert"])
    method = config["quant_method"]
    config["quant_method"] = str(getattr(method, "value", method))
    if library == "diffusers":
        reason = _rounded(module, quantized)
    else:
        cast = any(t5.is_cast_to(p) and weights_of(w).name != "int8" for p, w in quantized.items())
        reason = f"{_REGISTER}; {_CAST}" if cast else _REGISTER
    return DiffusersForm(True, reason, config)


def _rounded(module: torch.nn.Module, quantized: dict[str, str]) -> str:
    """Return what to heed where any scale isn't a number of the compute dtype."""
    for path in quantized:
        part = module.get_submodule(path)
        if not hasattr(part, "sdnq_dequantizer"):
            return _ROUNDED  # an unquantized model: nothing is known of its scales
        dtype = part.sdnq_dequantizer.result_dtype
        for value in (part.scale, part.zero_point):
            if value is None or value.is_meta:
                continue
            if not torch.equal(value.detach().to(dtype).to(value.dtype), value.detach()):
                return _ROUNDED
    return ""
