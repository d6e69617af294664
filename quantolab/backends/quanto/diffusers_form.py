"""What plain Diffusers makes of a saved folder: whether it can load it, and what to tell it.

Diffusers rebuilds the layers before it reads their weights, from ``modules_to_not_convert``
alone, which it compares with leaf names. Where that gives other layers than the file holds it
loads garbage without a word. So a folder that the rule can't express is marked in a way that
makes Diffusers refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..forms import MARK, DiffusersForm

_TRANSFORMERS_MARK = "(saved by quantolab: load it with quantolab.load_saved)"


def diffusers_form(
    module: torch.nn.Module, quantized: dict[str, str], kept: Iterable[str], library: str
) -> DiffusersForm:
    """Return how plain Diffusers can be told what is quantized, or why it can't.

    Parameters
    ----------
    module : torch.nn.Module
        The component, quantized or not; only its class's own rules are looked at.
    quantized : dict
        Weights dtype of each quantized layer by its path.
    kept : iterable of str
        Paths of the Linear layers that aren't quantized.
    library : str
        ``"diffusers"`` or ``"transformers"``.
    """
    if not quantized:
        return DiffusersForm(True, "", None)
    kept = sorted(kept)
    kinds = sorted(set(quantized.values()))
    weights = kinds[0] if len(kinds) == 1 else "mixed"
    if library != "diffusers":
        # transformers loads Quanto weights as if they were missing, with a log line only; an
        # unknown method it skips likewise. A dtype it doesn't know is an error.
        config = {
            "quant_method": "quanto",
            "weights": f"{weights} {_TRANSFORMERS_MARK}",
            "weights_dtype": weights,
            "modules_to_not_convert": kept,
        }
        reason = (
            "it is a transformers model, and transformers can't load Quanto weights that were "
            "saved (its from_pretrained raises ValueError); quantolab.load_saved can"
        )
        return DiffusersForm(False, reason, config)
    reason = _inexpressible(module, quantized, kept, kinds)
    if reason:
        config = {
            "quant_method": MARK,
            "weights_dtype": weights,
            "modules_to_not_convert": kept,
        }
        reason += (
            " (its from_pretrained raises ValueError: unknown quantization type "
            f"'{MARK}'); quantolab.load_saved can"
        )
        return DiffusersForm(False, reason, config)
    config = {
        "quant_method": "quanto",
        "weights_dtype": weights,
        "modules_to_not_convert": sorted({_leaf(path) for path in kept}) or None,
    }
    return DiffusersForm(True, _heed(quantized, module), config)


def _inexpressible(module, quantized: dict[str, str], kept: list[str], kinds: list[str]) -> str:
    if len(kinds) > 1:
        return f"Diffusers knows one weights dtype a model, and this one has {' and '.join(kinds)}"
    modules = dict(module.named_modules(remove_duplicate=False))
    linear = {p for p in quantized if isinstance(modules[p], torch.nn.Linear)}
    if other := sorted(quantized.keys() - linear):
        return f"Diffusers quantizes Linear layers only, and {other[0]!r} isn't one"
    if "" in quantized:
        return "the module itself is one Linear layer, and Diffusers looks at children only"
    by_leaf: dict[str, str] = {_leaf(path): path for path in sorted(quantized, reverse=True)}
    for path in kept:
        if _leaf(path) in by_leaf:
            return (
                f"Diffusers skips layers by leaf name only, and {path!r} is kept while "
                f"{by_leaf[_leaf(path)]!r}, of the same leaf name, is quantized"
            )
    for name in getattr(module, "_keep_in_fp32_modules", None) or ():
        if name in by_leaf:
            return (
                f"Diffusers keeps every layer named {name!r} in float32, and {by_leaf[name]!r} "
                "is quantized"
            )
    return ""


def _heed(quantized: dict[str, str], module: torch.nn.Module) -> str:
    if "int4" in quantized.values():
        return (
            "in bfloat16, plain Diffusers computes int4 with Quanto's generic class and not with "
            "TinyGemm as freshly quantized: same weights, outputs differ slightly (after "
            "model.to(device) it is TinyGemm again, and they are equal)"
        )
    if "int8" in quantized.values():
        widths = {path: module.get_submodule(path).in_features for path in quantized}
        crashing = sorted(p for p, width in widths.items() if width % 4 == 0 and width % 16)
        if crashing:
            return (
                f"{len(crashing)} int8 layers, {crashing[0]!r} for one, have rows that aren't in "
                "steps of 16: in bfloat16 on a CPU, plain Quanto crashes in them, saved or not"
            )
    return ""


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
