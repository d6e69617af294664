"""A word for each layer becomes a short recipe: a word for all, and few patterns for the others.

The way back from `resolving`: what it makes of the recipe is exactly the words that went in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..recipes import Recipe
from ..shapes import Layer
from ..weights import REFERENCE, in_order
from .layers import match_layers


def recipe_of_words(
    words: Mapping[str, str], component: str | None = None, name: str | None = None
) -> Recipe:
    """Return a short recipe that gives each Linear layer of a component its word.

    Parameters
    ----------
    words : mapping of str to str
        Weights word of every layer by its path, ``"none"`` for those that stay as they are.
    component : str, optional
        Its name, where the recipe has to say it.
    name : str, optional
        What the recipe is called.

    Examples
    --------
    >>> print(recipe_of_words({"blocks.0.q": "int4", "blocks.1.q": "int4", "out": "none"}))
    int4 [o]ut=none
    """
    if set(words.values()) <= {REFERENCE}:
        return Recipe(REFERENCE, name=name)
    ways = (_by_leaf(words), _by_kind(words), _by_path(words))
    right = (found for found in ways if _means(*found, words))
    base, terms = min(right, key=lambda found: len(found[1]))
    if component is None and base == REFERENCE:
        component_words: str | dict[str, str] = REFERENCE
    else:
        component_words = base if component is None else {component: base}
    patterns = list(terms.items())
    last = len(patterns)
    while last and patterns[last - 1][1] == REFERENCE:
        last -= 1
    kept = tuple(pattern for pattern, _ in patterns[last:])
    return Recipe(component_words, skip=kept, layers=dict(patterns[:last]), name=name)


def recipe_of_components(words: Mapping[str, Mapping[str, str]], name: str | None = None) -> Recipe:
    """Return the recipe of several components, from the words of each one's layers."""
    weights: dict[str, str] = {}
    layers: dict[str, str] = {}
    for component, own in words.items():
        recipe = recipe_of_words(own, component)
        if recipe.is_reference:
            continue
        first, *terms = recipe.terms if recipe.terms[0].name == component else (None, *recipe.terms)
        weights[component] = first.word if first is not None else REFERENCE
        layers |= {f"{component}.{term.name}": term.word for term in terms}
    if not weights:
        return Recipe(REFERENCE, name=name)
    return Recipe(weights, layers=layers, name=name)


def exact_pattern(path: str, paths: Iterable[str]) -> str:
    """Return a pattern that means one of some paths, and no leaf of that name elsewhere.

    FLUX has a ``proj_out`` at the top and one in every single block: ``[p]roj_out`` means the
    first alone.
    """
    is_leaf = any(other.endswith("." + path) for other in paths)
    return f"[{path[0]}]{path[1:]}" if is_leaf else path


def _means(base: str, terms: Mapping[str, str], words: Mapping[str, str]) -> bool:
    """Whether a word for all and terms mean exactly these words."""
    layers = [Layer(path, 1, 1, False) for path in words]
    found = dict.fromkeys(words, base)
    for pattern, word in terms.items():
        hit = match_layers((pattern,), layers)
        if not hit:
            return False
        found |= dict.fromkeys(hit, word)
    return found == dict(words)


def _by_path(words: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the fewest terms of whole paths and containers."""
    base, terms = _tree(words).labelled()
    return base, {exact_pattern(path, words): word for path, word in terms}


def _by_kind(words: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return terms for kinds of layers first, ``blocks.*.attn.to_q``, then for their exceptions."""
    votes: dict[str, Counter[str]] = {}
    for path, word in words.items():
        votes.setdefault(_kind(path), Counter())[word] += 1
    kinds = {kind: _most(count) for kind, count in votes.items()}
    base, terms = _tree(kinds).labelled()
    found = {exact_pattern(kind, words): word for kind, word in terms}
    found |= {
        exact_pattern(path, words): word
        for path, word in words.items()
        if word != kinds[_kind(path)]
    }
    return base, found


def _by_leaf(words: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return terms for leaf names, ``proj_out``, then for their exceptions."""
    votes: dict[str, Counter[str]] = {}
    for path, word in words.items():
        votes.setdefault(_leaf(path), Counter())[word] += 1
    leaves = {leaf: _most(count) for leaf, count in votes.items()}
    base = _most(Counter(words.values()))
    found = {leaf: word for leaf, word in leaves.items() if word != base}
    found |= {
        exact_pattern(path, words): word
        for path, word in words.items()
        if word != leaves[_leaf(path)]
    }
    return base, found


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _kind(path: str) -> str:
    return re.sub(r"\b\d+\b", "*", path)


def _most(count: Counter[str]) -> str:
    return max(in_order(count), key=lambda word: count[word])  # of equals the most precise


@dataclass
class _Node:
    """A module: what labelling it costs, and its children."""

    path: str = ""
    word: str | None = None
    """A layer's; None for containers."""
    children: dict[str, _Node] = field(default_factory=dict)

    def costs(self, options: Iterable[str]) -> dict[str, int]:
        """Return how many terms are needed below if everything here has a word already."""
        if self.word is not None:
            return {word: int(word != self.word) for word in options}
        below = [child.best(options) for child in self.children.values()]
        return {word: sum(costs[word] for costs in below) for word in options}

    def best(self, options: Iterable[str]) -> dict[str, int]:
        """Return the same if the node itself may have a term."""
        costs = self.costs(options)
        self.own = min(costs, key=lambda word: costs[word])
        least = costs[self.own] + 1
        self.chosen = {word: word if costs[word] < least else self.own for word in options}
        return {word: min(costs[word], least) for word in options}

    def labelled(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the word for all, and terms for containers and layers, outer ones first."""
        options = in_order(self._words())
        costs = self.costs(options)
        base = min(options, key=lambda word: (costs[word], word == REFERENCE))
        terms: list[tuple[str, str]] = []
        for child in self.children.values():
            child._label(base, terms)
        return base, terms

    def _label(self, inherited: str, terms: list[tuple[str, str]]) -> None:
        if self.word is not None:
            word = self.word
        else:
            word = self.chosen[inherited]
        if word != inherited:
            terms.append((self.path, word))
        for child in self.children.values():
            child._label(word, terms)

    def _words(self) -> Iterable[str]:
        if self.word is not None:
            yield self.word
        for child in self.children.values():
            yield from child._words()


def _tree(words: Mapping[str, str]) -> _Node:
    root = _Node()
    for path, word in words.items():
        node, parts = root, path.split(".")
        for depth, part in enumerate(parts):
            child = _Node(".".join(parts[: depth + 1]))
            node = node.children.setdefault(part, child)
        node.word = word
    return root
