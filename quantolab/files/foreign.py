"""Weights that somebody has quantized already: cast as if they weren't, they would be noise.

One table of kinds and one sentence for all doors. Names and types of tensors count as well as what
a configuration says, since that may be silent. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BrokenModelError

_QUANTO = (".weight._data", ".weight._scale", ".weight._data._data")
WRITTEN_HERE = ("quanto", "quantolab")
"""What configurations call quantization that `load_saved` reads."""


class ForeignModelError(BrokenModelError):
    """A model that is quantized already where an unquantized one is needed."""


@dataclass(frozen=True)
class Kind:
    """One kind of quantization that others write, and how it shows."""

    name: str
    methods: tuple[str, ...] = ()
    """What a configuration calls it (``quant_method``)."""
    endings: tuple[str, ...] = ()
    """How names of tensors end that it alone writes."""
    packages: tuple[str, ...] = ()
    """Part of the name of the module in which its classes of weights and layers are."""


# Sources: the libraries' own state dicts and configurations, and ComfyUI's loader. The first that
# fits is named: ComfyUI's files also hold the names of the formats that they wrap.
KINDS = (
    Kind("ComfyUI (comfy_quant)", (), (".comfy_quant",)),
    Kind("ComfyUI (scaled float8)", (), (".scale_weight", ".scale_input", "scaled_fp8")),
    Kind(
        "bitsandbytes",
        ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
        (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB"),
        ("bitsandbytes",),
    ),
    Kind(
        "modelopt (nvfp4)",
        ("modelopt", "nvfp4", "NVFP4"),
        (".weight_scale_2", "_quantizer._amax", "_quantizer._scale"),
        ("modelopt",),
    ),
    Kind("GGUF", ("gguf",), (), ("gguf",)),
    Kind("SDNQ", ("sdnq", "sdnq_training"), (".svd_up", ".svd_down"), ("sdnq",)),
    Kind("torchao", ("torchao",), ("_weight_qdata", "_weight_scale_and_zero"), ("torchao",)),
    Kind("GPTQ or AWQ", ("gptq", "awq", "auto-round"), (".qweight", ".qzeros"), ("gptqmodel",)),
    Kind("Nunchaku (SVDQuant)", ("svdquant", "nunchaku"), (".wscales", ".smooth_factor")),
    Kind("float8 in blocks", ("fp8", "fbgemm_fp8"), (".weight_scale_inv",)),
    Kind("compressed-tensors", ("compressed-tensors",), (".weight_packed",)),
)

_READ = ("SDNQ", "torchao")

_WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

_SMALL = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")


def check_plain(where: Path | str, dtypes: Mapping[str, Any]) -> None:
    """Refuse tensors that are quantized.

    Parameters
    ----------
    where : Path or str
        The file or folder that they are in.
    dtypes : mapping of str to torch.dtype
        Type of each tensor by its name: the component's own, no other's that shares its file.

    Raises
    ------
    ForeignModelError
        With the kind, where that is known, and the tensor that tells.
    """
    if own := next((name for name in dtypes if name.endswith(_QUANTO)), None):
        raise ForeignModelError(
            f"{where} is quantized by Quanto already ({own!r}); load_saved reads its folder"
        )
    check_foreign(where, dtypes)
    for name, dtype in dtypes.items():
        word = str(dtype).removeprefix("torch.")
        if word in _WHOLE and name.endswith((".weight", ".bias")):
            raise ForeignModelError(
                f"{where} is quantized already: {name!r} is stored as {word}; unquantized weights "
                "were expected"
            )


def check_foreign(where: Path | str, dtypes: Mapping[str, Any]) -> None:
    """Refuse tensors that others than Quanto have quantized; see `check_plain`."""
    for kind in KINDS:
        for name in dtypes:
            of_bits = kind.name == "bitsandbytes" and ".quant_state." in name
            if of_bits or (kind.endings and name.endswith(kind.endings)):
                raise foreign(where, kind.name, repr(name))
    _check_scales(where, dtypes)


def _check_scales(where: Path | str, dtypes: Mapping[str, Any]) -> None:
    scaled = {
        name.rpartition(".")[0]: name
        for name in dtypes
        if any(word in name.rpartition(".")[2] for word in ("scale", "amax"))
    }
    for name, dtype in dtypes.items():
        # A scale stands beside its weight, or under the weight's own name.
        scale = scaled.get(name.rpartition(".")[0], name)
        scale = scaled.get(name, name) if scale == name else scale
        word = str(dtype).removeprefix("torch.")
        if word in _SMALL and scale != name:
            raise ForeignModelError(
                f"{where} is quantized already: {name!r} is {word} and has a scale "
                f"({scale!r}), without which it means nothing; unquantized weights, or "
                "ones plainly cast to float8, were expected"
            )


def check_config(where: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse a model whose configuration says that it is quantized.

    Raises
    ------
    ForeignModelError
        With the method that it names.
    """
    method = method_in(where, config)
    if method in WRITTEN_HERE:
        raise ForeignModelError(
            f"{where} is quantized already, with {method!r}; load_saved reads it"
        )
    if method is not None:
        raise foreign_method(where, method)


def method_in(where: Path | str, config: Mapping[str, Any]) -> str | None:
    """Return by which method a configuration says that its model is quantized, if it does.

    Raises
    ------
    BrokenModelError
        If what it says is no object.
    """
    said = config.get("quantization_config")
    if not said:
        return None
    if hasattr(said, "to_dict"):
        said = said.to_dict()  # of a model in memory
    if not isinstance(said, Mapping):
        raise BrokenModelError(f"{where} has a 'quantization_config' that is no object: {said!r}")
    method = said.get("quant_method")
    return str(getattr(method, "value", method))


def foreign_method(where: Path | str, method: str) -> ForeignModelError:
    """Return the error for a model that is quantized by a method that others have."""
    known = (kind.name for kind in KINDS if method in kind.methods)
    return foreign(where, next(known, repr(method)), "its configuration says so")


def check_classes(where: str, classes: Mapping[str, type]) -> None:
    """Refuse layers or weights in memory whose classes belong to another library's quantization.

    Parameters
    ----------
    where : str
        The model.
    classes : mapping of str to type
        Classes of layers and weights by their names.

    Raises
    ------
    ForeignModelError
        With the kind and the name.
    """
    for name, cls in classes.items():
        parts = cls.__module__.split(".")
        for kind in KINDS:
            if any(package in parts for package in kind.packages):
                raise foreign(where, kind.name, f"{name!r} is a {cls.__name__}")


def foreign(where: Path | str, kind: str, sign: str) -> ForeignModelError:
    """Return the one error for whatever others have quantized.

    Parameters
    ----------
    where : Path or str
        The file, folder or model.
    kind : str
        Who quantized it.
    sign : str
        What tells so.
    """
    if kind in _READ:
        unread = "in a form that load_saved alone reads, where weights words describe it"
    else:
        unread = "with scales that quantolab doesn't read"
    return ForeignModelError(
        f"{where} is quantized already, by {kind} ({sign}), {unread}: the unquantized model that "
        "it was made from is needed"
    )
