"""A blind test on the comparison's own pictures, and what the answers show."""

from __future__ import annotations

import html
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

from .. import units
from ..errors import ArgumentError
from ..measure.statistics import binomial_interval, more_right_answers
from ..records import Comparison
from .assets import asset
from .sheet import png_file

GUESSING = 0.5
"""Share of right answers of someone who sees no difference."""

Place = tuple[str, int]


# --- what answers show ------------------------------------------------------------------------


@dataclass(frozen=True)
class BlindResult:
    """What a blind test of one recipe has shown so far."""

    recipe: str
    """Label of the recipe that was to be told from the reference."""
    right: int
    answers: int
    low: float
    """Lower end of the exact 95 % interval of the share of right answers, from 0 to 1."""
    high: float
    sentence: str
    """What it means, in plain words."""


def blind_result(recipe: str, right: int, answers: int) -> BlindResult:
    """Return what so many right answers of so many show, where guessing is right half the time.

    Examples
    --------
    >>> blind_result("int4", 0, 0).sentence
    'No answers yet. 6 right answers in a row would show that int4 can be told from the reference.'
    """
    low, high = binomial_interval(right, answers)
    return BlindResult(recipe, right, answers, low, high, _sentence(recipe, right, answers))


def _sentence(recipe: str, right: int, answers: int) -> str:
    more = more_right_answers(right, answers)
    streak = f"{more} right answer{'s' * (more > 1)} in a row"
    if not answers:
        return f"No answers yet. {streak} would show that {recipe} can be told from the reference."
    low, high = binomial_interval(right, answers)
    found = (
        f"{right} of {answers} right, {units.format_percent(low)} to {units.format_percent(high)}"
    )
    if low > GUESSING:
        return f"You can tell {recipe} from the reference: {found}, and guessing gives 50 %."
    if high < GUESSING:
        return (
            f"You see a difference, but take the reference for {recipe}: {found}, "
            "and guessing gives 50 %."
        )
    return (
        f"You can't be told apart from guessing yet: {found}. "
        f"{streak[0].upper()}{streak[1:]} from here would show that you see a difference."
    )


# --- one recipe's turns -----------------------------------------------------------------------


@dataclass
class _Score:
    """How one recipe's test stands. No place comes again before all were shown."""

    right: int = 0
    answers: int = 0
    seen: list[Place] = field(default_factory=list)
    """Places of this round."""
    repeats: bool = False
    """Whether all places have been through."""
    place: Place | None = None
    side: int = 1
    """Where the quantized picture is: 1 left, 2 right."""
    turn: int = 0
    """Number of the question, so that a late answer to another one does not count."""

    def deal(self, places: Sequence[Place], chance: random.Random, turn: int) -> None:
        """Choose the next place and the sides."""
        fresh = [place for place in places if place not in self.seen]
        if not fresh:
            self.seen, self.repeats = [], True
            # Not the same one twice running, unless there is no other.
            fresh = [place for place in places if place != self.place] or list(places)
        self.place, self.side, self.turn = chance.choice(fresh), chance.choice((1, 2)), turn
        self.seen.append(self.place)


# --- the widgets ------------------------------------------------------------------------------


class _Question(anywidget.AnyWidget):
    """Two pictures and two buttons; knows neither recipe nor prompt."""

    _esm = asset("shared.js", "blind.js")
    _css = asset("blind.css")

    _shown = traitlets.Dict().tag(sync=True)


_NOTHING = (
    "A blind test needs pictures of the unquantized reference (none) and of a quantized recipe."
)


class BlindTest(W.VBox):
    """Asks which of two pictures is quantized, and says what the answers show.

    Parameters
    ----------
    comparison : Comparison, optional
        Whose pictures to show; it needs the unquantized reference.
    seed : int, optional
        Seed of the order of pictures and sides; chance decides by default.

    Examples
    --------
    >>> test = BlindTest(load_comparison("run"), seed=0)        # doctest: +SKIP
    >>> test.answer(1)                                          # doctest: +SKIP
    >>> test.result.sentence                                    # doctest: +SKIP
    """

    def __init__(self, comparison: Comparison | None = None, *, seed: int | None = None) -> None:
        self.comparison: Comparison | None = None
        self._chance = random.Random(seed)
        self._scores: dict[str, _Score] = {}
        self._turns = 0
        self._last = ""
        self.recipe = W.Dropdown(description="Recipe", layout=W.Layout(width="auto"))
        self.again = W.Button(description="Start again", tooltip="Forget this recipe's answers")
        self.question = _Question()
        self.said = W.HTML()
        self.said.add_class("ql-blind-said")
        super().__init__([W.HBox([self.recipe, self.again]), self.question, self.said])
        self.add_class("ql-blind")
        self.recipe.observe(lambda _: self._change(), "value")
        self.again.on_click(lambda _: self.restart())
        self.question.on_msg(self._hear)
        self._show()
        if comparison is not None:
            self.update(comparison)

    @property
    def result(self) -> BlindResult | None:
        """What the answers on the chosen recipe show; None where there is nothing to judge."""
        if self.recipe.value is None:
            return None
        return blind_result(self.recipe.value, self._score.right, self._score.answers)

    def update(self, comparison: Comparison) -> None:
        """Use a comparison's pictures; answers stay as long as it is on the same workload."""
        if self.comparison is None or comparison.workload != self.comparison.workload:
            self._scores.clear()
        self.comparison = comparison
        labels, chosen = _quantized(comparison), self.recipe.value
        if labels != tuple(self.recipe.options):
            self.recipe.options = labels  # which chooses the first
            if labels:
                self.recipe.value = chosen if chosen in labels else labels[-1]
        self._show()

    def answer(self, which: int) -> bool:
        """Answer that picture 1 (left) or 2 (right) is the quantized one; return whether it is.

        Raises
        ------
        ArgumentError
            If it is another number, or there are no two pictures.
        """
        if which not in (1, 2):
            raise ArgumentError(f"the answer is 1 (left) or 2 (right), not {which!r}")
        if self.recipe.value is None:
            raise ArgumentError(f"there is no question to answer: {_NOTHING}")
        score = self._score
        right = which == score.side
        score.answers += 1
        score.right += right
        said = f"{'right' if right else 'wrong'}: picture {score.side} was {self.recipe.value}."
        self._last = f"Your last answer was {said}"
        self._deal()
        self._show()
        return right

    def restart(self) -> None:
        """Forget the answers on the chosen recipe."""
        self._scores.pop(self.recipe.value, None)
        self._change()

    # --- turns ---

    @property
    def _score(self) -> _Score:
        return self._scores.setdefault(self.recipe.value, _Score())

    def _change(self) -> None:
        self._last = ""
        self._show()

    def _deal(self) -> None:
        self._turns += 1
        self._score.deal(_places(self.comparison, self.recipe.value), self._chance, self._turns)

    def _show(self) -> None:
        """Show the question of the chosen recipe, and how its test stands."""
        if self.comparison is None or self.recipe.value is None:
            self.question._shown = {"turn": 0, "note": _NOTHING, "size": [1, 1], "pictures": []}
            self.said.value = ""
            return
        if self._score.place not in _places(self.comparison, self.recipe.value):
            self._deal()
        score, images = self._score, self.comparison.images
        pair = [
            images[self.comparison.judge, *score.place],
            images[self.recipe.value, *score.place],
        ]
        if score.side == 1:
            pair.reverse()
        self.question._shown = {
            "turn": score.turn,
            "note": "",
            "size": list(pair[0].size),
            # Not compressed: how well a picture compresses would tell one from the other.
            "pictures": [png_file(picture, level=0) for picture in pair],
        }
        self.said.value = _said_html(self._last, self.result, repeats=score.repeats)

    def _hear(self, _: Any, content: dict, buffers: list) -> None:
        # A second press before the next pictures were there is no second answer.
        if self.recipe.value is not None and content.get("turn") == self._score.turn:
            self.answer(content["answer"])


def _quantized(comparison: Comparison) -> tuple[str, ...]:
    """Labels of the recipes that can be told from the reference, or not."""
    judge = comparison.judge
    if judge is None:
        return ()
    return tuple(
        trial.label
        for trial in comparison.trials
        if trial.ok
        and not trial.recipe.is_reference
        and trial.label != judge
        and _places(comparison, trial.label)
    )


def _places(comparison: Comparison, label: str) -> tuple[Place, ...]:
    """Prompts and seeds of which both the reference and the recipe have a picture."""
    both = (comparison.judge, label)
    return tuple(
        place
        for place in comparison.workload.pairs
        if all((name, *place) in comparison.images for name in both)
    )


def _said_html(last: str, result: BlindResult, *, repeats: bool) -> str:
    remembered = " All pairs have been shown: from here on what you remember counts too."
    share = 100 * result.right / result.answers if result.answers else None
    mark = "" if share is None else f"<b style='left:{units.format_places(share, 1)}%'></b>"
    return (
        f"<div role='status'><div class='ql-blind-last'>{html.escape(last)}</div>"
        f"<div class='ql-blind-sentence'>{html.escape(result.sentence)}</div></div>"
        "<div class='ql-range' aria-hidden='true'>"
        f"<i style='left:{units.format_percent(result.low, 1, '')};"
        f"width:{units.format_percent(result.high - result.low, 1, '')}'>"
        f"</i>{mark}<s></s></div>"
        "<div class='ql-range-ends' aria-hidden='true'><span>0 % right</span>"
        "<span>guessing: 50 %</span><span>100 %</span></div>"
        "<div class='ql-blind-note'>The range is an exact 95 % interval. It holds if you decide "
        f"beforehand how many answers you give.{remembered if repeats else ''}</div>"
    )
