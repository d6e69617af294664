"""What a picture viewer shows, before any browser is asked: cells, words, small pictures.

Every figure comes written from `quantolab.report.grid`, so that no number is formatted twice.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import xxhash
from PIL import Image

from ..errors import BrokenModelError
from ..records import Comparison, Trial
from ..report.beside import SideBySide
from ..report.error_maps import WHAT, ErrorMaps
from ..report.grid import (
    GridColumn,
    GridContent,
    GridRow,
    borrowed_column,
    grid_content,
    in_grid_order,
)
from ..report.markup import Raw, escaped, table_cell, table_of, table_row
from ..report.tables import split_label

WAITING, MAKING, MISSING = "waiting", "being made", "not made yet"
_LONGEST = 160  # pixels of a small picture's longer side
FIRST = 24
"""Small pictures that are sent before anybody asks: about what is seen first."""
_SIDES = (_LONGEST, 320, 640, 1280)
"""Longer sides that small pictures are made in."""
_KEPT_BYTES = 32_000_000  # of small pictures, beyond which the oldest are made anew
_AT_ONCE = min(4, os.cpu_count() or 1)  # small pictures that are made at a time
_LOSSY = 82  # WebP quality of reduced pictures; those that are small already stay exact


@dataclass(frozen=True)
class Cell:
    """One place of the grid: a picture, or a word why there is none."""

    key: str | None
    """Digest of the picture's pixels."""
    caption: str
    """The picture's own PSNR."""
    note: str
    """Said in place of a picture."""
    map: str | None = None
    """Digest of the picture's error map, where the sheet has those."""
    map_caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """Every word of the viewer, and which picture stands where."""

    columns: tuple[GridColumn, ...] = ()
    rows: tuple[GridRow, ...] = ()
    cells: tuple[tuple[Cell, ...], ...] = ()
    """A tuple a row, a cell a column."""
    footer: str = ""
    size: tuple[int, int] = (1, 1)
    """Width and height of the pictures in pixels."""
    ticks: tuple[str, ...] = ()
    """Of the scale of the error maps, where the sheet has those."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return tuple(column.label for column in self.columns)

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Prompt and seed of the rows."""
        return tuple((row.prompt, row.seed) for row in self.rows)

    def plain(self) -> dict:
        """Return plain values for the browser; seeds as text, as JavaScript's numbers are short."""
        return {
            "columns": [asdict(c) | {"facts": list(c.facts)} for c in self.columns],
            "rows": [asdict(row) | {"seed": str(row.seed)} for row in self.rows],
            "cells": [[asdict(cell) for cell in row] for row in self.cells],
            "footer": self.footer,
            "size": list(self.size),
            "ticks": list(self.ticks),
        }


class Pictures:
    """The pictures of a comparison by digest; small copies are made when they are asked for."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, int], tuple[Image.Image, str]] = {}
        self._by_key: dict[str, Image.Image] = {}
        self._small: dict[tuple[str, int], bytes] = {}  # WebP files, the latest asked for last
        self._asked = _SIDES[1]  # the side that was last asked for: likely asked for next

    def take(self, images: dict[tuple[str, str, int], Image.Image]) -> None:
        """Hold these pictures and no others; what is known already isn't read again."""
        keys, known = {}, self._keys
        for place, picture in images.items():
            seen = known.get(place)
            key = seen[1] if seen is not None and seen[0] is picture else picture_key(picture)
            keys[place] = (picture, key)
        self._keys, self._by_key = keys, {key: picture for picture, key in keys.values()}
        self._small = {k: file for k, file in self._small.items() if k[0] in self._by_key}

    def key(self, label: str, prompt: str, seed: int) -> str | None:
        """Return the digest of one picture; None if there is none."""
        found = self._keys.get((label, prompt, seed))
        return None if found is None else found[1]

    def get(self, key: str | None) -> Image.Image | None:
        """Return the picture of a digest; None if it isn't here (any more)."""
        return self._by_key.get(key)

    def smalls(self, keys: Iterable[str], side: int = _LONGEST) -> Iterator[tuple[str, bytes]]:
        """Yield small copies as WebP files, not much longer than asked for, as they are made.

        Those at hand come first. Several are made at once: decoding, reducing and writing a
        picture lets other threads run. What isn't here any more is left out.

        Raises
        ------
        BrokenModelError
            After all others, if a picture's file can't be read any more.
        """
        if side > _LONGEST:
            self._asked = side
        wanted = {(key, self._side(self._by_key[key], side)): self._by_key[key]
                  for key in keys if key in self._by_key}  # fmt: skip
        for at in [at for at in wanted if at in self._small]:
            del wanted[at]
            self._keep(at, self._small[at])
            yield at[0], self._small[at]
        yield from self._fresh(wanted)

    def _fresh(self, wanted: dict[tuple[str, int], Image.Image]) -> Iterator[tuple[str, bytes]]:
        """Decode; from each picture comes also the copy that is likely asked for next."""
        broken: BrokenModelError | None = None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            made = {(key, side): pool.submit(
                        small_pictures, picture, {side, self._side(picture, self._asked)})
                    for (key, side), picture in wanted.items()}  # fmt: skip
            for (key, side), future in made.items():
                try:
                    files = future.result()
                except BrokenModelError as error:
                    broken = broken or error
                    continue
                for longest, file in files.items():
                    self._keep((key, longest), file)
                yield key, files[side]
        if broken is not None:
            raise broken

    @staticmethod
    def _side(picture: Image.Image, wanted: int) -> int:
        return next((s for s in _SIDES if s >= min(wanted, max(picture.size))), _SIDES[-1])

    def _keep(self, at: tuple[str, int], file: bytes) -> None:
        self._small.pop(at, None)
        self._small[at] = file
        spare = sum(map(len, self._small.values())) - _KEPT_BYTES
        while spare > 0 and len(self._small) > 1:
            spare -= len(self._small.pop(next(iter(self._small))))


def picture_key(picture: Image.Image) -> str:
    """Return a digest of size and pixels, of one that isn't decoded of where its file lies."""
    stored = getattr(picture, "key", None)
    if isinstance(stored, str):
        return stored
    digest = xxhash.xxh3_128(repr((picture.mode, picture.size)).encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def small_pictures(picture: Image.Image, sides: Iterable[int]) -> dict[int, bytes]:
    """Return copies as WebP files by their longer side at most; exact if the picture is small."""
    picture, files = picture.convert("RGB"), {}
    exact = max(picture.size) <= _LONGEST
    for longest in sorted(sides, reverse=True):  # each smaller one from the one before
        buffer = io.BytesIO()
        if exact:
            picture.save(buffer, "WEBP", lossless=True, method=1)
        else:
            picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=1.5)
            picture.save(buffer, "WEBP", quality=_LOSSY, method=2)
        files[longest] = buffer.getvalue()
    return files


def png_file(picture: Image.Image, *, level: int = 1) -> bytes:
    """Return a picture as a PNG file; at level 0 its length depends on the size alone."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


# --- words and places -------------------------------------------------------------------------


def make_sheet(
    comparison: Comparison,
    pictures: Pictures,
    waiting: Iterable[Trial] = (),
    running: str | None = None,
    *,
    ended: bool = False,
    maps: ErrorMaps | None = None,
) -> Sheet:
    """Return the sheet of a comparison.

    Parameters
    ----------
    comparison : Comparison
        Finished trials; pictures of a trial under way may be among its images.
    pictures : Pictures
        Holding its images, and those of the maps.
    waiting : iterable of Trial
        Those that are still to come.
    running : str, optional
        Label of the one whose pictures are being made.
    ended : bool
        Whether nothing is being made any more: what is still to come waits for a resume.
    maps : ErrorMaps, optional
        To be shown in place of the pictures when that is asked for.
    """
    known = {trial.label for trial in comparison.trials}
    trials = (*comparison.trials, *(trial for trial in waiting if trial.label not in known))
    if not comparison.workload.pairs or not trials:
        return Sheet()
    content = grid_content(comparison) if known else _nothing_yet(comparison)
    there = {column.label: column for column in content.columns}
    # In the grid's order, so that a trial that ends doesn't move its column.
    word = MISSING if ended else WAITING
    columns = (
        *borrowed_column(comparison),
        *(
            there.get(t.label) or _coming(t.label, MAKING if t.label == running else word)
            for t in in_grid_order(trials)
        ),
    )
    cells = [
        [_cell(column, row, content, pictures, word, maps) for column in columns]
        for row in content.rows
    ]
    if running is not None:
        _mark_next(cells, columns, running)
    first = next(iter(comparison.images.values()), None)
    size = comparison.workload.size if first is None else first.size
    ticks = () if maps is None else maps.scale.ticks
    shown = tuple(map(tuple, cells))
    return Sheet(columns, content.rows, shown, content.footer, tuple(size), ticks)


def beside_sheet(side: SideBySide, pictures: Pictures) -> Sheet:
    """Return the sheet of several runs.

    Parameters
    ----------
    side : SideBySide
        The runs.
    pictures : Pictures
        Holding its images.
    """
    content = side.content
    cells = tuple(
        tuple(_cell(column, row, content, pictures, MISSING, None) for column in content.columns)
        for row in content.rows
    )
    return Sheet(content.columns, content.rows, cells, content.footer, tuple(side.size))


def map_place(label: str, prompt: str, seed: int) -> tuple[str, str, int]:
    """Return where `Pictures` hold the error map of a picture."""
    return f"{label}, {WHAT}", prompt, seed


def _is_coming(column: GridColumn) -> bool:
    """Whether a column's trial has not ended yet."""
    return column.facts in ((WAITING,), (MAKING,), (MISSING,))


def _mark_next(cells: list[list[Cell]], columns: tuple[GridColumn, ...], running: str) -> None:
    """Mark the first cell of a column that has no picture yet."""
    for c, column in enumerate(columns):
        if column.label == running and _is_coming(column):
            for row in cells:
                if row[c].key is None:
                    row[c] = Cell(None, "", MAKING)
                    return


def _nothing_yet(comparison: Comparison) -> GridContent:
    first = comparison.workload.seeds[0]
    rows = tuple(GridRow(p, seed, first=seed == first) for p, seed in comparison.workload.pairs)
    return GridContent((), rows, {}, "")


def _coming(label: str, word: str) -> GridColumn:
    return GridColumn(label, *split_label(label), facts=(word,))


def _cell(
    column: GridColumn,
    row: GridRow,
    content: GridContent,
    pictures: Pictures,
    word: str,
    maps: ErrorMaps | None,
) -> Cell:
    place = (column.label, row.prompt, row.seed)
    key = pictures.key(*place)
    if key is not None:
        caption = content.captions.get(place, "")
        if maps is None or place not in maps.images:
            return Cell(key, caption, "")
        return Cell(key, caption, "", pictures.key(*map_place(*place)), maps.captions[place])
    return Cell(None, "", word if _is_coming(column) else "no picture")


# --- where no kernel is alive -----------------------------------------------------------------

_CELL = "padding:4px 8px;text-align:left;vertical-align:top;border:0"
_FAILED = f"{_CELL};max-width:12em"
_MOST_COLUMNS = 20
_WORDS_OF_A_CELL = 400  # bytes, about
_BUDGET = 600_000  # bytes of pictures: a notebook that holds them stays quick to open


def sheet_html(sheet: Sheet, pictures: Pictures) -> str:
    """Return the grid as HTML that needs nothing else: no script, no style sheet, no file.

    Colours are left to the page, so it reads on white and on black. Pictures are reduced and
    lossy: for looking at, not for measuring. What would make it heavy is left out, and said.
    """
    if not sheet.rows:
        return ""
    columns = sheet.columns[:_MOST_COLUMNS]
    files, count = _files_that_fit(sheet, pictures)
    shown = list(zip(sheet.rows, sheet.cells, strict=True))[:count]
    lines = [table_row([table_cell("", _CELL, "th"), *map(_heading_html, columns)])]
    for i, (row, cells) in enumerate(shown):
        drawn = [_place_html(row)]
        for column, cell in zip(columns, cells, strict=False):
            if column.reason is None:
                drawn.append(_cell_html(cell, column, row, pictures, files))
            elif i == 0:  # beside all rows
                drawn.append(table_cell(column.reason, _FAILED, rowspan=len(shown)))
        lines.append(table_row(drawn))
    left_out = (
        (len(sheet.rows) - len(shown), "prompts and seeds"),
        (len(sheet.columns) - len(columns), "recipes"),
    )
    more = "".join(f"{count} more {what} are left out here. " for count, what in left_out if count)
    whole = table_of("".join(lines), "border-collapse:collapse")
    below = f"<p><small>{more}{escaped(sheet.footer)}</small></p>"
    return f"<div style='overflow-x:auto'>{whole}</div>{below}"


def _files_that_fit(sheet: Sheet, pictures: Pictures) -> tuple[dict[str, str], int]:
    """Return pictures' addresses, and of how many rows the budget allows, one at least."""
    files: dict[str, str] = {}
    spent = 0
    for count, cells in enumerate(sheet.cells):
        keys = [cell.key for cell in cells[:_MOST_COLUMNS] if cell.key]
        more = {key: _data_address(pictures.get(key)) for key in set(keys) - files.keys()}
        spent += sum(len({**files, **more}[key]) + _WORDS_OF_A_CELL for key in keys)
        if count and spent > _BUDGET:
            return files, count
        files |= more
    return files, len(sheet.cells)


def _heading_html(column: GridColumn) -> str:
    rest = f"<br>{escaped(column.rest)}" if column.rest else ""
    facts = "".join(f"<br>{escaped(fact)}" for fact in column.facts)
    text = Raw(f"<b>{escaped(column.name)}</b><small>{rest}{facts}</small>")
    return table_cell(text, f"{_CELL};font-weight:normal", "th")


def _place_html(row: GridRow) -> str:
    prompt = f"{escaped(row.prompt)}<br>" if row.first else ""
    text = Raw(f"{prompt}<small>seed {row.seed}</small>")
    return table_cell(text, f"{_CELL};max-width:14em;font-weight:normal", "th")


def _cell_html(
    cell: Cell, column: GridColumn, row: GridRow, pictures: Pictures, files: dict[str, str]
) -> str:
    if cell.key is None:
        return table_cell(cell.note, _CELL)
    said = escaped(f"{column.label}: {row.prompt}, seed {row.seed}")
    width, height = small_size(pictures.get(cell.key).size)
    picture = (
        f"<img src='{files[cell.key]}' alt='{said}' width='{width}' height='{height}' "
        "style='image-rendering:pixelated'>"
    )
    return table_cell(Raw(f"{picture}<br><small>{escaped(cell.caption)}</small>"), _CELL)


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size at which a picture is shown in a grid: small ones whole times enlarged.

    Examples
    --------
    >>> small_size((32, 32)), small_size((1024, 512))
    ((160, 160), (160, 80))
    """
    longest = max(size)
    if longest <= _LONGEST:
        return tuple(side * (_LONGEST // longest) for side in size)
    return tuple(max(1, round(side * _LONGEST / longest)) for side in size)


def _data_address(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_LOSSY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
