"""What a cell's run shows: works, misleads, or not; measured, with the figures in the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from ..backends import quantized_layers
from ..units import format_percent, format_places
from ..weights import place_of, weights_of

WORKS, FAILS, MISLEADS, UNSUPPORTED = "works", "fails", "misleads", "unsupported"
OUTCOMES = (WORKS, FAILS, MISLEADS, UNSUPPORTED)

COMPILED_ALLOWANCE = 3.0
"""How many times further than the unquantized model a compiled one may move from eager. Compiling
alone moves bfloat16 by some per cent, since fused operations round less often."""

_UNRELATED = 0.995  # relative; outputs that have nothing in common differ by 1 or more

_ROUNDING = 1e-5  # relative; what reordered float32 sums may move


@dataclass(frozen=True)
class Finding:
    """The verdict on one cell."""

    outcome: str
    reason: str


def difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the reference; NaN stays NaN."""
    gap = (output.double() - reference.double()).norm() / reference.double().norm()
    return gap.item()


def judge_quantized(
    module: torch.nn.Module,
    weights: str | Mapping[str, str],
    output: torch.Tensor,
    reference: torch.Tensor,
    *,
    paths: Iterable[str],
    keep: Collection[str] = (),
) -> Finding:
    """Judge a model that should be quantized: the right layers, and a sensible output.

    Parameters
    ----------
    module : torch.nn.Module
        As it was loaded.
    weights : str or mapping of str to str
        The dtype that was asked for, or that of each layer by its path.
    output, reference : torch.Tensor
        Its output, and the unquantized model's.
    paths : iterable of str
        All of its Linear layers.
    keep : collection of str
        Those that were to stay unquantized.
    """
    each = dict.fromkeys(paths, weights) if isinstance(weights, str) else weights
    wanted = {path: word for path, word in each.items() if path not in keep}
    found = quantized_layers(module)
    if keep and (quantized := sorted(set(keep) & found.keys())):
        which = "" if len(keep) == 1 else f"{len(quantized)} of {len(keep)} layers, "
        return Finding(
            MISLEADS, f"to be kept, yet quantized: {which}{quantized[0]!r}; nothing is said"
        )
    if missing := sorted(wanted.keys() - found.keys()):
        return Finding(
            MISLEADS, f"{len(missing)} of {len(wanted)} layers are not quantized; nothing is said"
        )
    if found.keys() != wanted.keys():
        return Finding(MISLEADS, f"other layers than asked for are quantized: {sorted(found)}")
    if other := [path for path in wanted if _kind(found[path]) != _kind(wanted[path])]:
        return Finding(MISLEADS, f"{other[0]!r} is {found[other[0]]}, not {wanted[other[0]]}")
    coarsest = max(set(wanted.values()), key=place_of)
    return _judge_near(coarsest, output, reference, f"{len(found)} layers quantized")


def _kind(word: str) -> tuple[str, str]:
    """Return what words have in common whose groups are the same in layers of few columns."""
    return weights_of(word).backend, weights_of(word).name


def judge_unread(module: torch.nn.Module, output: torch.Tensor, reference: torch.Tensor) -> Finding:
    """Judge a model whose quantized file was loaded: it must be quantized, and the same."""
    if not quantized_layers(module):
        gap = difference(output, reference)
        # What the memory happened to hold: no figure of it means anything.
        far = "1 or more, or not finite" if not gap < _UNRELATED else format_places(gap)
        return Finding(
            MISLEADS,
            "every layer comes back as an unquantized Linear with weights that were never read "
            f"(relative error of the output: {far}); a log line is all that says so",
        )
    return judge_same(output, reference)


def judge_same(
    output: torch.Tensor,
    saved: torch.Tensor,
    classes: dict[str, int] | None = None,
    now: dict[str, int] | None = None,
    moved: Callable[[], torch.Tensor] | None = None,
) -> Finding:
    """Judge a reloaded model: its output must be the saved one's, bit for bit.

    Parameters
    ----------
    output, saved : torch.Tensor
        Of the reloaded and of the saved model.
    classes, now : dict, optional
        Layers by class of weight, when saved and as reloaded: they decide which kernel runs.
    moved : callable, optional
        Gives the output after ``model.to(device)``, tried where the classes differ.
    """
    if output.dtype == saved.dtype and torch.equal(output, saved):
        return Finding(WORKS, "the output is the saved model's, bit for bit")
    if not torch.isfinite(output).all():
        return Finding(MISLEADS, "the output is not finite")
    gap = format_percent(difference(output, saved), 2, "")
    reason = f"the output differs from the saved model's by {gap}"
    if classes and classes != now:
        lost = Counter(classes) - Counter(now)
        name, count = lost.most_common(1)[0]
        reason += f": {count} layers no longer are {name}, so another kernel computes them"
        if moved and torch.equal(moved(), saved):
            reason += " (model.to(device) gives them back their class, and the saved output)"
    return Finding(MISLEADS, reason + "; nothing is said")


def judge_compiled(moved: float, reference_moved: float) -> Finding:
    """Judge a compiled model by how far it moved from eager, and how far the unquantized one did.

    Parameters
    ----------
    moved, reference_moved : float
        Relative differences between compiled and eager output.
    """
    limit = max(COMPILED_ALLOWANCE * reference_moved, _ROUNDING)
    figures = (
        f"compiled differs from eager by {format_percent(moved, 2, '')}, "
        f"unquantized by {format_percent(reference_moved, 2, '')}"
    )
    return Finding(WORKS if moved <= limit else MISLEADS, figures)


def weight_classes(module: torch.nn.Module) -> dict[str, int]:
    """Return how many layers have each class of quantized weight."""
    names = (type(module.get_submodule(p).weight).__name__ for p in quantized_layers(module))
    return dict(Counter(names))


def _judge_near(
    weights: str, output: torch.Tensor, reference: torch.Tensor, layers: str
) -> Finding:
    if not torch.isfinite(output).all():
        return Finding(MISLEADS, f"{layers}, but the output is not finite; nothing is said")
    gap = difference(output, reference)
    if gap > weights_of(weights).near:
        far = format_percent(gap, 0, "")
        return Finding(MISLEADS, f"{layers}, but the output is {far} away from the unquantized one")
    near = format_percent(gap, 1, "")
    return Finding(WORKS, f"{layers}, output {near} from the unquantized one")
