"""The pictures of a comparison: a grid, and any two under a slider with their difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anywidget
import traitlets
from PIL import Image

from .. import units
from ..errors import ArgumentError, BrokenModelError, QuantolabError, UnsupportedError, one_of
from ..measure.quality import difference_map, flip_map, picture_psnr, picture_quality
from ..records import Comparison, Trial
from ..report.beside import SideBySide
from ..report.difference_heat import (
    ERROR_STEPS,
    HeatScale,
    heat_colours,
    heat_picture,
    heat_scale,
)
from ..report.error_maps import WHAT, ErrorMaps, error_maps, why_no_flip
from ..report.grid import VIEWS
from .assets import asset
from .sheet import FIRST, Pictures, Sheet, beside_sheet, make_sheet, map_place, png_file, sheet_html

MODES = ("grid", "compare")
MAPS = ("levels", "flip")
THUMBNAILS = ("fit", "small", "medium", "large")
_SLOW = ("pair", "worst")  # questions that take long: others needn't wait behind them
_WHAT = {
    "levels": "8-bit levels: at each pixel the largest absolute difference of red, green, blue",
    "flip": WHAT,
}


# --- two pictures against each other ----------------------------------------------------------


@dataclass(frozen=True)
class PairFigures:
    """What can be said about two pictures of the same size."""

    psnr_db: float
    """Of one against the other, infinite for identical pictures; the order is of no account."""
    ssim: float
    scale: HeatScale
    heat: Image.Image
    """The map in colours."""
    flip: float | None = None
    """Mean of FLIP's map; None where another one was asked for."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The figures as text."""
        if math.isinf(self.psnr_db):
            return ("identical pictures",)
        lines = (
            f"PSNR {units.format_decibels(self.psnr_db)}",
            f"SSIM {units.format_similarity(self.ssim)}",
        )
        more = () if self.flip is None else (f"FLIP {units.format_similarity(self.flip)}",)
        return lines + more


def pair_figures(one: Image.Image, other: Image.Image, kind: str = MAPS[0]) -> PairFigures:
    """Return figures and difference of two pictures.

    Parameters
    ----------
    one, other : PIL.Image.Image
        Two pictures of the same size.
    kind : str
        Which map: ``"levels"``, the difference in 8-bit levels, or ``"flip"``, FLIP's errors.

    Raises
    ------
    ArgumentError
        If the sizes differ.
    UnsupportedError
        If FLIP is asked for and flip-evaluator isn't installed.
    """
    figures = picture_quality(one, other)
    if one_of("map", kind, MAPS) == "levels":
        levels = difference_map(one, other)
        scale = heat_scale(levels)
        return PairFigures(*figures, scale, heat_picture(levels, scale))
    errors = flip_map(other, one)
    if errors is None:
        raise UnsupportedError(why_no_flip() or "FLIP can't be computed here")
    scale = heat_scale(errors, ERROR_STEPS)
    return PairFigures(*figures, scale, heat_picture(errors, scale), float(errors.mean()))


def worst_place(comparison: Comparison | SideBySide, pair: tuple[str, str]) -> tuple[str, int]:
    """Return prompt and seed at which two recipes' pictures are least alike, by PSNR.

    Raises
    ------
    ArgumentError
        If there is no prompt and seed for which both have a picture.
    """
    images = comparison.images
    found = {
        place: picture_psnr(*(images[label, *place] for label in pair))
        for place in dict.fromkeys(key[1:] for key in images)
        if all((label, *place) in images for label in pair)
    }
    if not found:
        raise ArgumentError(f"{pair[0]} and {pair[1]} have no pictures of the same prompt and seed")
    return min(found, key=found.get)


# --- the widget -------------------------------------------------------------------------------


class PictureViewer(anywidget.AnyWidget):
    """Shows the pictures of a comparison, as a grid or two of them under a slider.

    Parameters
    ----------
    comparison : Comparison, optional
        What to show; `update` shows another one, or the same with more trials.

    Examples
    --------
    >>> viewer = PictureViewer(load_comparison("run"))          # doctest: +SKIP
    >>> viewer.mode, viewer.pair = "compare", ("none", "int4")  # doctest: +SKIP
    """

    _esm = asset("shared.js", "zoom.js", "pictures.js")
    _css = asset("pictures.css")

    mode = traitlets.Enum(MODES, "grid").tag(sync=True)
    """``"grid"`` or ``"compare"``."""
    pair = traitlets.Tuple(
        traitlets.Unicode(), traitlets.Unicode(), default_value=("", "")
    ).tag(sync=True)  # fmt: skip
    """Labels of the two recipes that are compared, left and right."""
    place = traitlets.Tuple(traitlets.Unicode(), traitlets.Int(), default_value=("", 0))
    """Prompt and seed at which they are compared."""
    position = traitlets.Float(0.5, min=0.0, max=1.0).tag(sync=True)
    """Share of the width that the left picture has."""
    difference = traitlets.Bool(True).tag(sync=True)
    """Whether the difference is shown beside the two."""
    map = traitlets.Enum(MAPS, MAPS[0]).tag(sync=True)
    """What the difference shows: 8-bit levels, or FLIP's errors."""
    thumbnails = traitlets.Enum(THUMBNAILS, THUMBNAILS[0]).tag(sync=True)
    """How large the grid shows pictures: ``"fit"`` takes the width that there is."""
    view = traitlets.Enum(VIEWS, VIEWS[0]).tag(sync=True)
    """What the grid shows: pictures, or FLIP's errors against the reference's."""

    _row = traitlets.Int(0, min=0).tag(sync=True)  # the place: seeds are too long for JavaScript
    _sheet = traitlets.Dict().tag(sync=True)
    _small = traitlets.Dict().tag(sync=True)
    _colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _what = traitlets.Dict().tag(sync=True)  # what the colours of each map mean
    _has_views = traitlets.Bool(True).tag(sync=True)  # whether errors can take the pictures' place
    _no_flip = traitlets.Unicode("").tag(sync=True)  # why there are no errors to show

    def __init__(self, comparison: Comparison | None = None) -> None:
        self.comparison: Comparison | SideBySide | None = None
        self._words = Sheet()
        self._pictures = Pictures()
        self._waiting: tuple[Trial, ...] = ()
        self._running: str | None = None
        self._over = False
        self._errors: dict = {}  # known already, by place
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="quantolab pictures")
        self._offered = ("", "")
        super().__init__(_colours=list(heat_colours()), _what=_WHAT, _no_flip=why_no_flip() or "")
        self.add_class("ql-grid")
        self.on_msg(self._hear)
        if comparison is not None:
            self.update(comparison)

    def update(
        self,
        comparison: Comparison | SideBySide,
        waiting: Iterable[Trial] = (),
        running: str | None = None,
        *,
        ended: bool = False,
    ) -> None:
        """Show a comparison, or how far one has come; what the user chose stays as it is.

        Parameters
        ----------
        comparison : Comparison or SideBySide
            Its trials have ended; among its images there may be some of a trial under way. Or
            several runs side by side.
        waiting : iterable of Trial
            Those that are still to come.
        running : str, optional
            Label of the one whose pictures are being made.
        ended : bool
            Whether nothing is being made any more.
        """
        self.comparison, self._waiting = comparison, tuple(waiting)
        self._running, self._over = running, ended
        self._fill()

    def _fill(self) -> None:
        comparison, maps = self.comparison, self._maps()
        images = dict(comparison.images)
        if maps is not None:
            images |= {map_place(*place): picture for place, picture in maps.images.items()}
        self._pictures.take(images)
        self._words = self._sheet_of(comparison, maps)
        with self.hold_sync():
            self._has_views = isinstance(comparison, Comparison)
            self._small = self._first_small()
            self._sheet = self._words.plain()
            self._keep_choices()

    def _first_small(self) -> dict[str, bytes]:
        """Return small copies of the first pictures; the page asks for those that are looked at."""
        cells = (cell for row in self._words.cells for cell in row)
        keys = (key for cell in cells for key in (cell.map or cell.key,) if key is not None)
        found: dict[str, bytes] = {}
        with suppress(BrokenModelError):  # its run was moved away: whoever looks is told
            found.update(self._pictures.smalls(itertools.islice(dict.fromkeys(keys), FIRST)))
        return found

    def _sheet_of(self, shown: Comparison | SideBySide, maps: ErrorMaps | None) -> Sheet:
        if isinstance(shown, SideBySide):
            return beside_sheet(shown, self._pictures)
        return make_sheet(
            shown, self._pictures, self._waiting, self._running, ended=self._over, maps=maps
        )

    def _maps(self) -> ErrorMaps | None:
        """Return the error maps, where they are to be shown and there is something to judge by."""
        if not isinstance(self.comparison, Comparison):
            return None  # several runs have several references
        if self.view == VIEWS[0] or self._no_flip or self.comparison.judge is None:
            return None
        return error_maps(self.comparison, self._errors)

    @traitlets.observe("view")
    def _view_chosen(self, change: dict) -> None:
        if self.comparison is not None:
            self._fill()

    def show_worst(self) -> None:
        """Go to the prompt and seed at which the two recipes' pictures are least alike.

        Raises
        ------
        ArgumentError
            If there is no prompt and seed for which both have a picture.
        """
        if self.comparison is None:
            raise ArgumentError("there is no comparison to look at")
        self.place = worst_place(self.comparison, self.pair)

    def figures(self) -> PairFigures | None:
        """Return figures of the chosen pair and place; None while a picture is missing."""
        if self.comparison is None:
            return None
        pictures = [self.comparison.images.get((label, *self.place)) for label in self.pair]
        return None if None in pictures else pair_figures(*pictures, self.map)

    def static_html(self) -> str:
        """Return the grid for places without a kernel: one piece of HTML, well under 1 MB."""
        return sheet_html(self._words, self._pictures)

    # --- choices ---

    def _keep_choices(self) -> None:
        """Choose for the user what is not chosen, or no longer there."""
        offer = _offer(self._words)
        chosen = self.pair != self._offered and set(self.pair) <= set(self._words.labels)
        self._offered = offer
        if not chosen:
            self.pair = offer
        places = self._words.places
        if self.place in places:
            self._row = places.index(self.place)
        elif places:
            self.place = places[0]

    @traitlets.validate("pair")
    def _known_pair(self, proposal: dict) -> tuple[str, str]:
        for label in proposal["value"]:
            if label:  # no label: nothing to compare yet
                one_of("recipe", label, self._words.labels)
        return proposal["value"]

    @traitlets.validate("place")
    def _known_place(self, proposal: dict) -> tuple[str, int]:
        if proposal["value"] not in self._words.places:
            raise ArgumentError(
                f"there is no picture of {proposal['value']!r}; the prompts and seeds are "
                + ", ".join(map(repr, self._words.places))
            )
        return proposal["value"]

    @traitlets.observe("place")
    def _move_row(self, change: dict) -> None:
        self._row = self._words.places.index(change["new"])

    @traitlets.observe("_row")
    def _move_place(self, change: dict) -> None:
        if change["new"] < len(self._words.places):
            self.place = self._words.places[change["new"]]

    # --- what the browser asks for ---

    def _hear(self, _: Any, content: dict, buffers: list) -> None:
        if content.get("ask") in _SLOW:
            self._apart.submit(self._answer_or_say, content)
        else:
            self._answer_or_say(content)

    def _answer_or_say(self, content: dict) -> None:
        try:
            self._answer(content)
        except Exception as error:
            said = str(error)
            if not isinstance(error, QuantolabError):
                said = f"{type(error).__name__}: {said}"
            self.send({"answer": "error", "to": content, "text": said})

    def _answer(self, content: dict) -> None:
        if content["ask"] == "worst":
            self.show_worst()
        elif content["ask"] == "picture":
            picture = self._pictures.get(content["key"])
            if picture is not None:  # else it was replaced meanwhile, and the grid with it
                self.send({"answer": "picture", "to": content}, [png_file(picture)])
        elif content["ask"] == "small":
            for key, file in self._pictures.smalls(content["keys"], int(content["side"])):
                said = {"answer": "small", "key": key, "side": content["side"]}
                self.send(said, [file])
        elif content["ask"] == "pair":
            pictures = [self._pictures.get(content[side]) for side in ("left", "right")]
            if None not in pictures:
                found = pair_figures(*pictures, content.get("map", MAPS[0]))
                answer = {"lines": found.lines, "ticks": found.scale.ticks}
                self.send({"answer": "pair", "to": content, **answer}, [png_file(found.heat)])


def _offer(words: Sheet) -> tuple[str, str]:
    """Return the most precise and the coarsest recipe that have pictures or may still get some."""
    labels = [column.label for column in words.columns if column.reason is None]
    return (labels[0], labels[-1]) if labels else ("", "")
