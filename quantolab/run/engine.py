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

from ..errors import ArgumentError, Cancelled, QuantolabError, UnsupportedError
from ..measure.quality import picture_quality
from ..processes.children import STALL_SECONDS
from ..records import FAILED, OK, UNSUPPORTED, Comparison, PictureQuality, Trial
from ..weights import REFERENCE
from .asked import Request, counted_components
from .jobs import IMAGES, RecipePlan
from .journal import RUN_FILE, Journal, check_folder, picture_path, read_asked, read_run
from .kinds import TRIAL
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
        request = _with_earlier(request, Path(out).expanduser()) if resume else request
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


def _with_earlier(request: Request, folder: Path) -> Request:
    """Return the request with the components that an earlier run in the folder counts.

    Raises
    ------
    ArgumentError
        If it counts others: its bytes couldn't be compared with those of new trials.
    """
    if not (folder / RUN_FILE).exists():
        return request
    asked = [trial.recipe for trial in read_asked(folder)]
    before = counted_components(asked, request.source)
    request = dataclasses.replace(request, also=before)
    added = [name for name in request.components if name not in before]
    if added and any(trial.ok for trial in read_run(folder).trials):
        raise ArgumentError(
            f"{str(folder)!r} holds trials that count the bytes of {' and '.join(before)} alone, "
            f"and these recipes quantize {' and '.join(added)} too: their bytes couldn't be "
            "compared. Name another folder"
        )
    return request


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
        _judge_kept(session, journal)
        comparison = journal.write(session.elapsed)
        return dataclasses.replace(comparison, images=_read_pictures(comparison))
    finally:
        journal.close()


def _run_trials(session: Session, journal: Journal, plans: dict[str, RecipePlan]) -> None:
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
            predicted_weight_bytes=plan.predicted_weight_bytes,
            kept_layers=plan.kept_layers,
            components=plan.components,
        )
        trial = _run_trial(session, planned, encoded, work)
        if trial.ok:
            trial = _judged(trial, work / IMAGES, journal)
        session.done = before = before + each
        journal.add(trial, work / IMAGES if trial.ok else None, session.elapsed)
        shutil.rmtree(work, ignore_errors=True)
        session.tell(trial)


def _run_trial(session: Session, planned: Trial, encoded: Path | None, work: Path) -> Trial:
    asked = session.trial_job(planned.recipe, encoded, planned.compiled)
    try:
        found = session.job(TRIAL, asked, work)
    except Cancelled:
        raise
    except UnsupportedError as error:
        return dataclasses.replace(planned, status=UNSUPPORTED, reason=str(error))
    except QuantolabError as error:
        return dataclasses.replace(planned, status=FAILED, reason=str(error))
    figures = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return dataclasses.replace(planned, status=OK, **figures)


def _judged(trial: Trial, made: Path, journal: Journal) -> Trial:
    """Return the trial with the quality of its new pictures against the reference's."""
    places = [made / f"{number:03d}.png" for number in range(len(journal.workload.pairs))]
    return _compared(trial, places, journal)


def _judge_kept(session: Session, journal: Journal) -> None:
    """Judge trials of an earlier run whose reference came only now."""
    for trial in journal.trials:
        if trial.ok and not trial.quality and trial.label != REFERENCE:
            places = _places(journal, trial.label)
            judged = _compared(trial, places, journal)
            if judged.quality:
                journal.judge(judged, session.elapsed)


def _compared(trial: Trial, places: list[Path], journal: Journal) -> Trial:
    from PIL import Image

    reference = journal.done(REFERENCE)
    if reference is None or not reference.ok or trial.label == REFERENCE:
        return trial
    quality = []
    pairs = zip(journal.workload.pairs, places, _places(journal, REFERENCE), strict=True)
    for (prompt, seed), own, other in pairs:
        with Image.open(other) as theirs, Image.open(own) as ours:
            quality.append(PictureQuality(prompt, seed, *picture_quality(ours, theirs)))
    return dataclasses.replace(trial, quality=tuple(quality))


def _places(journal: Journal, label: str) -> list[Path]:
    pairs = enumerate(journal.workload.pairs)
    return [picture_path(journal.folder, label, number, *pair) for number, pair in pairs]


def _read_pictures(comparison: Comparison) -> dict[tuple[str, str, int], Image.Image]:
    from . import journal

    return journal.read(comparison.folder).images
