"""``quantolab doctor --card``: what is promised of an accelerator, held against the one here.

The demo model, so that nothing is fetched, and every way of getting it onto the card. The table is
made to be sent to others: it holds what the card is and did, and nothing of whose it is.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..demo import PROMPTS, SIZE
from ..devices import check_device
from ..errors import JobFailed, one_of
from ..files.whole import scratch_folder
from ..models.source import find_model
from ..planning.needs import CONTEXT_BYTES
from ..processes.children import Children
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..records import FAILED, OK
from ..run.ways import OFFLOADS, RESIDENT
from ..text_tables import GAP, text_columns
from ..units import ABSENT, format_bytes, format_decibels, format_seconds
from ..weights import WORDS
from .jobs import CardFacts, CardJob
from .kinds import CARD
from .tools import check_tools

if TYPE_CHECKING:
    import pandas

STEPS, ROUNDS = 4, 6
"""Denoising steps of a picture, and how often each recipe is timed in each way."""

FULL_SIZE = "FLUX.1-dev"
"""Whose denoiser runs at its true size, with random weights, where that is asked for."""

PICTURE, STEP = "picture", "step"
"""What a row's seconds are of: a picture of the demo model, or a step of that denoiser alone."""

_DEMO = "demo"
_FACTS = (
    "card", "memory_bytes", "free_bytes", "capability", "runtime", "driver", "torch", "diffusers",
    "transformers", "quanto", "quantolab", "python", "system", "nvcc", "ninja",
)  # fmt: skip
_COLUMNS = (
    "model", "unit", "recipe", "offload", "tiled", "fits", "predicted_bytes", "context_bytes",
    "peak_bytes", "reserved_bytes", "load_peak_bytes", "free_before_bytes",
    "weight_bytes", "predicted_weight_bytes", "kernel", "seconds", "load_seconds", "psnr_db",
    "status", "reason", "device", "compute_dtype", *_FACTS,
)  # fmt: skip


def card_table(
    weights: Iterable[Recipe | str] = WORDS,
    ways: Iterable[str] = OFFLOADS,
    *,
    device: str = "auto",
    dtype: str = "bfloat16",
    full_size: bool = False,
) -> pandas.DataFrame:
    """Return what an accelerator did, beside what the plan says that it does.

    Parameters
    ----------
    weights : iterable of Recipe or str
        Recipes of the demo model.
    ways : iterable of str
        How they get onto the card: of ``"none"``, ``"model"``, ``"group"``, ``"sequential"``.
    device : str
        ``"auto"``, ``"cuda"``, ``"xpu"``, or one of several: ``"cuda:1"``.
    dtype : str
        Compute dtype.
    full_size : bool
        Whether steps of FLUX.1-dev's denoiser are measured as well, with random weights: it takes
        24 GB of the card unquantized.

    Returns
    -------
    pandas.DataFrame
        A row a recipe and way, and what the card is in each. ``predicted_bytes`` is the plan's
        figure for that way, in which ``context_bytes`` stand for the accelerator's own context;
        ``fits`` whether that much was free. ``peak_bytes`` and ``reserved_bytes`` are those of
        torch's allocator, which doesn't count the context; ``seconds`` the median of a `unit`.
        No text in it names the machine, who uses it, or a place on it.

    Raises
    ------
    ArgumentError
        If a recipe, way, device or dtype isn't known.
    UnsupportedError
        If there is no accelerator with a memory of its own.
    """
    import pandas as pd

    recipes = tuple(dict.fromkeys(map(as_recipe, weights)))
    ways = tuple(dict.fromkeys(one_of("offload", way, OFFLOADS) for way in ways))
    check_device(device)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    facts = _look(CardJob(device, find_model(_DEMO), recipes, SIZE, dtype))
    rows = [row for way in ways for row in _pictures(facts, recipes, way, dtype)]
    if full_size:
        rows += _steps(facts, recipes, dtype)
    common = {"device": facts.device, "compute_dtype": dtype, **_facts(facts)}
    rows = [{**row, **common, "reason": _nameless(row.get("reason"))} for row in rows]
    return pd.DataFrame(rows, columns=_COLUMNS, dtype=object)


def broken_promises(table: pandas.DataFrame) -> list[str]:
    """Return a sentence for each row that fits by the plan and yet didn't end well."""
    return [
        f"{row['recipe']} by --offload {row['offload']} fits by the plan "
        f"({format_bytes(row['predicted_bytes'])}), yet it is {row['status']}: {row['reason']}"
        for row in table.to_dict("records")
        if row["fits"] is True and row["status"] != OK
    ]


def text_card(table: pandas.DataFrame) -> str:
    """Return the table as text: what the card is, a line a row, and what is broken."""
    rows = table.to_dict("records")
    facts = rows[0]
    head = [
        f"{facts['card']} ({facts['device']}): {format_bytes(facts['free_bytes'])} free of "
        f"{format_bytes(facts['memory_bytes'])}",
        ", ".join(
            str(said)
            for said in (
                facts["capability"],
                facts["runtime"],
                facts["driver"] and f"driver {facts['driver']}",
                f"torch {facts['torch']}",
                f"quanto {facts['quanto']}",
                f"nvcc {facts['nvcc'] or 'missing'}",
                f"ninja {facts['ninja'] or 'missing'}",
            )
            if said
        ),
    ]
    return "\n".join([*head, "", *_lines(rows), "", *_judgement(table)])


def _judgement(table: pandas.DataFrame) -> list[str]:
    broken = broken_promises(table)
    said = [
        f"Predicted: with {format_bytes(CONTEXT_BYTES)} for the card's own context, which peak, "
        "reserved and load peak don't hold."
    ]
    if broken:
        return [*said, "Broken:", *(GAP + line for line in broken)]
    return [*said, "All that fits by the plan ended well."]


def _lines(rows: list[dict]) -> list[str]:
    cells = [
        ("recipe", "offload", "fits", "predicted", "peak", "reserved", "load peak", "seconds",
         "PSNR", "status", "kernel"),
    ]  # fmt: skip
    for row in rows:
        sizes = ("predicted_bytes", "peak_bytes", "reserved_bytes", "load_peak_bytes")
        cells.append((
            row["recipe"] if row["unit"] == PICTURE else f"{row['recipe']}, {FULL_SIZE}",
            row["offload"],
            ABSENT if row["fits"] is None else "yes" if row["fits"] else "no",
            *(format_bytes(row[name]) for name in sizes),
            format_seconds(row["seconds"]),
            format_decibels(row["psnr_db"]),
            row["status"],
            row["kernel"] or ABSENT,
        ))  # fmt: skip
    return text_columns(cells, "lllrrrrrrll", rule=True)


# --- what is measured -----------------------------------------------------------------------


def _look(asked: CardJob) -> CardFacts:
    with scratch_folder("card") as folder, Children(fork=False) as children:
        return children.run(CARD, asked, folder=folder)


def _pictures(facts: CardFacts, recipes: tuple[Recipe, ...], way: str, dtype: str) -> list[dict]:
    """Return the rows of one way: a comparison of the demo model by it."""
    from ..experiments.comparing import compare
    from ..report.tables import results_table

    planned = {recipe.label: _planned(facts, recipe.label, way) for recipe in recipes}
    try:
        done = compare(
            _DEMO, recipes, PROMPTS[:1], steps=STEPS, size=SIZE, dtype=dtype, device=facts.device,
            repeats=ROUNDS, offload=way,
        )  # fmt: skip
    except JobFailed as error:  # what comes before the recipes didn't work
        why = {"status": FAILED, "reason": str(error)}
        return [{**row, **why} for row in planned.values()]
    rows = []
    for trial, row in zip(done.trials, _plain(results_table(done)), strict=True):
        names = [name for name in _COLUMNS if name in row and name not in ("model", "device")]
        measured = {name: row[name] for name in names}
        rows.append({
            **planned[trial.label], **measured, "offload": way, "tiled": trial.tiled,
            "seconds": row["latency_seconds"],
        })  # fmt: skip
    return rows


def _planned(facts: CardFacts, label: str, way: str) -> dict:
    """Return what is known of a row before anything runs."""
    need = facts.needs.get(label)
    needed = None if need is None else need.resident if way == RESIDENT else getattr(need, way)
    return {
        "model": _DEMO,
        "unit": PICTURE,
        "recipe": label,
        "offload": way,
        "predicted_bytes": needed,
        "context_bytes": CONTEXT_BYTES,
        "fits": None if needed is None else needed <= facts.free_bytes,
    }


def _steps(facts: CardFacts, recipes: tuple[Recipe, ...], dtype: str) -> list[dict]:
    """Return rows of a denoiser at its true size, whose weights the card draws itself."""
    from ..experiments.full_size import full_size_table
    from ..telling import say_line

    return step_rows(
        full_size_table(
            FULL_SIZE, recipes, dtype=dtype, device=facts.device, way=None, tell=say_line
        )
    )


def step_rows(table: pandas.DataFrame) -> list[dict]:
    """Return the rows of `full_size_table` under the names of this one."""
    return [
        {name: row[name] for name in _COLUMNS if name in row}
        | {
            "model": FULL_SIZE,
            "unit": STEP,
            "offload": RESIDENT,
            "tiled": False,
            "load_peak_bytes": row["fill_and_quantize_peak_bytes"],
            "load_seconds": row["fill_and_quantize_seconds"],
            "kernel": row["weight_classes"],
            "seconds": row["step_seconds"],
        }
        for row in _plain(table)
    ]


def _plain(table: pandas.DataFrame) -> list[dict]:
    """Return rows whose absent cells are None, whatever their columns' kind."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


# --- what the card is, and what is nobody's business -----------------------------------------


def _facts(facts: CardFacts) -> dict:
    found = dataclasses.asdict(facts)
    tools = {tool.name: _nameless(tool.version) for tool in check_tools()}
    more = {
        "card": facts.name,
        "quantolab": __version__,
        "nvcc": tools["nvcc"],
        "ninja": tools["ninja"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {name: more.get(name, found.get(name)) for name in _FACTS}


@dataclass(frozen=True)
class Identity:
    """What would say whose a machine is."""

    names: tuple[str, ...]
    """Of the machine and of who uses it."""
    places: tuple[str, ...]
    """Folders that any path on it may begin with, blanks in them or not."""


def own_identity() -> Identity:
    """Return that of this machine."""
    host = platform.node()
    names = {host, host.partition(".")[0], Path.home().name}
    names |= {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError):
        pass  # a user without a name
    places = {str(Path.home()), str(Path.cwd()), str(Path(__file__).parents[2])}
    return Identity(
        tuple(sorted((n for n in names if n), key=len, reverse=True)),
        tuple(sorted(places - {os.sep}, key=len, reverse=True)),
    )


_QUOTED = re.compile(r"(['\"])(?:~|[A-Za-z]:)?[\\/][^'\"\n]*\1")
_BARE = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[\\/][^\s'\",;:()]+")


def nameless(text: str, identity: Identity) -> str:
    """Return a text without paths, and without the names of a machine and its user.

    Parameters
    ----------
    text : str
        What a program said.
    identity : Identity
        What must not be in it.

    Examples
    --------
    >>> nameless("ann on box: /home/ann/x.so: no such file", Identity(("ann", "box"), ()))
    '… on …: …: no such file'
    """
    for place in identity.places:
        text = re.sub(re.escape(place) + r"[^\s'\",;:()]*", "…", text)
    text = _BARE.sub("…", _QUOTED.sub("…", text))
    for name in identity.names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text, flags=re.IGNORECASE)
    return text


def _nameless(text: str | None) -> str | None:
    return None if text is None else nameless(text, own_identity())
