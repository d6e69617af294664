"""Trials as one flat frame, a row a recipe, and that frame as text for people.

The frame is where notebooks, plots and files meet. What reads it takes one that came back from
a CSV file just as well, so yesterday's run is drawn without loading a model.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import units
from ..arguments import public
from ..errors import ArgumentError, ModelNotFoundError
from ..measure.other_load import BUSY
from ..measure.statistics import LEAST_SAMPLES, median_interval, verdict
from ..records import OK, Comparison, Trial, Workload
from ..text_tables import GAP, column_widths, markdown_columns, table_width, text_line
from ..weights import REFERENCE, WORDS

COLUMNS = (
    "recipe", "weights", "skip", "components", "status", "reason",
    "weight_bytes", "predicted_weight_bytes", "file_bytes", "peak_bytes",
    "load_seconds", "latency_seconds", "latency_low_seconds", "latency_high_seconds",
    "repeats", "speedup", "psnr_db", "ssim",
    "model", "device", "compute_dtype", "steps", "seeds", "size", "compiled",
    "torch", "diffusers", "quanto",
)  # fmt: skip
"""The columns of the contract, in its order."""

EXTRA_COLUMNS = (
    "verdict", "psnr_worst_db", "ssim_worst", "compile_seconds", "kept_layers", "notes",
    "guidance", "prompts", "revision", "other_load",
    "device_name", "threads", "platform", "python", "transformers", "peak_method", "name",
)  # fmt: skip
"""What follows them: worst pictures, and the rest of the circumstances."""

_WHOLE = {
    "weight_bytes", "predicted_weight_bytes", "file_bytes", "peak_bytes", "repeats", "steps",
    "kept_layers", "threads",
}  # fmt: skip
_REAL = {
    "load_seconds", "latency_seconds", "latency_low_seconds", "latency_high_seconds", "speedup",
    "psnr_db", "ssim", "psnr_worst_db", "ssim_worst", "compile_seconds", "guidance", "other_load",
}  # fmt: skip
# Text columns in which "nothing" is a value of its own; in the others absent is None.
_EMPTY_IS_A_VALUE = {"skip", "components", "notes"}

# Conditions that must agree before one latency is divided by another.
_SAME_FOR_LATENCY = ("device_name", "threads", "torch")


@public
def results_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row a trial, failed ones too, with the columns of the contract first.

    Bytes and counts are ``Int64``, seconds, decibels and ratios floats, text is text; absent is
    ``<NA>``, NaN and None, never 0. `psnr_db` and `ssim` are means over the prompts and seeds,
    absent for the reference itself; if any picture is identical to the reference's, its PSNR
    and with it the mean is infinite, and `psnr_worst_db` says how the worst one did.
    `speedup` is the reference's median latency over the recipe's; whether it is more than noise
    says `verdict`, absent where fewer than three repeats, conditions that differ, or other work on
    the machine (`other_load`, a share of the processors' time, over a tenth) allow none.

    Parameters
    ----------
    comparison : Comparison
        What `compare` returned or `load_comparison` read.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`, then `EXTRA_COLUMNS`, in the order of the trials.

    Examples
    --------
    >>> table = results_table(comparison)                       # doctest: +SKIP
    >>> table[["recipe", "weight_bytes", "psnr_db"]]            # doctest: +SKIP
    """
    reference = comparison.reference
    rows = [_row(trial, reference, comparison.workload) for trial in comparison.trials]
    return _typed(pd.DataFrame(rows, columns=[*COLUMNS, *EXTRA_COLUMNS], dtype=object))


def read_table(path: str | Path) -> pd.DataFrame:
    """Return a table that was written as CSV or Parquet, typed as `results_table` types it.

    Parameters
    ----------
    path : str or pathlib.Path
        ``results.csv`` or ``results.parquet``.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ArgumentError
        If it lacks columns of a results table.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"there is no table at {path}")
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        # As text first: seeds "0" would come back as a number, and a prompt "NA" as nothing.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    require_columns(frame, COLUMNS)
    return _typed(frame)


def require_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise `ArgumentError` naming the columns that a results table has and this one lacks."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ArgumentError(
            f"this is no results table: it lacks {', '.join(missing)} "
            "(results_table makes one from a comparison)"
        )


def reference_row(table: pd.DataFrame) -> int | None:
    """Return the position of the row the others are judged against; None if there is none."""
    for position, row in enumerate(table.to_dict("records")):
        if row["weights"] == REFERENCE and row["status"] == OK and not _true(row["compiled"]):
            return position
    return None


# --- one trial as one row -------------------------------------------------------------------


def _row(trial: Trial, reference: Trial | None, workload: Workload) -> dict[str, Any]:
    return {
        "recipe": trial.label,
        "name": trial.name,
        "weights": trial.recipe.weights_label,
        "skip": ", ".join(trial.recipe.kept),
        "components": ", ".join(trial.components or trial.recipe.named_components),
        "status": trial.status,
        "reason": trial.reason,
        "weight_bytes": trial.weight_bytes,
        "predicted_weight_bytes": trial.predicted_weight_bytes,
        "file_bytes": trial.file_bytes,
        "peak_bytes": trial.peak_bytes,
        "load_seconds": trial.load_seconds,
        "compiled": trial.compiled,
        "compile_seconds": trial.compile_seconds,
        "kept_layers": len(trial.kept_layers) if trial.ok else None,
        "notes": "; ".join(trial.notes),
        **_latency_cells(trial, reference),
        **_quality_cells(trial, reference),
        **_workload_cells(workload, trial),
        **_condition_cells(trial),
    }


def _latency_cells(trial: Trial, reference: Trial | None) -> dict[str, Any]:
    if trial.timing is None or not trial.timing.samples:
        return {}
    samples = trial.timing.samples
    median = statistics.median(samples)
    low, high = median_interval(samples) or (None, None)
    cells = {
        "latency_seconds": median,
        "latency_low_seconds": low,
        "latency_high_seconds": high,
        "repeats": len(samples),
        "other_load": trial.timing.other_load,
    }
    if reference is None or reference.timing is None or not reference.timing.samples:
        return cells
    if not _comparable(trial, reference):
        return cells
    cells["speedup"] = statistics.median(reference.timing.samples) / median
    if trial is not reference and not (_was_busy(trial) or _was_busy(reference)):
        cells["verdict"] = verdict(reference.timing, trial.timing)
    return cells


def _was_busy(trial: Trial) -> bool:
    """Whether other work took so much of the machine that latencies support no verdict."""
    return (trial.timing.other_load or 0.0) > BUSY


def _comparable(trial: Trial, reference: Trial) -> bool:
    """Whether two latencies may be divided: a run resumed on another machine mixes them."""
    ours, theirs = trial.conditions, reference.conditions
    if ours is None or theirs is None:
        return True
    return all(getattr(ours, name) == getattr(theirs, name) for name in _SAME_FOR_LATENCY)


def _quality_cells(trial: Trial, reference: Trial | None) -> dict[str, Any]:
    if not trial.quality or trial is reference:
        return {}
    psnr = [picture.psnr_db for picture in trial.quality]
    ssim = [picture.ssim for picture in trial.quality]
    return {
        "psnr_db": math.fsum(psnr) / len(psnr),
        "ssim": math.fsum(ssim) / len(ssim),
        "psnr_worst_db": min(psnr),
        "ssim_worst": min(ssim),
    }


def _workload_cells(workload: Workload, trial: Trial) -> dict[str, Any]:
    return {
        "model": workload.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "steps": workload.steps,
        "seeds": ", ".join(str(seed) for seed in workload.seeds),
        "size": "{}x{}".format(*(trial.picture_size or workload.size)),
        "guidance": workload.guidance,
        "prompts": " | ".join(workload.prompts),
        "revision": workload.revision,
    }


def _condition_cells(trial: Trial) -> dict[str, Any]:
    names = (
        "torch", "diffusers", "quanto",
        "device_name", "threads", "platform", "python", "transformers", "peak_method",
    )  # fmt: skip
    return {name: getattr(trial.conditions, name, None) for name in names}


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the types of a results table, whatever file it came from."""
    typed = {}
    for name in frame.columns:
        values = [None if pd.isna(v) or v == "" else v for v in frame[name]]
        if name in _WHOLE:
            typed[name] = pd.array(
                [None if v is None else int(float(v)) for v in values], dtype="Int64"
            )
        elif name in _REAL:
            typed[name] = pd.array(
                [math.nan if v is None else float(v) for v in values], dtype="float64"
            )
        elif name == "compiled":
            typed[name] = pd.array([_true(v) for v in values], dtype="bool")
        else:
            nothing = "" if name in _EMPTY_IS_A_VALUE else None
            values = [nothing if v is None else str(v) for v in values]
            # object, since pandas' own text type makes None a NaN, which is true in an `if`
            typed[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(typed)


def _true(value: object) -> bool:
    return str(value) == "True"


# --- the frame as text ----------------------------------------------------------------------


@dataclass(frozen=True)
class ReadableTable:
    """A results table as people read it: few columns, units, a dash for what is absent."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """One cell a header, one row a recipe."""
    reasons: tuple[str | None, ...]
    """Why a row has no figures; None for rows that have."""
    notes: tuple[str, ...]
    """Sentences that belong under the table."""
    labels: tuple[str, ...] = ()
    """What each row's recipe is, in full."""
    names: tuple[str | None, ...] = ()
    """What each row's recipe is called; None without a name."""


HEADERS = ("recipe", "weights", "peak", "per picture", "speed", "PSNR", "SSIM", "status")
ALIGN = "lrrrrrrl"
"""Names and words stand to the left (l), figures to the right (r)."""


def readable(table: pd.DataFrame) -> ReadableTable:
    """Return the cells that both text renderings show.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table` or `read_table`.

    Raises
    ------
    ArgumentError
        If it is no results table.
    """
    require_columns(table, COLUMNS)
    records = plain_rows(table)
    position = reference_row(table)
    reference = None if position is None else records[position]
    return ReadableTable(
        headers=HEADERS,
        rows=tuple(_readable_row(record, reference) for record in records),
        reasons=tuple(
            None if record["status"] == OK else record["reason"] or "no reason was recorded"
            for record in records
        ),
        notes=_notes(records, reference),
        labels=tuple(record["recipe"] for record in records),
        names=tuple(record.get("name") for record in records),
    )


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows with None for every kind of absence, so that formatting meets only one."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _readable_row(record: dict[str, Any], reference: dict[str, Any] | None) -> tuple[str, ...]:
    return (
        record.get("name") or record["recipe"],
        _bytes_and_share(record, reference),
        units.format_bytes(record["peak_bytes"]),
        units.format_interval(
            record["latency_seconds"],
            record["latency_low_seconds"],
            record["latency_high_seconds"],
        ),
        _speed(record, reference),
        units.format_decibels(record["psnr_db"]),
        units.format_similarity(record["ssim"]),
        record["status"],
    )


def _bytes_and_share(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    text = units.format_bytes(record["weight_bytes"])
    if record["weight_bytes"] and reference and reference["weight_bytes"]:
        text += "  " + units.format_ratio(record["weight_bytes"] / reference["weight_bytes"])
    return text


def _speed(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    if record is reference:
        return "reference"
    said = record.get("verdict") or units.ABSENT
    return said.removesuffix(" shown")  # "no difference" is as wide as "11.3x slower"


def _notes(records: list[dict[str, Any]], reference: dict[str, Any] | None) -> tuple[str, ...]:
    notes = []
    timed = [record["repeats"] for record in records if record["repeats"]]
    if timed and min(timed) >= LEAST_SAMPLES:
        notes.append("In brackets: 95 % interval of the median.")
    busy = max((record.get("other_load") or 0.0 for record in records), default=0.0)
    if busy > BUSY:
        share = units.format_percent(busy, 0, "")
        notes.append(f"No verdict on speed: other work took up to {share} of the processors' time.")
    if timed and min(timed) < LEAST_SAMPLES:
        notes.append(
            f"Too few repeats for intervals and verdicts on speed: {LEAST_SAMPLES} are needed."
        )
    if reference is None:
        notes.append("There is no unquantized reference, so no speed, PSNR or SSIM against it.")
    return tuple(notes)


def split_label(label: str, name: str | None = None) -> tuple[str, str]:
    """Return a recipe's short name and the rest of its label, or its name and all of it.

    Parameters
    ----------
    label : str
        As in the column `recipe`.
    name : str, optional
        As in the column `name`.

    Examples
    --------
    >>> split_label("int4 proj_out=none compiled")
    ('int4 compiled', 'proj_out=none')
    >>> split_label("transformer=int8 text_encoder_2=int4")
    ('int8+int4', 'transformer=int8 text_encoder_2=int4')
    """
    core = label.removesuffix(" compiled")
    if name:
        return name, core
    if ", keeping " in core or " in " in core:  # as 0.1.0 wrote it
        word = re.match(r"\w*", core).group()
        return word + label[len(core) :], core[len(word) :].lstrip(", ")
    word, _, rest = core.partition(" ")
    if "=" in word:
        words = {term.rpartition("=")[2] for term in core.split()} - {REFERENCE}
        word, rest = "+".join(w for w in WORDS if w in words), core
    return word + label[len(core) :], rest


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown, reasons and notes under it, ready to paste.

    Examples
    --------
    >>> print(markdown_table(results_table(comparison)))        # doctest: +SKIP
    """
    text = readable(table)
    rows = [tuple(_escaped(cell) for cell in row) for row in text.rows]
    lines = markdown_columns([text.headers, *rows], "l" + "r" * (len(HEADERS) - 1))
    below = [
        f"{row[0]} ({row[-1]}): {reason}"
        for row, reason in zip(text.rows, text.reasons, strict=True)
        if reason
    ]
    said = [f"{name}: {label}" for name, label in zip(text.names, text.labels, strict=True) if name]
    lines += ["", *(f"- {_escaped(note)}" for note in (*said, *below, *text.notes))]
    return "\n".join(lines).rstrip() + "\n"


def _escaped(cell: str) -> str:
    """Keep a glob's stars, a path's underscores and any bar from being read as Markdown."""
    for mark in "\\|*_<`":
        cell = cell.replace(mark, "\\" + mark)
    return " ".join(cell.split())


def text_table(table: pd.DataFrame, *, width: int = 100) -> str:
    """Return a table for the terminal.

    A failed recipe has its reason where the others have figures. A recipe whose name is too
    long for its column goes on in a line of its own.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table` or `read_table`.
    width : int
        Characters a line may have, 100 or more for the columns to fit in every case.

    Examples
    --------
    >>> print(text_table(results_table(comparison)))            # doctest: +SKIP
    """
    text = readable(table)
    figures = [row[1:] for row, reason in zip(text.rows, text.reasons, strict=True) if not reason]
    others = column_widths([HEADERS[1:], *figures])
    room = width - table_width([0, *others])
    names = [_named(*said, room) for said in zip(text.labels, text.names, strict=True)]
    widths = [max(len(name) for name, _ in [(HEADERS[0], ""), *names]), *others]
    lines = [text_line(HEADERS, widths, ALIGN), "-" * table_width(widths)]
    for row, reason, (name, rest) in zip(text.rows, text.reasons, names, strict=True):
        if reason:
            lines += _reason_lines(name, f"{row[-1]}: {reason}", widths[0], width)
        else:
            lines.append(text_line((name, *row[1:]), widths, ALIGN))
        lines += textwrap.wrap(rest, width, initial_indent=GAP, subsequent_indent=GAP)
    below = [line for note in text.notes for line in textwrap.wrap(note, width)]
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def _named(label: str, name: str | None, room: int) -> tuple[str, str]:
    """As much of the name, or the label, as there is room for, and the rest."""
    if name is None and len(label) <= room:
        return label, ""
    name, rest = split_label(label, name)
    if len(name) <= room or " " not in name:
        return name, rest
    word, _, compiled = name.partition(" ")
    return word, f"{compiled}, {rest}" if rest else compiled


def _reason_lines(name: str, reason: str, name_width: int, width: int) -> list[str]:
    return textwrap.wrap(
        reason,
        width,
        initial_indent=name.ljust(name_width) + GAP,
        subsequent_indent=" " * name_width + GAP,
    )
