"""Layers times a recipe: which layer gets which weights word, and why. Shapes only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ArgumentError, UnsupportedError
from ..recipes import Recipe, Term
from ..shapes import Layer
from ..units import format_list
from ..weights import HOME, REFERENCE, backends_of
from .layers import (
    KEEP_ADAPTER,
    KEEP_FP32,
    belongs_to_adapter,
    kept_in_float32,
    linear_layers,
    match_layers,
    no_match,
)

if TYPE_CHECKING:
    import torch

    from .source import Source

_UNSAID = "the recipe says nothing of it"


@dataclass(frozen=True)
class Choice:
    """What a recipe means for one layer."""

    layer: Layer
    word: str
    """Weights word; ``"none"`` keeps the weight as it is."""
    why: str = ""
    """Why it is kept, where not the whole component is."""
    term: str = ""
    """What of the recipe gave it its word: the word for all, a term, or the model itself."""


@dataclass(frozen=True)
class Resolved:
    """What a recipe means for a component: a word for each of its Linear layers, in its order."""

    choices: tuple[Choice, ...]

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every Linear layer."""
        return tuple(choice.layer for choice in self.choices)

    @property
    def quantized(self) -> tuple[Choice, ...]:
        """Those that get another word than ``"none"``."""
        return tuple(choice for choice in self.choices if choice.word != REFERENCE)

    @property
    def words(self) -> dict[str, str]:
        """Weights word of each quantized layer by its path."""
        return {choice.layer.path: choice.word for choice in self.quantized}

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """(path, why) of the layers that stay unquantized while others are."""
        return tuple((choice.layer.path, choice.why) for choice in self.choices if choice.why)


@dataclass(frozen=True)
class Share:
    """What a recipe says of one component."""

    recipe: Recipe
    component: str
    """Its name; empty for a module in memory, which has none."""
    word: str
    """Of the layers that no term hits."""
    source: str = ""
    """What of the recipe gave that word."""
    terms: tuple[Term, ...] = ()
    """Those that are meant for it, in order; later ones win. A component's own name among them
    stands for all of its layers."""

    @property
    def is_reference(self) -> bool:
        """Whether nothing of the component is quantized."""
        return {self.word, *(term.word for term in self.terms)} == {REFERENCE}


def shares_of(recipe: Recipe, names: Iterable[str], defaults: Iterable[str]) -> dict[str, Share]:
    """Return what a recipe says of each component of a model, by name; those it quantizes alone.

    Parameters
    ----------
    recipe : Recipe
        Whose names aren't checked.
    names : iterable of str
        The model's components.
    defaults : iterable of str
        Those that the word for all is meant for: the denoisers.
    """
    names, defaults = tuple(names), tuple(defaults)
    words = dict.fromkeys(names, REFERENCE)
    if recipe.base is not None:
        words |= dict.fromkeys(defaults, recipe.base)
    words |= {term.name: term.word for term in recipe.terms if term.name in words}
    mine = [name for name, word in words.items() if word != REFERENCE]
    if not mine:  # only layers have words: of the components that are named, or of the denoisers
        mine = [term.name for term in recipe.terms if term.name in words] or list(defaults)
    shares = {name: _share(recipe, name, names, name in mine, defaults) for name in names}
    return {name: share for name, share in shares.items() if not share.is_reference}


def _share(
    recipe: Recipe,
    component: str,
    names: tuple[str, ...],
    is_mine: bool,
    defaults: tuple[str, ...],
) -> Share:
    """Return the terms that are meant for one component."""
    has_base = recipe.base is not None and component in defaults
    word, source = (recipe.base or REFERENCE, recipe.base or "") if has_base else (REFERENCE, "")
    terms = []
    for term in recipe.terms:
        owner = next((n for n in names if term.name == n or term.name.startswith(n + ".")), None)
        if owner == component or (owner is None and is_mine):
            terms.append(term)
    return Share(recipe, component, word, source, tuple(terms))


def components_of(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """Return the names of the components that a recipe quantizes in a model.

    Raises
    ------
    ArgumentError
        If it names one that the model hasn't.
    """
    return tuple(shares_in(recipe, source))


def shares_in(recipe: Recipe, source: Source) -> dict[str, Share]:
    """Return what a recipe says of each component that it quantizes in a model, by name.

    Raises
    ------
    ArgumentError
        If it names a component that the model hasn't.
    """
    own = recipe.components if isinstance(recipe.weights, str) else tuple(recipe.weights)
    for name in own:
        source.component(name)
    names = tuple(dict.fromkeys((*source.denoisers, *(c.name for c in source.components))))
    names_some = recipe.base is None and any(term.name in names for term in recipe.terms)
    # Whether one is known to denoise matters only where none is named.
    none = recipe.is_reference or names_some
    return shares_of(recipe, names, () if none else source.default_components)


def share_of(recipe: Recipe, source: Source, component: str) -> Share:
    """Return what a recipe says of one component of a model that is asked for by name.

    A word for all is then meant for that one.

    Raises
    ------
    ArgumentError
        If the model hasn't that component, or the recipe quantizes others only.
    """
    source.component(component)
    if recipe.is_reference:
        return reference_share(component)
    mine = shares_in(recipe, source)
    if recipe.base is not None:
        mine = shares_of(recipe, (c.name for c in source.components), (component,))
    if component not in mine:
        raise _leaves(recipe, component, mine)
    return mine[component]


def share_of_module(recipe: Recipe, component: str | None = None) -> Share:
    """Return what a recipe says of a module in memory, which may be any component.

    Parameters
    ----------
    recipe : Recipe
        Where it names several components they must have one word, unless one of them is meant.
    component : str or None
        The one that the module is.

    Raises
    ------
    ArgumentError
        If the recipe has other words for other components, or none for the one that is meant.
    """
    names = recipe.named_components
    if component is not None:
        shares = shares_of(recipe, dict.fromkeys((component, *names)), (component,))
        if component not in shares and not recipe.is_reference:
            raise _leaves(recipe, component, shares)
        return shares.get(component) or reference_share(component)
    words = {term.word for term in recipe.terms if term.name in names}
    if not words:
        return Share(recipe, "", recipe.base or REFERENCE, recipe.base or "", recipe.terms)
    if recipe.base is not None or len(words) > 1:
        raise ArgumentError(
            f"the recipe '{recipe}' has a word of its own for {format_list(names)}: which "
            "component the module is must be said, component='transformer' for example"
        )
    terms = tuple(term for term in recipe.terms if term.name not in names)
    only = names[0] if len(names) == 1 else ""
    return Share(recipe, only, words.pop(), str(recipe), terms)


def reference_share(component: str) -> Share:
    """Return the share of a component of which nothing is quantized."""
    return Share(Recipe(REFERENCE), component, REFERENCE, REFERENCE)


def _leaves(recipe: Recipe, component: str, others: Iterable[str]) -> ArgumentError:
    listed = format_list(list(others) or ["nothing"])
    return ArgumentError(
        f"the recipe '{recipe}' leaves {component} as it is: it quantizes {listed}"
    )


def as_share(recipe: Recipe | Share, component: str = "") -> Share:
    """Return what is said of one component; a recipe by itself is meant for that one."""
    if isinstance(recipe, Share):
        return recipe
    return share_of_module(recipe, component or None)


def resolve(
    module: torch.nn.Module,
    recipe: Recipe | Share,
    component: str = "",
    dtype: str = "bfloat16",
    *,
    strict: bool = True,
) -> Resolved:
    """Return the weights word of each Linear layer of a component under a recipe.

    Parameters
    ----------
    module : torch.nn.Module
        The component, on any device; its weights aren't looked at.
    recipe : Recipe or Share
        For one of several components its share.
    component : str
        The component's name, which patterns may begin with; a share knows it.
    dtype : str
        Compute dtype: some models keep some layers in float32.
    strict : bool
        Whether each pattern must hit a layer here. Not so for one of several components, which
        `check_recipe` checks together.

    Raises
    ------
    ArgumentError
        If `strict` and a pattern hits nothing, or no layer is left to quantize.
    UnsupportedError
        If the recipe quantizes activations with other backends' words, or the component with
        several backends.
    """
    share = as_share(recipe, component)
    layers = linear_layers(module)
    found = resolve_layers(share, layers, _kept_by_itself(module, layers, dtype))
    _check_one_backend(share, found, module)
    if strict and not share.is_reference:
        name = share.component or type(module).__name__
        check_recipe(share.recipe, {name: (share, found)})
    return found


def resolve_layers(share: Share, layers: Iterable[Layer], own: Mapping[str, str]) -> Resolved:
    """Return the weights word of each of a component's layers, from their shapes alone.

    Parameters
    ----------
    share : Share
        What the recipe says of the component.
    layers : iterable of Layer
        Its Linear layers.
    own : mapping of str to str
        Why the model itself keeps some of them, by path.

    Raises
    ------
    ArgumentError, UnsupportedError
        If the recipe quantizes activations of unquantized layers, or of another backend's.
    """
    _check_activations(share.recipe)
    layers = tuple(layers)
    hits = _hits(share, layers)
    return Resolved(tuple(_choice(share, layer, hits, own.get(layer.path)) for layer in layers))


def _check_activations(recipe: Recipe) -> None:
    if recipe.activations is None:
        return
    if recipe.is_reference:
        raise ArgumentError(
            f"the recipe '{recipe}' quantizes activations of layers whose weights it keeps; "
            "activations are quantized with the weights of their layer"
        )
    if others := [b for b in backends_of(recipe.words) if b != HOME]:
        raise UnsupportedError(
            f"the recipe '{recipe}' quantizes activations, which only Quanto's words can, and it "
            f"has words of {others[0]}"
        )


def _kept_by_itself(module: torch.nn.Module, layers: Iterable[Layer], dtype: str) -> dict[str, str]:
    """Return why a model keeps some of its layers, whatever a recipe says, by path."""
    found = {}
    for layer in layers:
        if kept_in_float32(module, layer.path, dtype):
            found[layer.path] = KEEP_FP32
        elif belongs_to_adapter(layer.path):
            found[layer.path] = KEEP_ADAPTER
    return found


def _check_one_backend(share: Share, found: Resolved, module: torch.nn.Module) -> None:
    used = backends_of(found.words.values())
    if len(used) > 1:
        raise UnsupportedError(
            f"the recipe '{share.recipe}' quantizes {share.component or type(module).__name__} "
            f"with {format_list(list(used))}: a component is quantized by one backend"
        )


def check_recipe(recipe: Recipe, found: Mapping[str, tuple[Share, Resolved]]) -> None:
    """Make sure that all of a recipe takes effect in the components that it quantizes.

    Parameters
    ----------
    recipe : Recipe
        Whose terms are looked at, in their order.
    found : mapping of str to (Share, Resolved)
        What it says of each component, and what that means for its layers.

    Raises
    ------
    ArgumentError
        For the first term that hits no layer, with the nearest leaf names, paths and containers,
        or only layers that can't have its word; or if no layer is left to quantize.
    """
    if recipe.is_reference:
        return
    for term in recipe.terms:
        mine = {name: pair for name, pair in found.items() if term in pair[0].terms}
        if mine:  # else it is meant for a component that isn't quantized, or isn't looked at
            _check_term(term, recipe, mine)
    if not any(resolved.quantized for _, resolved in found.values()):
        count = sum(len(resolved.layers) for _, resolved in found.values())
        raise ArgumentError(
            f"{format_list(list(found))} has {count} Linear layers and the recipe '{recipe}' keeps "
            "all of them: nothing to quantize"
        )


def _check_term(term: Term, recipe: Recipe, mine: Mapping[str, tuple[Share, Resolved]]) -> None:
    """Make sure that a term takes effect in the components that it is meant for."""
    hit = [
        choice
        for share, resolved in mine.values()
        for paths in [_hit_by(term, share, resolved.layers)]
        for choice in resolved
        if choice.layer.path in paths
    ]
    if not hit:
        what = "skip pattern" if term.word == REFERENCE else f"'{term}' in '{recipe}': pattern"
        layers = {name: resolved.layers for name, (_, resolved) in mine.items()}
        raise no_match(term.name, layers, what=what, components=recipe.named_components)
    own = [choice for choice in hit if choice.why in (KEEP_FP32, KEEP_ADAPTER)]
    if term.word != REFERENCE and len(own) == len(hit):
        raise ArgumentError(
            f"'{term}' in the recipe '{recipe}' can't take effect: of the layers that it hits all "
            f"stay unquantized, {hit[0].layer.path!r} for one since {hit[0].why}"
        )


def _hit_by(term: Term, share: Share, layers: tuple[Layer, ...]) -> Mapping[str, str]:
    """Return the layers of a component that a term hits."""
    if term.name == share.component:
        return {layer.path: term.name for layer in layers}
    return match_layers((term.name,), layers, share.component)


def _hits(share: Share, layers: tuple[Layer, ...]) -> dict[str, Term]:
    """Return the last term that hits each layer."""
    found: dict[str, Term] = {}
    for term in share.terms:
        found |= dict.fromkeys(_hit_by(term, share, layers), term)
    return found


def _choice(share: Share, layer: Layer, hits: Mapping[str, Term], own: str | None) -> Choice:
    if own is not None:
        return Choice(layer, REFERENCE, own, own)
    term = hits.get(layer.path)
    if term is None:
        return Choice(layer, share.word, _UNSAID if _stays(share) else "", share.source)
    why = f"skip {term.name!r}" if term.word == REFERENCE else ""
    return Choice(layer, term.word, why, str(term))


def _stays(share: Share) -> bool:
    """Whether layers that no term hits are kept while others are quantized."""
    return share.word == REFERENCE and not share.is_reference
