"""Several runs side by side: one grid, one table, and what differs in how they were made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import units
from ..arguments import public
from ..errors import ArgumentError
from ..measure.quality import mean_decibels, picture_psnr
from ..records import Comparison, Conditions, Workload
from ..run import journal
from ..run.identity import other_content
from ..text_tables import text_columns
from .grid import GridColumn, GridContent, GridRow, drawn_grid, grid_content, in_grid_order
from .markup import note, table
from .tables import ALIGN, HEADERS, ReadableTable, readable, results_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

Key = tuple[str, str, int]

RUN = "run"
"""The column of a joined table that says which run a row is of."""

_WORDS = {
    "model": "Model",
    "prompts": "Prompts",
    "seeds": "Seeds",
    "steps": "Steps",
    "guidance": "Guidance",
    "size": "Size",
    "frames": "Frames",
    "dtype": "Compute dtype",
    "device": "Device",
    "repeats": "Rounds",
    "revision": "Revision",
    "variant": "Variant",
    "lora": "LoRA",
    "device_name": "Machine",
    "threads": "Threads",
    "platform": "System",
    "python": "Python",
    "torch": "torch",
    "diffusers": "Diffusers",
    "transformers": "Transformers",
    "quanto": "Quanto",
    "peak_method": "How memory was read",
}
"""What is told of workloads and conditions, in this order."""

_OF_SECONDS = ("device", "dtype", "steps", "size", "device_name", "threads", "torch", "diffusers")
"""Where these differ, seconds of two runs say nothing of their recipes."""


@dataclasses.dataclass(frozen=True, repr=False)
class SideBySide:
    """Several runs in one grid and one table. What `side_by_side` returns."""

    runs: Mapping[str, Comparison]
    """By a short name, in the order in which they were asked for."""

    def __repr__(self) -> str:
        return f"<{units.format_list(list(self.runs))} side by side>"

    @cached_property
    def table(self) -> pd.DataFrame:
        """The results tables of all runs under one another, with a column ``run`` before them."""
        frames = []
        for name, comparison in self.runs.items():
            frame = results_table(comparison)
            frame.insert(0, RUN, pd.Series([name] * len(frame), index=frame.index, dtype=object))
            frames.append(frame)
        records = [row for frame in frames for row in frame.to_dict("records")]
        joined = pd.DataFrame(records, columns=list(frames[0].columns), dtype=object)
        return joined.astype(frames[0].dtypes.to_dict())

    @cached_property
    def differences(self) -> tuple[str, ...]:
        """What differs in how the runs were made, and what follows from it: a sentence each."""
        return (*_conditions_told(self.runs), *_pictures_told(self.runs))

    @cached_property
    def content(self) -> GridContent:
        """Every word of the grid: a recipe's columns of all runs stand together."""
        return _joined_content(self.runs, self.differences)

    @cached_property
    def images(self) -> dict[Key, Image.Image]:
        """Pictures by (label of a column, prompt, seed)."""
        return {
            (_label(label, name), prompt, seed): comparison.images[label, prompt, seed]
            for name, comparison in self.runs.items()
            for label, prompt, seed in comparison.images
        }

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first picture, to which the others are brought."""
        first = next(iter(self.images.values()), None)
        return next(iter(self.runs.values())).workload.size if first is None else first.size

    def grid(self, page: int | None = None) -> Figure:
        """Return the figure of all pictures, as `image_grid` draws one run's.

        Parameters
        ----------
        page : int, optional
            Which part of a grid that is too large for one figure.
        """
        return drawn_grid(self.content, self.images, self.size, page)

    def _repr_html_(self) -> str:
        text = readable_runs(self.table)
        shown = table(text.headers, text.rows, align="l" + ALIGN, css="ql-shown")
        return shown + "".join(map(note, (*self.differences, *text.notes)))

    def __str__(self) -> str:
        text = readable_runs(self.table)
        lines = text_columns([text.headers, *text.rows], "l" + ALIGN, rule=True)
        said = (*self.differences, *text.notes)
        return "\n".join((*lines, "", *(f"- {sentence}" for sentence in said)))


@public
def side_by_side(runs: Iterable[Comparison | str | os.PathLike[str]]) -> SideBySide:
    """Return several runs side by side: one grid, one table, and what differs between them.

    Nothing is computed anew: quality is told against each run's own unquantized pictures, speed
    against its own reference. Runs of other prompts, steps or machines can stand beside one
    another; `differences` says what they don't share.

    Parameters
    ----------
    runs : iterable of Comparison, str or pathlib.Path
        Two or more comparisons, or folders of runs.

    Returns
    -------
    SideBySide
        ``.table`` (a `results_table` with a column ``run``), ``.grid()`` (a figure),
        ``.differences`` (sentences), ``.runs`` (comparisons by name).

    Raises
    ------
    ArgumentError
        If there are fewer than two, or one stands there twice.
    ModelNotFoundError, BrokenModelError
        If a folder holds no run that can be read.

    Examples
    --------
    >>> side_by_side(["quantolab-runs/fox", "quantolab-runs/fox-2"]).grid()  # doctest: +SKIP
    """
    given = tuple(runs)
    if len(given) < 2:
        raise ArgumentError(f"two runs or more can stand side by side, not {len(given)}")
    places = [_place(run, number) for number, run in enumerate(given, 1)]
    twice = [str(place) for place in places if places.count(place) > 1]
    if twice:
        raise ArgumentError(f"the run {twice[0]!r} is named more than once")
    read = [run if isinstance(run, Comparison) else journal.read(Path(run).expanduser())
            for run in given]  # fmt: skip
    return SideBySide(dict(zip(_short_names(places), read, strict=True)))


def _place(run: Comparison | str | os.PathLike[str], number: int) -> Path:
    if not isinstance(run, Comparison):
        return Path(run).expanduser().resolve()
    return Path(run.folder).resolve() if run.folder else Path(f"comparison {number}")


def _short_names(places: list[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    for count in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-count:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("unreachable: the paths differ")


# --- the table ------------------------------------------------------------------------------


def readable_runs(joined: pd.DataFrame) -> ReadableTable:
    """Return a joined table as people read it; each run's shares are of its own reference."""
    parts = {name: readable(frame) for name, frame in joined.groupby(RUN, sort=False)}
    notes: dict[str, list[str]] = {}
    for name, part in parts.items():
        for sentence in part.notes:
            notes.setdefault(sentence, []).append(name)
    return ReadableTable(
        headers=(RUN, *HEADERS),
        rows=tuple((name, *row) for name, part in parts.items() for row in part.rows),
        reasons=tuple(reason for part in parts.values() for reason in part.reasons),
        notes=tuple(
            sentence if len(of) == len(parts) else f"{', '.join(of)}: {sentence}"
            for sentence, of in notes.items()
        ),
        labels=tuple(label for part in parts.values() for label in part.labels),
        names=tuple(name for part in parts.values() for name in part.names),
    )


# --- what differs ---------------------------------------------------------------------------


def _conditions_told(runs: Mapping[str, Comparison]) -> list[str]:
    facts = {name: _facts(comparison) for name, comparison in runs.items()}
    other = [field for field in _WORDS if len({fact[field] for fact in facts.values()}) > 1]
    told = [_told(field, {name: fact[field] for name, fact in facts.items()}) for field in other]
    told += _files_told(runs)
    if not told:
        told.append("These runs were made under the same conditions.")
    if any(field in _OF_SECONDS for field in other):
        told.append("So seconds can be compared within a run, not from one to the other.")
    return told


def _facts(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """Return every value of each field: a run that was gone on with may have several."""
    workload = {f.name: getattr(comparison.workload, f.name) for f in dataclasses.fields(Workload)}
    where = [t.conditions for t in comparison.trials if t.conditions is not None]
    found: dict[str, list[Any]] = {
        name: list(value) if name in ("prompts", "seeds") else [value]
        for name, value in workload.items()
    }
    for field in dataclasses.fields(Conditions):
        found[field.name] = [getattr(conditions, field.name) for conditions in where]
    return {name: tuple(dict.fromkeys(map(_said, values))) for name, values in found.items()}


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return "{}x{}".format(*value) if isinstance(value, tuple) else str(value)


def _told(field: str, values: dict[str, tuple[str, ...]]) -> str:
    word = _WORDS[field]
    if field not in ("prompts", "seeds"):
        each = (
            f"{units.format_list(list(value)) if value else 'not known'} in {name}"
            for name, value in values.items()
        )
        return f"{word}: {', '.join(each)}."
    shared = set.intersection(*(set(value) for value in values.values()))
    each = (f"{len(value)} in {name}" for name, value in values.items())
    return f"{word}: {', '.join(each)}, {len(shared) or 'none'} in all of them."


def _files_told(runs: Mapping[str, Comparison]) -> list[str]:
    """Say where a model of one name held other weights."""
    (first, known), *rest = runs.items()
    told = []
    for name, comparison in rest:
        same_name = comparison.workload.model == known.workload.model
        if same_name and comparison.content is not None and known.content is not None:
            said = other_content(known.content, comparison.content)
            if said:
                told.append(f"The model wasn't the same in {first} and {name}: {said}.")
    return told


def _pictures_told(runs: Mapping[str, Comparison]) -> list[str]:
    """Say whether the unquantized pictures, which quality is told against, are the same."""
    if any(comparison.reference is None for comparison in runs.values()):
        return []
    (first, known), *rest = runs.items()
    told = []
    for name, comparison in rest:
        apart = _apart(known, comparison)
        if apart is None:
            told.append(f"{first} and {name} have no unquantized picture in common.")
        elif apart == float("inf"):
            told.append(f"The unquantized pictures of {first} and {name} are the same.")
        else:
            told.append(
                f"The unquantized pictures of {first} and {name} differ "
                f"({units.format_decibels(apart)}), so PSNR and SSIM are against other pictures."
            )
    return told


def _apart(one: Comparison, other: Comparison) -> float | None:
    """Return decibels between two references' pictures of the same prompts and seeds."""
    ours, theirs = one.reference, other.reference
    assert ours is not None and theirs is not None
    found = []
    for place in one.workload.pairs:
        mine = one.images.get((ours.label, *place))
        its = other.images.get((theirs.label, *place))
        if mine is not None and its is not None and mine.size == its.size:
            found.append(picture_psnr(mine, its))
    return mean_decibels(found) if found else None


# --- the grid -------------------------------------------------------------------------------


def _label(label: str, run: str) -> str:
    return f"{label} · {run}"


def _joined_content(runs: Mapping[str, Comparison], differences: tuple[str, ...]) -> GridContent:
    contents = {name: grid_content(comparison) for name, comparison in runs.items()}
    trials = {t.label: t for comparison in runs.values() for t in comparison.trials}
    order = {trial.label: place for place, trial in enumerate(in_grid_order(trials.values()))}
    columns = [(c, name) for name, content in contents.items() for c in content.columns]
    columns.sort(key=lambda column: order[column[0].label])  # runs keep their order
    footers = list(dict.fromkeys(content.footer for content in contents.values()))
    said = [sentence.rstrip(".") for sentence in differences]
    return GridContent(
        columns=tuple(_of_run(column, name) for column, name in columns),
        rows=_joined_rows(contents.values()),
        captions={
            (_label(label, name), prompt, seed): words
            for name, content in contents.items()
            for (label, prompt, seed), words in content.captions.items()
        },
        footer=" · ".join((*said, *(footers if len(footers) == 1 else ()))),
    )


def _of_run(column: GridColumn, run: str) -> GridColumn:
    rest = f"{run}: {column.rest}" if column.rest else run
    return dataclasses.replace(column, label=_label(column.label, run), rest=rest)


def _joined_rows(contents: Iterable[GridContent]) -> tuple[GridRow, ...]:
    """Return all rows, those of a prompt together."""
    seeds: dict[str, dict[int, None]] = {}
    for content in contents:
        for row in content.rows:
            seeds.setdefault(row.prompt, {})[row.seed] = None
    return tuple(
        GridRow(prompt, seed, first=number == 0)
        for prompt, some in seeds.items()
        for number, seed in enumerate(some)
    )
