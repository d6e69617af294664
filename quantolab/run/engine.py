"""Recipes times a workload become trials: one child process each, told as events.

Nothing here draws, prints or knows who watches. torch is never imported in this process.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArgumentError, QuantolabError, UnsupportedError
from ..recipes import REFERENCE
from ..records import FAILED, OK, UNSUPPORTED, Comparison, Conditions, Timing, Trial
from .children import STALL_SECONDS, Cancelled
from .journal import Journal, check_folder, picture_path
from .request import Request
from .session import Session, Watch

if TYPE_CHECKING:
    from PIL import Image


def run_comparison(
    request: Request,
    *,
    out=None,
    resume: bool = False,
    watch: Watch = lambda progress: None,
    cancel: threading.Event | None = None,
    stall_seconds: float = STALL_SECONDS,
    meanwhile: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run a checked request and return what came of it; see `compare`.

    While the first child imports torch, which takes seconds, `meanwhile` is called.

    Raises
    ------
    Cancelled
        If `cancel` was set; finished trials are in the folder, if one was named.
    """
    if resume and out is None:
        raise ArgumentError("resume needs the folder (out) of the run to finish")
    temporary = None
    if out is not None:
        check_folder(out, resume=resume)
    else:
        temporary = out = tempfile.mkdtemp(prefix="quantolab-")
    try:
        session = Session(
            request,
            total=pictures_each(request) * len(request.trials),
            watch=watch,
            cancel=cancel,
            stall_seconds=stall_seconds,
        )
        with session:
            meanwhile()
            comparison = _run(session, out, resume)
        session.enter_stage("finished")
        return dataclasses.replace(comparison, folder=None) if temporary else comparison
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def pictures_each(request: Request) -> int:
    """Return how many pictures a trial makes: every one once, then the timed ones."""
    return len(request.workload.pairs) + request.workload.repeats


def _run(session: Session, out, resume: bool) -> Comparison:
    plans = session.plan()
    request = session.request
    journal = Journal(out, request.workload, request.trials, resume=resume)
    try:
        journal.write(session.elapsed)
        _run_trials(session, journal, plans)
        comparison = journal.write(session.elapsed)
        return dataclasses.replace(comparison, images=_read_pictures(comparison))
    finally:
        journal.close()


def _run_trials(session: Session, journal: Journal, plans: dict[str, dict]) -> None:
    # The reference first, whatever the order of the table: the others are judged against it.
    order = sorted(session.request.trials, key=lambda t: not t.recipe.is_reference)
    waiting = [t for t in order if journal.done(t.label) is None]
    each = pictures_each(session.request)
    session.done = before = each * (len(order) - len(waiting))
    encoded = session.encode(journal.work) if waiting else None
    for number, trial in enumerate(waiting):
        session.enter_stage("loading", trial.label)
        work = journal.work / f"trial-{number}"
        plan = plans[trial.recipe.label]
        planned = dataclasses.replace(
            trial,
            reason=None,
            predicted_weight_bytes=plan["predicted_weight_bytes"],
            kept_layers=tuple(plan["kept_layers"]),
            components=tuple(plan["components"]),
        )
        trial = _run_trial(session, planned, encoded, work)
        if trial.ok:
            trial = _judged(trial, work / "images", journal)
        session.done = before = before + each
        journal.add(trial, work / "images" if trial.ok else None, session.elapsed)
        shutil.rmtree(work, ignore_errors=True)
        session.tell(trial)


def _run_trial(session: Session, planned: Trial, encoded: Path | None, work: Path) -> Trial:
    try:
        value = session.job(session.trial_request(planned, encoded), work)
    except Cancelled:
        raise
    except UnsupportedError as error:
        return dataclasses.replace(planned, status=UNSUPPORTED, reason=str(error))
    except QuantolabError as error:
        return dataclasses.replace(planned, status=FAILED, reason=str(error))
    return dataclasses.replace(
        planned,
        status=OK,
        weight_bytes=value["weight_bytes"],
        file_bytes=value["file_bytes"],
        peak_bytes=value["peak_bytes"],
        load_seconds=value["load_seconds"],
        compile_seconds=value["compile_seconds"],
        timing=Timing(
            tuple(value["timing"]["samples"]),
            tuple(value["timing"]["warmup"]),
            value["timing"]["other_load"],
        ),
        notes=tuple(value["notes"]),
        conditions=Conditions(**value["conditions"]),
    )


def _judged(trial: Trial, made: Path, journal: Journal) -> Trial:
    """Return the trial with the quality of its pictures against the reference's."""
    from PIL import Image

    from ..measure.quality import picture_quality
    from ..records import PictureQuality

    reference = journal.done(REFERENCE)
    if reference is None or not reference.ok or trial.label == REFERENCE:
        return trial
    quality = []
    for number, (prompt, seed) in enumerate(journal.workload.pairs):
        path = picture_path(journal.folder, REFERENCE, number, prompt, seed)
        with Image.open(path) as theirs, Image.open(made / f"{number:03d}.png") as ours:
            quality.append(PictureQuality(prompt, seed, *picture_quality(ours, theirs)))
    return dataclasses.replace(trial, quality=tuple(quality))


def _read_pictures(comparison: Comparison) -> dict[tuple[str, str, int], Image.Image]:
    from . import journal

    return journal.read(comparison.folder).images
