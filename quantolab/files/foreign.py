"""Weights that somebody has quantized already: cast as if they weren't, they would be noise.

One rule for every door, by the names and types of tensors, since configurations may be silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import BrokenModelError

_QUANTO = (".weight._data", ".weight._scale", ".weight._data._data")

# How names of tensors end that only one kind of quantization writes. Sources: the libraries' own
# state dicts, and ComfyUI's loader for the last two.
_BY_ENDING = {
    "bitsandbytes": (".absmax", ".quant_map", ".SCB"),
    "GPTQ or AWQ": (".qweight", ".qzeros"),
    "modelopt (nvfp4)": (".weight_scale_2",),
    "ComfyUI (scaled float8)": (".scale_weight", ".scale_input", "scaled_fp8"),
    "ComfyUI (comfy_quant)": (".comfy_quant",),
}
_SMALL = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


def check_plain(where: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse tensors that are quantized.

    Parameters
    ----------
    where : Path
        The file or folder that they are in.
    dtypes : mapping of str to torch.dtype
        Type of each tensor by its name: the component's own, no other's that shares its file.

    Raises
    ------
    BrokenModelError
        With the kind, where that is known, and the tensor that tells.
    """
    for name in dtypes:
        if name.endswith(_QUANTO):
            raise BrokenModelError(
                f"{where} is quantized by Quanto already ({name!r}); load_saved reads its folder"
            )
        if ".quant_state." in name:
            raise _foreign(where, "bitsandbytes", name)
        for kind, endings in _BY_ENDING.items():
            if name.endswith(endings):
                raise _foreign(where, kind, name)
    scaled = {
        name.rpartition(".")[0]: name for name in dtypes if "scale" in name.rpartition(".")[2]
    }
    for name, dtype in dtypes.items():
        owner = name.rpartition(".")[0]
        if dtype in _SMALL and owner in scaled and scaled[owner] != name:
            raise BrokenModelError(
                f"{where} is quantized already: {name!r} is {str(dtype).removeprefix('torch.')} "
                f"and has a scale ({scaled[owner]!r}), without which it means nothing; "
                "unquantized weights, or ones plainly cast to float8, were expected"
            )


def check_config(where: Path, config: Mapping[str, object]) -> None:
    """Refuse a model whose configuration says that it is quantized.

    Raises
    ------
    BrokenModelError
        With the method that it names.
    """
    said = config.get("quantization_config")
    if not said:
        return
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    if method in ("quanto", "quantolab"):
        hint = "load_saved reads it"
    else:
        hint = "an unquantized model was expected"
    raise BrokenModelError(f"{where} is quantized already, with {method!r}; {hint}")


def _foreign(where: Path, kind: str, name: str) -> BrokenModelError:
    return BrokenModelError(
        f"{where} is quantized already, by {kind} ({name!r}): without its scales it means "
        "nothing; unquantized weights were expected"
    )
