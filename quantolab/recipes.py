"""What is quantized and how, as a value: frozen, hashable, printed as text and read from it."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, NoReturn

from .errors import ArgumentError, UnsupportedError, one_of
from .plain_values import LATER
from .units import format_list
from .weights import (
    ACTIVATIONS,
    COMPUTE_BYTES,
    DEFAULT,
    REFERENCE,
    WORDS,
    in_order,
    known_word,
)

COMPUTE_DTYPES = tuple(COMPUTE_BYTES)

_ACTIVATIONS = "activations"

# What Diffusers' pipelines call their parts. It only decides how terms of a text are ordered and
# kept in fields: which name is a component and which a pattern is decided by the model itself.
_COMPONENT = re.compile(r"(transformer|unet|prior|text_encoder|image_encoder|controlnet)(_\d+)?")
_DENOISER = re.compile(r"(transformer|unet)(_\d+)?")

# Labels of 0.1.0: "int4, keeping a, b and c in transformer and text_encoder".
_EARLIER = re.compile(r"(?P<word>\S+?)(?:, keeping (?P<skip>.+?))?(?: in (?P<components>.+))?")


class Term(NamedTuple):
    """``NAME=WORD``: a component's or some layers' weights word."""

    name: str
    """A component, or a layer pattern."""
    word: str

    def __str__(self) -> str:
        return f"{self.name}={self.word}"


class Words(dict[str, str]):
    """A dictionary that can't be changed, so that what holds it can be hashed."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a recipe can't be changed; make another with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Words, (dict(self),))


@dataclass(frozen=True, eq=False, repr=False)
class Recipe:
    """One way to quantize a model.

    Parameters
    ----------
    weights : str or mapping of str to str
        Weights dtype: ``"float8"``, ``"int8"``, ``"int4"``, ``"int2"``, or ``"none"`` for
        unquantized weights; those of other backends carry their name, ``"sdnq:uint4-g128"`` or
        ``"torchao:int8"``. Or one for each of some components, ``{"transformer": "int8",
        "text_encoder_2": "int4"}``; all others then stay as they are.
    skip : tuple of str
        Patterns of Linear layers that keep their weights as they are. Each is a leaf name
        (``"proj_out"``, as Diffusers matches), a full module path, a container's path (all
        layers under it), or a glob. Short for `layers` that end with ``{pattern: "none"}``.
    components : tuple of str
        Names of the pipeline's parts to quantize, ``"transformer"`` or ``"text_encoder_2"``
        for example. Empty means those that `weights` names, or the denoiser alone.
    layers : mapping of str to str
        Weights dtypes of some layers, by pattern; where several hit one layer the last counts.
        A pattern is meant for every quantized component, ``"text_encoder_2.*.wo"`` for one; the
        bare name of a component means all of it.
    name : str, optional
        A short label for tables and grids. Recipes that differ in nothing else are equal.
    activations : str, optional
        ``"int8"`` or ``"float8"``, to quantize what flows through the layers too.

    Raises
    ------
    ArgumentError
        If a field holds something else.

    Examples
    --------
    >>> print(Recipe("int4", skip=("proj_out", "x_embedder")))
    int4 proj_out=none x_embedder=none
    >>> Recipe.parse("transformer=int8 text_encoder_2=int4")
    Recipe({'transformer': 'int8', 'text_encoder_2': 'int4'})
    """

    weights: str | Mapping[str, str] = DEFAULT
    skip: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    layers: Mapping[str, str] = field(default_factory=Words, metadata=LATER)
    name: str | None = field(default=None, metadata=LATER)
    activations: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        given = self.weights if isinstance(self.weights, str) else _mapping("weights", self.weights)
        if isinstance(given, str):
            if set(given) & set("= "):
                raise ArgumentError(
                    f"{given!r} is a recipe's text, not one word: Recipe.parse({given!r}) reads it"
                )
            known_word("weights dtype", given)
        object.__setattr__(self, "weights", given)
        object.__setattr__(self, "skip", _names("skip", self.skip))
        object.__setattr__(self, "components", _names("components", self.components))
        object.__setattr__(self, "layers", _mapping("layers", self.layers))
        if self.name is not None and not (isinstance(self.name, str) and self.name.strip()):
            raise ArgumentError(f"name must be a short text, not {self.name!r}")
        if self.activations is not None:
            one_of("activations dtype", self.activations, ACTIVATIONS)
        base, terms = self._meant()
        object.__setattr__(self, "_base", base)
        object.__setattr__(self, "_terms", terms)
        object.__setattr__(self, "_text", _text(base, terms, self.activations))

    def _meant(self) -> tuple[str | None, tuple[Term, ...]]:
        """Return the word for all, and all terms in their one order."""
        base: str | None = None
        if isinstance(self.weights, str) and not self.components:
            base, parts = self.weights, []
        elif isinstance(self.weights, str):
            parts = [Term(name, self.weights) for name in sorted(self.components)]
        else:
            parts = [Term(*item) for item in sorted(self.weights.items())]
            self._check_components()
        terms = [*parts, *map(Term._make, self.layers.items())]
        terms += [Term(pattern, REFERENCE) for pattern in self.skip]
        if all(term.word == REFERENCE for term in terms) and base in (None, REFERENCE):
            if self.skip or self.layers:
                what = "skip" if self.skip else "layers"
                raise ArgumentError(
                    "the unquantized reference (weights 'none') has nothing to skip, "
                    f"but {what} is {getattr(self, what)!r}"
                )
            return REFERENCE, ()
        return base, _ordered(terms)

    def _check_components(self) -> None:
        if not self.weights and not self.layers:
            raise ArgumentError("weights names no component, and layers no layer")
        if other := [name for name in self.components if name not in self.weights]:
            raise ArgumentError(
                f"components names {other[0]!r}, to which weights gives no word: it has words for "
                f"{format_list(list(self.weights)) or 'none'}"
            )

    def _repr_html_(self) -> str:
        said = f"<code>{html.escape(str(self))}</code>"
        return f"{html.escape(self.name)}: {said}" if self.name else said

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Return the recipe that a text means; ``str`` of a recipe is such a text.

        Parameters
        ----------
        text : str
            A word for all, then terms ``NAME=WORD`` in order, later ones win; NAME is a component
            or a layer pattern. Labels of 0.1.0 (``"int4, keeping proj_out"``) are read too.

        Raises
        ------
        ArgumentError
            If it means none.

        Examples
        --------
        >>> Recipe.parse("int4 *.attn.*=int8 proj_out=none")
        Recipe('int4', layers={'*.attn.*': 'int8', 'proj_out': 'none'})
        """
        if not isinstance(text, str) or not text.strip():
            raise ArgumentError(f"a recipe's text is a word and terms NAME=WORD, not {text!r}")
        if ", keeping " in text or " in " in text:
            return cls._parse_earlier(text)
        first, *rest = text.split()
        weights: str | dict[str, str] = {}
        if "=" in first:
            rest = [first, *rest]
        else:
            weights = known_word("weights dtype", first)
        terms = [_term(word, text) for word in rest]
        found = [term.word for term in terms if term.name == _ACTIVATIONS]
        if len(found) > 1:
            raise ArgumentError(f"the recipe {text!r} gives activations more than once")
        layers: dict[str, str] = {}
        for name, word in terms:
            if name == _ACTIVATIONS:
                continue
            known_word(f"weights dtype of {name!r}", word)
            if isinstance(weights, dict) and not layers and _COMPONENT.fullmatch(name):
                weights[name] = word
                continue
            layers.pop(name, None)  # the later one wins, in its place
            layers[name] = word
        return cls(weights, layers=layers, activations=found[0] if found else None)

    @classmethod
    def _parse_earlier(cls, text: str) -> Recipe:
        match = _EARLIER.fullmatch(text.strip())
        if match is None:
            raise ArgumentError(f"{text!r} is no recipe: a word and terms NAME=WORD are")
        skip, components = (
            tuple(re.split(r", | and ", match[key])) if match[key] else ()
            for key in ("skip", "components")
        )
        return cls(match["word"], skip, components)

    @property
    def base(self) -> str | None:
        """The word for all, None where only some components or layers have one."""
        return self._base  # type: ignore[attr-defined]

    @property
    def terms(self) -> tuple[Term, ...]:
        """What it says of components and layers, skips included; later ones win."""
        return self._terms  # type: ignore[attr-defined]

    @property
    def named_components(self) -> tuple[str, ...]:
        """Components that it names, as far as names tell that they are some."""
        own = self.components if isinstance(self.weights, str) else tuple(self.weights)
        seen = (t.name for t in self.terms if t.name in own or _COMPONENT.fullmatch(t.name))
        return tuple(dict.fromkeys(seen))

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that it quantizes to, from the most precise; none for the reference."""
        used = {self.base or REFERENCE, *(term.word for term in self.terms)}
        return in_order(used - {REFERENCE})

    @property
    def weights_label(self) -> str:
        """Its word, or all of them: ``"int8+int4"``."""
        return "+".join(self.words) or REFERENCE

    @property
    def kept(self) -> tuple[str, ...]:
        """Patterns of the layers that it keeps, whatever else it says of them."""
        last = len(self.terms)
        while last and self.terms[last - 1].word == REFERENCE:
            last -= 1
        return tuple(term.name for term in self.terms[last:])

    @property
    def is_reference(self) -> bool:
        """Whether nothing is quantized."""
        return not self.words

    @property
    def label(self) -> str:
        """Its text: what tables, grids and `Comparison.images` know it by."""
        return self._text  # type: ignore[attr-defined]

    @property
    def shown(self) -> str:
        """What it is called where there is little room: its name, or its text."""
        return self.name or self.label

    @property
    def earlier_label(self) -> str | None:
        """What 0.1.0 called it; None for what it didn't know."""
        if not isinstance(self.weights, str) or self.layers or self.activations:
            return None
        text = self.weights
        if self.skip:
            text += ", keeping " + format_list(self.skip)
        if self.components:
            text += " in " + format_list(self.components)
        return text

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        weights, said = plain.pop("weights"), ""
        for key, value in plain.items():
            if value:
                said += f", {key}={dict(value) if isinstance(value, Words) else value!r}"
        return f"Recipe({dict(weights) if isinstance(weights, Words) else repr(weights)}{said})"

    def __eq__(self, other: object) -> bool:
        return self.label == other.label if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.label)


def as_recipe(value: Recipe | str) -> Recipe:
    """Return a recipe from a recipe or its text, a weights word for one.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return Recipe.parse(value)
    raise ArgumentError(
        f"a recipe is a Recipe, one of the words {', '.join(WORDS)}, or a text such as "
        f"'int4 proj_out=none', not {value!r}"
    )


def weights_only(recipes: Iterable[Recipe | str], what: str) -> None:
    """Make sure that no recipe quantizes activations, where they can't be calibrated.

    Raises
    ------
    UnsupportedError
        For the first that does.
    """
    for recipe in map(as_recipe, recipes):
        if recipe.activations is not None:
            raise UnsupportedError(
                f"{what} looks at weights alone, and the recipe '{recipe}' quantizes activations"
            )


def default_recipes(
    weights: Iterable[str] = WORDS, skip: Iterable[str] = (), components: Iterable[str] = ()
) -> tuple[Recipe, ...]:
    """Return one recipe a weights word; skips and components don't apply to the reference."""
    skip, components = tuple(skip), tuple(components)
    return tuple(
        Recipe(word) if word == REFERENCE else Recipe(word, skip, components) for word in weights
    )


def slug(label: str) -> str:
    """Return a label as a folder name: lower-case letters, digits, dots and hyphens only.

    Where signs had to go (a glob's star, say) a short digest keeps different labels apart.
    """
    words = re.sub(r"[^a-z0-9.]+", "-", label.casefold()).strip("-.")[:60]
    if re.fullmatch(r"[\w .,-]*", label, re.ASCII) and len(label) <= 60:
        return words
    return f"{words}-{hashlib.sha256(label.encode()).hexdigest()[:6]}".lstrip("-")


# --- terms ------------------------------------------------------------------------------------


def _ordered(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return terms in the one order of all that mean the same.

    Two neighbours may change places where that changes nothing: when both give the same word, or
    are two components. Of all that may come next the first by name is taken.
    """
    last = {term.name: term for term in terms}  # of terms with one name, the last counts
    left = [term for term in terms if last.get(term.name) is term]
    found = []
    while left:
        best = min(_may_come_next(left), key=lambda at: _rank(left[at]))
        found.append(left.pop(best))
    return tuple(found)


def _may_come_next(terms: list[Term]) -> Iterable[int]:
    """Yield the places of those terms that may change places with all before them."""
    components: set[str] = set()  # words of those before, apart
    patterns: set[str] = set()
    for at, term in enumerate(terms):
        is_component = _COMPONENT.fullmatch(term.name) is not None
        if (patterns if is_component else patterns | components) <= {term.word}:
            yield at
        (components if is_component else patterns).add(term.word)
        if len(patterns) > 1:
            return


def _rank(term: Term) -> tuple[int, str]:
    if _DENOISER.fullmatch(term.name):
        return 0, term.name
    return (1 if _COMPONENT.fullmatch(term.name) else 2), term.name


def _text(base: str | None, terms: tuple[Term, ...], activations: str | None) -> str:
    said = [] if base is None else [base]
    said += map(str, terms)
    if activations is not None:
        said.append(f"{_ACTIVATIONS}={activations}")
    return " ".join(said)


def _term(text: str, whole: str) -> Term:
    name, sign, word = text.rpartition("=")
    if not sign or not name or not word:
        raise ArgumentError(
            f"{text!r} in the recipe {whole!r} is no term: after the first word come terms "
            "NAME=WORD, with spaces between them, such as '*.attn.*=int8' or 'proj_out=none'"
        )
    return Term(name, word)


def _names(what: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable):
        raise ArgumentError(f"{what} must be names, not {value!r}")
    names = tuple(value)
    for name in names:
        _check_name(what, name)
    return tuple(dict.fromkeys(names))  # order kept, repetitions dropped


def _mapping(what: str, value: object) -> Words:
    if not isinstance(value, Mapping):
        kinds = "a word, or words" if what == "weights" else "words"
        raise ArgumentError(f"{what} must be {kinds} by name, not {value!r}")
    for name, word in value.items():
        _check_name(what, name)
        known_word(f"weights dtype of {name!r}", word)
    return Words(value)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"{what} must hold names, not {name!r}")
    if re.search(r"[\s=,]", name) or name == _ACTIVATIONS:
        raise ArgumentError(
            f"{what} holds {name!r}: names in a recipe have no spaces, commas or '=', and "
            f"{_ACTIVATIONS!r} is none (a glob's ? stands for any sign)"
        )
