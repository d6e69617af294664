"""Recipes times a workload become trials: one child process each, told as events.

Nothing here draws, prints or knows who watches. torch is never imported in this process.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import (
    ArgumentError,
    BrokenModelError,
    Cancelled,
    JobFailed,
    QuantolabError,
    UnsupportedError,
    with_kind,
)
from ..files.whole import scratch_folder
from ..measure.quality import picture_quality
from ..processes.children import STALL_SECONDS
from ..records import FAILED, OK, UNSUPPORTED, Comparison, PictureQuality, Trial
from ..units import format_percent
from ..weights import REFERENCE
from .asked import Request, counted_components
from .identity import ContentWatch
from .jobs import IMAGES, RecipePlan
from .journal import (
    RUN_FILE,
    Journal,
    check_folder,
    check_same,
    picture_path,
    read_asked,
    read_run,
    with_pictures,
)
from .kinds import TRIAL
from .session import Session, Watch

if TYPE_CHECKING:
    from PIL import Image

_TELL_SECONDS = 0.2
_MAKE_PICTURES = ("torch", "diffusers", "transformers", "quanto", "device_name")
_PICTURE_ERRORS = (QuantolabError, OSError, ValueError, SyntaxError)  # PIL raises all of them


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
    if out is not None:
        check_folder(out, resume=resume)
        request = _with_earlier(request, Path(out).expanduser()) if resume else request
    session = Session(
        request,
        total=pictures_each(request) * len(request.trials),
        watch=watch,
        cancel=cancel,
        stall_seconds=stall_seconds,
    )
    content = ContentWatch(request.source, cancel)
    if out is not None:
        comparison = _run(session, content, out, resume, meanwhile)
    else:
        with scratch_folder("run") as temporary:
            comparison = _run(session, content, temporary, False, meanwhile)
            comparison = dataclasses.replace(comparison, folder=None)
    session.enter_stage("finished")
    return comparison


def _with_earlier(request: Request, folder: Path) -> Request:
    """Return the request with the components that an earlier run in the folder counts.

    Raises
    ------
    ArgumentError
        If it counts others: its bytes couldn't be compared with those of new trials. Or if it
        was asked for something else.
    """
    if not (folder / RUN_FILE).exists():
        return request
    earlier = read_run(folder)
    # Whether the model is the same its content tells, once that has been read.
    check_same(folder, earlier, request.workload, earlier.content)
    asked = [trial.recipe for trial in read_asked(folder)]
    before = counted_components(asked, request.source)
    request = dataclasses.replace(request, also=before)
    added = [name for name in request.components if name not in before]
    if added and any(trial.ok for trial in earlier.trials):
        raise ArgumentError(
            f"{str(folder)!r} holds trials that count the bytes of {' and '.join(before)} alone, "
            f"and these recipes quantize {' and '.join(added)} too: their bytes couldn't be "
            "compared. Name another folder"
        )
    return request


def pictures_each(request: Request) -> int:
    """Return how many pictures a trial makes: every one once, then the timed ones."""
    return len(request.workload.pairs) + request.workload.repeats


def _run(
    session: Session, content: ContentWatch, out, resume: bool, meanwhile: Callable[[], None]
) -> Comparison:
    with session:
        content.begin()
        meanwhile()
        plans, problem = _plans(session)
        _wait_for(content, session)
        journal = Journal(
            out,
            session.request.workload,
            session.request.trials,
            resume=resume,
            content=content.content,
        )
        try:
            journal.write(session.elapsed)
            if problem is None:
                _run_trials(session, journal, plans, content)
            else:
                _give_up(session, journal, _waiting(session, journal), "planning", problem)
            _judge_kept(session, journal)
            images = _read_pictures(session, journal)
            return dataclasses.replace(journal.write(session.elapsed), images=images)
        finally:
            journal.close()


def _plans(session: Session) -> tuple[dict[str, RecipePlan], JobFailed | None]:
    """Return the plans by recipe, or why there are none; what was asked wrongly is raised."""
    try:
        return session.plan(), None
    except JobFailed as error:
        return {}, error


def _wait_for(content: ContentWatch, session: Session) -> None:
    """Wait until the model's files have been read, which planning rarely takes as long as."""
    while not content.wait(_TELL_SECONDS):
        session.enter_stage(f"reading the model's files, {format_percent(content.share)}")


def _waiting(session: Session, journal: Journal) -> list[Trial]:
    """Return the trials to run, the reference first: the others are judged against it."""
    order = sorted(session.request.trials, key=lambda t: not t.recipe.is_reference)
    return [trial for trial in order if journal.done(trial.label) is None]


def _run_trials(
    session: Session, journal: Journal, plans: dict[str, RecipePlan], content: ContentWatch
) -> None:
    waiting = _waiting(session, journal)
    each = pictures_each(session.request)
    session.done = before = each * (len(session.request.trials) - len(waiting))
    if not waiting:
        return
    trials = [_planned(trial, plans[trial.recipe.label]) for trial in waiting]
    try:
        encoded = session.encode(journal.work)
    except Cancelled:
        raise
    except QuantolabError as error:
        _give_up(session, journal, trials, "encoding the prompts", error)
        return
    for number, planned in enumerate(trials):
        session.enter_stage("loading", planned.label)
        work = journal.work / f"trial-{number}"
        trial = _run_trial(session, planned, encoded, work)
        changed = content.changed()
        if changed is not None:
            reason = f"{changed} of the model was changed while the run went on"
            trial = _ended(planned, ArgumentError(reason))
        session.done = before = before + each
        _keep(session, journal, trial, work)
        shutil.rmtree(work, ignore_errors=True)


def _planned(trial: Trial, plan: RecipePlan) -> Trial:
    return dataclasses.replace(
        trial,
        predicted_weight_bytes=plan.predicted_weight_bytes,
        kept_layers=plan.kept_layers,
        components=plan.components,
    )


def _run_trial(session: Session, planned: Trial, encoded: Path | None, work: Path) -> Trial:
    asked = session.trial_job(planned.recipe, encoded, planned.compiled)
    try:
        found = session.job(TRIAL, asked, work)
    except Cancelled:
        raise
    except (QuantolabError, OSError) as error:
        return _ended(planned, error)
    figures = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return dataclasses.replace(planned, status=OK, **figures)


def _ended(trial: Trial, error: Exception, step: str = "") -> Trial:
    """Return a trial that didn't end well, with the reason, and the step if it isn't its own."""
    said = str(error) if isinstance(error, QuantolabError) else with_kind(error)
    status = UNSUPPORTED if isinstance(error, UnsupportedError) else FAILED
    return dataclasses.replace(trial, status=status, reason=f"{step}: {said}" if step else said)


def _give_up(
    session: Session, journal: Journal, trials: list[Trial], step: str, error: QuantolabError
) -> None:
    """Keep all of some trials as ended by what came before them."""
    for trial in trials:
        trial = _ended(trial, error, step)
        journal.add(trial, None, session.elapsed)
        session.tell(trial)


def _keep(session: Session, journal: Journal, trial: Trial, work: Path) -> None:
    """Judge a trial and keep it with its pictures; where that fails, without."""
    made = work / IMAGES
    places = [made / f"{number:03d}.png" for number in range(len(journal.workload.pairs))]
    kept, step = trial, "judging the pictures"
    try:
        if trial.ok:
            kept = _compared(trial, places, session, journal)
        step = "keeping the pictures"
        journal.add(kept, made if trial.ok else None, session.elapsed)
    except _PICTURE_ERRORS as error:
        kept = _without_figures(_ended(trial, error, step))
        journal.add(kept, None, session.elapsed)
    session.tell(kept)


def _without_figures(trial: Trial) -> Trial:
    """Return a trial without what its child measured: a row that failed has no figures."""
    bare = Trial(trial.recipe, trial.status, trial.reason, trial.compiled)
    kept = ("predicted_weight_bytes", "kept_layers", "components")
    return dataclasses.replace(bare, **{name: getattr(trial, name) for name in kept})


def _judge_kept(session: Session, journal: Journal) -> None:
    """Judge trials of an earlier run whose reference came only now."""
    for trial in journal.trials:
        if trial.ok and not trial.quality and trial.label != REFERENCE:
            try:
                judged = _compared(trial, _places(journal, trial), session, journal)
            except _PICTURE_ERRORS as error:
                judged = _without_figures(_ended(trial, error, "judging the pictures"))
            if judged != trial:
                journal.judge(judged, session.elapsed)


def _compared(trial: Trial, places: list[Path], session: Session, journal: Journal) -> Trial:
    """Return a trial with the quality of its pictures, where there is a reference to compare."""
    from PIL import Image

    reference = journal.done(REFERENCE)
    if reference is None or not reference.ok or trial.label == REFERENCE:
        return trial
    quality = []
    theirs = _pictures_of(reference, session, journal)
    if theirs is None:
        return trial
    for (prompt, seed), own in zip(journal.workload.pairs, places, strict=True):
        with Image.open(own) as ours:
            found = picture_quality(ours, theirs[REFERENCE, prompt, seed])
        quality.append(PictureQuality(prompt, seed, *found))
    notes = (*trial.notes, *_version_notes(trial, reference))
    return dataclasses.replace(trial, quality=tuple(quality), notes=tuple(dict.fromkeys(notes)))


def _version_notes(trial: Trial, reference: Trial) -> list[str]:
    """Say what else than the recipe tells two trials' pictures apart, when a run was resumed."""
    ours, theirs = trial.conditions, reference.conditions
    if ours is None or theirs is None:
        return []
    said = [
        f"{name} {getattr(ours, name)}, the reference's {getattr(theirs, name)}"
        for name in _MAKE_PICTURES
        if getattr(ours, name) != getattr(theirs, name)
    ]
    end = ": PSNR and SSIM hold that difference too"
    return [f"made with {'; '.join(said)}{end}"] if said else []


def _pictures_of(
    trial: Trial, session: Session, journal: Journal
) -> dict[tuple[str, str, int], Image.Image] | None:
    """Return a kept trial's pictures; where they are gone it has failed, and is made again."""
    alone = Comparison(journal.workload, (trial,), folder=str(journal.folder))
    try:
        return with_pictures(alone, {}).images
    except BrokenModelError:
        journal.judge(journal.without_pictures(trial), session.elapsed)
        return None


def _read_pictures(session: Session, journal: Journal) -> dict[tuple[str, str, int], Image.Image]:
    images = {}
    for trial in journal.trials:
        images |= _pictures_of(trial, session, journal) or {}
    return images


def _places(journal: Journal, trial: Trial) -> list[Path]:
    pairs = enumerate(journal.workload.pairs)
    return [picture_path(journal.folder, trial, number, *pair) for number, pair in pairs]
