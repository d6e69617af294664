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
from ..measure.frames import frame_size
from ..measure.other_load import BUSY
from ..measure.quality import decibel_interval, error_multiple, mean_decibels
from ..measure.ratios import (
    MARGIN,
    NO_DIFFERENCE,
    NOT_DECIDED,
    Ratio,
    ratio_of,
    rounds_to_go,
    verdict_words,
)
from ..measure.statistics import LEAST_SAMPLES, median_interval
from ..records import (
    ALONE,
    OK,
    PAIRS,
    Comparison,
    Trial,
    Workload,
    speed_reference,
)
from ..text_tables import GAP, column_widths, markdown_columns, table_width, text_line
from ..weights import HOME, REFERENCE, backends_of, in_order, is_word

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
    "speedup_low", "speedup_high", "more_rounds", "timed", "speed_reference",
    "psnr_low_db", "psnr_high_db", "identical_pictures", "pictures", "flip", "floor_multiple",
    "private_bytes",
    "reserved_bytes", "load_peak_bytes", "free_before_bytes", "encoded",
    "other_bytes", "backend", "backend_version", "kernel",
    "offload", "reference", "lora", "timed_by", "frames",
)  # fmt: skip
"""What follows them: verdicts, intervals, worst pictures, and the rest of the circumstances."""

_WHOLE = {
    "weight_bytes", "predicted_weight_bytes", "file_bytes", "peak_bytes", "repeats", "steps",
    "kept_layers", "threads", "more_rounds", "identical_pictures", "pictures", "private_bytes",
    "reserved_bytes", "load_peak_bytes", "free_before_bytes", "other_bytes", "frames",
}  # fmt: skip
_REAL = {
    "load_seconds", "latency_seconds", "latency_low_seconds", "latency_high_seconds", "speedup",
    "psnr_db", "ssim", "psnr_worst_db", "ssim_worst", "compile_seconds", "guidance", "other_load",
    "speedup_low", "speedup_high", "psnr_low_db", "psnr_high_db", "flip", "floor_multiple",
}  # fmt: skip
# Text columns in which "nothing" is a value of its own; in the others absent is None.
_EMPTY_IS_A_VALUE = {"skip", "components", "notes"}

# Conditions that must agree before one latency is divided by another.
_SAME_FOR_LATENCY = ("device_name", "threads", "torch")


@public
def results_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row a trial, failed ones too, with the columns of the contract first.

    Bytes and counts are ``Int64``, seconds, decibels and ratios floats, text is text; absent is
    ``<NA>``, NaN and None, never 0. `psnr_db` holds the decibels of the mean squared error over
    all pictures, `psnr_low_db` and `psnr_high_db` its 95 % interval over pictures from six on,
    `identical_pictures` how many equal the reference's; `ssim` and `flip` are means. All are
    absent for the reference itself. `floor_multiple` says how many times as far from the
    reference a recipe is as the reference itself with its sums in another order.

    `speedup` is the reference's latency over the recipe's, from ratios within rounds, with its
    95 % interval; `verdict` says what that shows: ``faster`` or ``slower`` where the interval lies
    beyond 1 %, ``no difference`` where it lies within, else ``not decided``, with about how many
    more rounds would (`more_rounds`). What was timed `alone` has the ratio of two medians and no
    verdict, and so have fewer than six rounds. `other_load`, the share of the processors' time
    that others took, and `other_bytes`, what other programs held at least of an accelerator's
    memory, withhold nothing: within a round they hit all alike. `encoded` says whether the prompts
    were encoded ``ahead``, once for all trials, or within the ``trial``.

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
    against = speed_reference(comparison.trials)  # once: there may be thousands of rows
    rows = [_row(trial, against, comparison) for trial in comparison.trials]
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
    said = zip(table["weights"], table["status"], table["compiled"], strict=True)
    for position, (weights, status, compiled) in enumerate(said):
        if weights == REFERENCE and status == OK and not _true(compiled):
            return position
    return None


# --- one trial as one row -------------------------------------------------------------------


def _row(trial: Trial, against: Trial | None, comparison: Comparison) -> dict[str, Any]:
    return {
        "recipe": trial.label,
        "name": trial.name,
        "weights": trial.recipe.weights_label,
        "skip": ", ".join(trial.recipe.kept),
        "components": ", ".join(trial.components or trial.recipe.named_components),
        "backend": ", ".join(backends_of(trial.recipe.words)) or None,
        "backend_version": _backend_version(trial),
        "kernel": trial.kernel,
        "status": trial.status,
        "reason": trial.reason,
        "weight_bytes": trial.weight_bytes,
        "predicted_weight_bytes": trial.predicted_weight_bytes,
        "file_bytes": trial.file_bytes,
        "peak_bytes": trial.peak_bytes,
        "private_bytes": trial.private_bytes,
        "reserved_bytes": trial.reserved_bytes,
        "load_peak_bytes": trial.load_peak_bytes,
        "free_before_bytes": trial.free_before_bytes,
        "load_seconds": trial.load_seconds,
        "compiled": trial.compiled,
        "compile_seconds": trial.compile_seconds,
        "encoded": trial.encoded,
        "kept_layers": len(trial.kept_layers) if trial.ok else None,
        "notes": "; ".join(trial.notes),
        "offload": trial.offload,
        **_latency_cells(trial, against),
        **_quality_cells(trial, comparison),
        **_workload_cells(comparison.workload, trial),
        **_condition_cells(trial),
    }


def _backend_version(trial: Trial) -> str | None:
    """Return the version of what quantized; earlier runs kept only Quanto's, for all trials."""
    if trial.backend_version or backends_of(trial.recipe.words) != (HOME,):
        return trial.backend_version
    return trial.conditions.quanto if trial.conditions is not None else None


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
        "other_bytes": trial.timing.other_bytes,
        "timed": trial.timing.timed,
        "timed_by": _timed_by(trial),
    }
    if reference is None or reference.timing is None or not reference.timing.samples:
        return cells
    if not (trial.resident and _comparable(trial, reference)):
        return cells
    cells["speed_reference"] = reference.label
    cells["speedup"] = statistics.median(reference.timing.samples) / median
    ratio = None if trial is reference else ratio_of(reference.timing, trial.timing)
    return cells if ratio is None else cells | _ratio_cells(ratio)


def _timed_by(trial: Trial) -> str | None:
    """Return the device that a trial was timed on; of a CPU as much of it as it used."""
    where = trial.timed_under
    if where is None:
        return None
    on_cpu = trial.offload is None
    threads = f" ({units.format_count(where.threads, 'thread')})" if on_cpu else ""
    return where.device_name + threads


def _ratio_cells(ratio: Ratio) -> dict[str, Any]:
    return {
        "speedup": 1 / ratio.middle,
        "speedup_low": None if ratio.high is None else 1 / ratio.high,
        "speedup_high": None if ratio.low is None else 1 / ratio.low,
        "verdict": ratio.verdict,
        "more_rounds": ratio.more_rounds,
    }


def _comparable(trial: Trial, reference: Trial) -> bool:
    """Whether two latencies may be divided: a run resumed on another machine mixes them."""
    ours, theirs = trial.timed_under, reference.timed_under
    if ours is None or theirs is None:
        return True
    return all(getattr(ours, name) == getattr(theirs, name) for name in _SAME_FOR_LATENCY)


def _quality_cells(trial: Trial, comparison: Comparison) -> dict[str, Any]:
    if not trial.quality or trial.label == comparison.judge:
        return {}
    psnr = [picture.psnr_db for picture in trial.quality]
    ssim = [picture.ssim for picture in trial.quality]
    flip = [picture.flip for picture in trial.quality if picture.flip is not None]
    low, high = decibel_interval(psnr) or (None, None)
    return {
        "psnr_db": mean_decibels(psnr),
        "psnr_low_db": low,
        "psnr_high_db": high,
        "ssim": math.fsum(ssim) / len(ssim),
        "flip": math.fsum(flip) / len(flip) if len(flip) == len(psnr) else None,
        "psnr_worst_db": min(psnr),
        "ssim_worst": min(ssim),
        "identical_pictures": sum(math.isinf(decibels) for decibels in psnr),
        "pictures": len(psnr),
        "floor_multiple": error_multiple(psnr, [p.psnr_db for p in comparison.floor]),
        "reference": trial.judged_by or REFERENCE,
    }


def _workload_cells(workload: Workload, trial: Trial) -> dict[str, Any]:
    return {
        "model": workload.model,
        "device": workload.device,
        "compute_dtype": workload.dtype,
        "steps": workload.steps,
        "seeds": ", ".join(str(seed) for seed in workload.seeds),
        "size": "{}x{}".format(*_size(trial, workload)),
        "guidance": workload.guidance,
        "prompts": " | ".join(workload.prompts),
        "revision": workload.revision,
        "lora": None if workload.lora is None else workload.lora.text,
        "frames": workload.frames,
    }


def _size(trial: Trial, workload: Workload) -> tuple[int, int]:
    """Return width and height of a trial's pictures, or of a frame of its videos."""
    if trial.picture_size is None:
        return workload.size
    return frame_size(trial.picture_size, workload.frames)


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
        column = frame[name]
        values = [
            None if gone or value == "" else value
            for value, gone in zip(column.tolist(), column.isna(), strict=True)
        ]
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


HEADERS = ("recipe", "weights", "memory", "per picture", "speed", "PSNR", "floor", "SSIM", "status")
ALIGN = "lrrrrrrrl"
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
    names = list(table.columns)
    columns = [
        [None if gone else v for v, gone in zip(column.tolist(), column.isna(), strict=True)]
        for _, column in table.items()
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _readable_row(record: dict[str, Any], reference: dict[str, Any] | None) -> tuple[str, ...]:
    return (
        record.get("name") or record["recipe"],
        _bytes_and_share(record, reference),
        units.format_bytes(held_bytes(record)),
        units.format_interval(
            record["latency_seconds"],
            record["latency_low_seconds"],
            record["latency_high_seconds"],
        ),
        _speed(record, reference),
        quality_words(record),
        units.format_multiple(record.get("floor_multiple")),
        units.format_similarity(record["ssim"]),
        record["status"],
    )


def _bytes_and_share(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    text = units.format_bytes(record["weight_bytes"])
    if record["weight_bytes"] and reference and reference["weight_bytes"]:
        text += "  " + units.format_ratio(record["weight_bytes"] / reference["weight_bytes"])
    return text


def held_bytes(record: dict[str, Any]) -> int | None:
    """Return what a recipe holds by itself on a CPU, and the peak on an accelerator.

    A CPU's peak counts the libraries, which are far more than a small model's weights.
    """
    own = record.get("private_bytes")
    return own if own is not None and record["device"] == "cpu" else record["peak_bytes"]


def quality_words(record: dict[str, Any]) -> str:
    """Return a recipe's decibels with their interval: ``28.6 dB (24.8–32.5)``."""
    return units.format_decibels(
        record["psnr_db"], record.get("psnr_low_db"), record.get("psnr_high_db")
    )


def speed_words(record: dict[str, Any], *, short: bool = False) -> str | None:
    """Return the verdict on a recipe's speed as people read it; None if there is none.

    Parameters
    ----------
    record : dict
        Row of a results table, of `plain_rows`.
    short : bool
        Whether to leave out the margin, and how many more rounds would decide.
    """
    if short and record.get("verdict") == NO_DIFFERENCE:
        return NO_DIFFERENCE
    fast, low, high = (record.get(f"speedup{end}") for end in ("", "_low", "_high"))
    return verdict_words(
        record.get("verdict"),
        1 / fast if fast else None,
        1 / high if high else None,
        1 / low if low else None,
        None if short else record.get("more_rounds"),
    )


def is_doubtful(record: dict[str, Any], reference: dict[str, Any] | None) -> bool:
    """Return whether a row's seconds show nothing against the reference's, whatever they are."""
    if record is reference or reference is None or record["latency_seconds"] is None:
        return False
    return (record.get("verdict") or NOT_DECIDED) == NOT_DECIDED


def _speed(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    if record is reference:
        return "reference"
    return speed_words(record, short=True) or units.ABSENT


def _notes(records: list[dict[str, Any]], reference: dict[str, Any] | None) -> tuple[str, ...]:
    notes = [*_interval_notes(records), *speed_notes(records, reference), *_memory_notes(records)]
    for record in records:
        same, of = record.get("identical_pictures"), record.get("pictures")
        if same and of:
            notes.append(f"{record['recipe']}: {same} of {of} pictures identical.")
    if any(r.get("floor_multiple") is not None for r in records):
        notes.append(
            "Floor: how many times as far from the reference's pictures as its own with the same "
            "sums in another order."
        )
    notes += _offload_notes(records, reference)
    return (*notes, *_reference_notes(records, reference))


def _reference_notes(records: list[dict[str, Any]], reference: dict[str, Any] | None) -> list[str]:
    """Say whose pictures others were judged against, where that isn't the run's own reference."""
    judges = dict.fromkeys(r.get("reference") for r in records if r.get("reference"))
    own = {record["recipe"] for record in records}
    notes = [
        f"PSNR and SSIM are told against the unquantized pictures of another run: {judge}."
        for judge in judges
        if judge not in own
    ]
    stand_in = stands_in(records)
    if stand_in is not None:
        notes.append(
            f"The unquantized reference couldn't be had, so {stand_in}, the most precise that "
            "could, stands in for it: figures are told against that."
        )
    elif reference is None and not notes:
        notes.append("There is no unquantized reference, so no speed, PSNR or SSIM against it.")
    elif reference is None:
        notes.append("There is no unquantized recipe, so no speed against it.")
    return notes


def stands_in(records: list[dict[str, Any]]) -> str | None:
    """Return the recipe that others are judged against in place of a reference that failed.

    Parameters
    ----------
    records : list of dict
        Rows of a results table, of `plain_rows`.
    """
    quantized = {r["recipe"] for r in records if r["weights"] != REFERENCE and r["status"] == OK}
    judges = (record.get("reference") for record in records)
    return next((judge for judge in judges if judge in quantized), None)


def _offload_notes(records: list[dict[str, Any]], reference: dict[str, Any] | None) -> list[str]:
    """Say which rows were offloaded, and what speeds are told against then."""
    away = [f"{r['recipe']} ({r['offload']})" for r in records if _is_offloaded(r)]
    if not away:
        return []
    notes = [f"Offloaded, so no verdict on speed: {units.format_list(away)}."]
    against = next((r["speed_reference"] for r in records if r.get("speed_reference")), None)
    if reference is not None and _is_offloaded(reference) and against is not None:
        notes.append(f"Speeds are told against {against}, the most precise that was timed whole.")
    return notes


def _is_offloaded(record: dict[str, Any]) -> bool:
    return record.get("offload") not in (None, "none")


def _interval_notes(records: list[dict[str, Any]]) -> list[str]:
    if any(record["latency_low_seconds"] is not None for record in records):
        return ["In brackets: 95 % intervals."]
    return []


def speed_notes(records: list[dict[str, Any]], reference: dict[str, Any] | None) -> list[str]:
    """Return the sentences on why a speed has no verdict, and on what else the machine did."""
    notes = []
    timed = [record["repeats"] for record in records if record["repeats"]]
    if timed and min(timed) < LEAST_SAMPLES:
        notes.append(
            f"Too few rounds for intervals and verdicts on speed: {LEAST_SAMPLES} are needed."
        )
    more = [
        f"{rounds_to_go(record['more_rounds'])} for {record['recipe']}"
        for record in records
        if record.get("verdict") == NOT_DECIDED and record.get("more_rounds")
    ]
    if any(record.get("verdict") == NO_DIFFERENCE for record in records):
        notes.append(f"No difference: within {units.format_percent(MARGIN)}.")
    if more:
        notes.append(f"Not decided: it would take {units.format_list(more)}.")
    ways = {r.get("timed") or ALONE for r in records if r["repeats"] and r is not reference}
    if reference is not None and ALONE in ways and len(timed) > 1:
        notes.append("Timed one after the other, so speeds have no verdict.")
    if PAIRS in ways:
        notes.append("Timed in pairs with the reference: not all fit into memory together.")
    notes += _device_notes(records)
    busy = max((record.get("other_load") or 0.0 for record in records), default=0.0)
    if busy > BUSY:
        share = units.format_percent(busy, 0, "")
        notes.append(f"Other work took up to {share} of the processors' time.")
    held = max((record.get("other_bytes") or 0 for record in records), default=0)
    if held:
        size = units.format_bytes(held)
        notes.append(f"Other programs held {size} or more of the {_accelerator(records)}'s memory.")
    return notes


def _device_notes(records: list[dict[str, Any]]) -> list[str]:
    """Say which rows were timed by which device, where they weren't all by the same one."""
    rows: dict[str, list[str]] = {}
    for record in records:
        device = record.get("timed_by") or record.get("device_name")  # as earlier tables have it
        if record["repeats"] and device:
            rows.setdefault(device, []).append(record["recipe"])
    if len(rows) < 2:
        return []
    said = [f"{units.format_list(recipes)} by {name}" for name, recipes in rows.items()]
    return [f"Timed {'; '.join(said)}: speeds on different devices have no verdict."]


def _accelerator(records: list[dict[str, Any]]) -> str:
    return next(r["device_name"] or r["device"] for r in records if r.get("other_bytes"))


def _memory_notes(records: list[dict[str, Any]]) -> list[str]:
    """Say once what the libraries take, where memory is what each recipe holds by itself."""
    beside = [
        r["peak_bytes"] - r["private_bytes"]
        for r in records
        if r["device"] == "cpu" and r.get("private_bytes") and r["peak_bytes"]
    ]
    if not beside:
        return []
    size = units.format_bytes(max(0, round(statistics.median(beside))))
    return [
        f"Memory: what a recipe's process holds by itself; libraries and files take {size} more."
    ]


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
        word, rest = "+".join(in_order(filter(is_word, words))), core
    return word + label[len(core) :], rest


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown, reasons and notes under it, ready to paste.

    Examples
    --------
    >>> print(markdown_table(results_table(comparison)))        # doctest: +SKIP
    """
    text = readable(table)
    rows = [tuple(markdown_escaped(cell) for cell in row) for row in text.rows]
    lines = markdown_columns([text.headers, *rows], "l" + "r" * (len(HEADERS) - 1))
    below = [
        f"{row[0]} ({row[-1]}): {reason}"
        for row, reason in zip(text.rows, text.reasons, strict=True)
        if reason
    ]
    said = [f"{name}: {label}" for name, label in zip(text.names, text.labels, strict=True) if name]
    lines += ["", *(f"- {markdown_escaped(note)}" for note in (*said, *below, *text.notes))]
    return "\n".join(lines).rstrip() + "\n"


def markdown_escaped(cell: str) -> str:
    """Keep a glob's stars, a path's underscores and any bar from being read as Markdown."""
    for mark in "\\|*_<`":
        cell = cell.replace(mark, "\\" + mark)
    return " ".join(cell.split())


def text_table(table: pd.DataFrame, *, width: int = 120) -> str:
    """Return a table for the terminal.

    A failed recipe has its reason where the others have figures. A recipe whose name is too
    long for its column goes on in a line of its own.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table` or `read_table`.
    width : int
        Characters a line may have, 120 or more for the columns to fit in every case.

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
