"""What the process beside the kernel does for panels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..devices import device_name, free_bytes
from ..hub.watching import Fetching, watching
from ..loading.component import load
from ..loading.pipelines import load_pipeline
from ..models.source import find_model
from ..planning.skips import skip_report
from ..processes.jobs import Desk
from ..report.code import diffusers_code
from ..run import child
from ..run.jobs import PlanJob
from ..saved.doors import save
from ..saved.writing import check_replaceable
from .jobs import (
    Ahead,
    Fetched,
    FetchJob,
    Listed,
    ListJob,
    Saved,
    SaveJob,
    Script,
    ScriptJob,
)


def look_ahead(asked: PlanJob, desk: Desk) -> Ahead:
    """Return the plan of each recipe, and the device with its free memory."""
    planned = child.plan(asked, desk)
    return Ahead(planned, device_name(planned.device), free_bytes(planned.device))


def fetch(asked: FetchJob, desk: Desk) -> Fetched:
    """Bring a Hub model's weights into the local cache: a job, so that it can be ended."""

    def tell(now: Fetching) -> None:
        desk.stage(str(now), now.done, now.total)

    with watching(tell):
        found = find_model(asked.model, variant=asked.variant, revision=asked.revision)
    return Fetched(str(found.folder))


def list_layers(asked: ListJob, desk: Desk) -> Listed:
    """Return the rows of a model's `skip_report` without a skip list."""
    folder = asked.source.folder
    report = skip_report(folder, components=asked.components, dtype=asked.dtype)
    return Listed(tuple(report.to_dict("records")))


def write_script(asked: ScriptJob, desk: Desk) -> Script:
    """Return the plain Diffusers script of a recipe."""
    options = {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}
    return Script(diffusers_code(options.pop("recipe"), **options))


def save_model(asked: SaveJob, desk: Desk) -> Saved:
    """Quantize and save; nothing is loaded for a folder that can't be used."""
    folder = Path(asked.folder).expanduser().absolute()
    check_replaceable(folder)
    options: dict[str, Any] = {
        name: getattr(asked, name) for name in ("dtype", "device", "variant", "revision")
    }
    if len(asked.recipe.named_components) > 1:
        save(load_pipeline(asked.model, asked.recipe, **options), folder)
    else:
        component = next(iter(asked.recipe.named_components), None)
        save(load(asked.model, asked.recipe, component, **options), folder)
    disk_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Saved(str(folder), disk_bytes)
