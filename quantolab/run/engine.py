"""Recipes times a workload become trials: one child process each, told as events.

Nothing here draws, prints or knows who watches. torch is never imported in this process.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import (
    ArgumentError,
    BrokenModelError,
    Cancelled,
    JobFailed,
    JobOutOfMemory,
    QuantolabError,
    UnsupportedError,
    WorkersLost,
)
from ..files.whole import scratch_folder
from ..processes.children import STALL_SECONDS, Held
from ..records import (
    BORROWED,
    OK,
    Borrowed,
    Comparison,
    Trial,
    ended,
    picture_reference,
    speed_reference,
)
from ..units import format_percent
from ..weights import REFERENCE
from .asked import Request, counted_components
from .crew import Crew
from .identity import ContentWatch
from .jobs import IMAGES, Generated, Generation, RecipePlan, TrialFound
from .journal import (
    RUN_FILE,
    Journal,
    Place,
    check_folder,
    check_same,
    picture_path,
    read_asked,
    read_run,
    with_pictures,
)
from .judging import judged, version_notes
from .kinds import TRIAL
from .rounds import Lineup, is_open, missing_rounds, on_the_same_machine
from .session import Session, Watch
from .spread import Spread
from .ways import RESIDENT, Way

if TYPE_CHECKING:
    from distributed import Client
    from PIL import Image

_TELL_SECONDS = 0.2
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
    most_rounds: int | None = None,
    workers: int | str | Client | None = None,
) -> Comparison:
    """Run a checked request and return what came of it; see `compare`.

    While the first child imports torch, which takes seconds, `meanwhile` is called. With
    `most_rounds` trials are timed until every verdict stands, but in no more rounds than that.
    `workers`, as `check_workers` returns them, make the pictures, several trials at once.

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
    crew = None if workers is None else _crew(workers, request)
    borrowed = None if request.reference is None else request.reference.pictures()
    session = Session(
        request,
        total=pictures_each(request) * len(request.trials),
        watch=watch,
        cancel=cancel,
        stall_seconds=stall_seconds,
        crew=crew,
    )
    content = ContentWatch(request.source, cancel)
    if out is not None:
        comparison = _run(session, content, out, resume, meanwhile, most_rounds, borrowed)
    else:
        with scratch_folder("run") as temporary:
            comparison = _run(session, content, temporary, False, meanwhile, most_rounds, borrowed)
            comparison = dataclasses.replace(comparison, folder=None)
    session.enter_stage("finished")
    return comparison


def _crew(workers: int | str | Client, request: Request) -> Crew:
    carried, lora = request.workload.lora, None
    if carried is not None and request.lora is not None:
        lora = request.lora, carried.digest
    return Crew(workers, request.source, request.workload.device, lora)


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
    session: Session,
    content: ContentWatch,
    out,
    resume: bool,
    meanwhile: Callable[[], None],
    most_rounds: int | None,
    borrowed: tuple[Borrowed, dict[Place, Image.Image]] | None,
) -> Comparison:
    with session:
        content.begin()
        meanwhile()
        if session.crew is not None:  # they are told which content the model must have
            _wait_for(content, session)
            session.open_crew(content.content)
        plans, problem = _plans(session)
        _wait_for(content, session)
        other = session.request.reference
        unchecked = None if other is None else other.check_content(content.content)
        journal = Journal(
            out,
            session.request.workload,
            session.request.trials,
            resume=resume,
            content=content.content,
            borrowed=borrowed,
        )
        try:
            source = session.request.source
            said = (source.variant_sentence, session.way_note, session.dtype_note, unchecked)
            journal.notes = tuple(dict.fromkeys((*journal.notes, *filter(None, said))))
            journal.write(session.elapsed)
            if problem is None:
                _run_trials(session, journal, plans, content, most_rounds)
            else:
                _give_up(session, journal, _waiting(session, journal), "planning", problem)
            _judge_kept(session, journal)
            images = _read_pictures(session, journal)
            if session.crew is not None:
                journal.notes = tuple(dict.fromkeys((*journal.notes, *session.crew.refusals)))
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
    session: Session,
    journal: Journal,
    plans: dict[str, RecipePlan],
    content: ContentWatch,
    most_rounds: int | None,
) -> None:
    waiting = _that_can_be(session, journal, plans)
    again = _to_time_again(session, journal, waiting, most_rounds)
    _count(session, len(waiting), len(again))
    if not waiting and not again:
        return
    try:
        encoded = session.encode(journal.work)
    except (Cancelled, WorkersLost):
        raise
    except QuantolabError as error:
        _give_up(session, journal, waiting, "encoding the prompts", error)
        return
    # The reference first, whichever way it comes: it shows how much fits beside it.
    line = sorted([*again, *waiting], key=lambda trial: trial.label != REFERENCE)
    if session.crew is not None:
        _by_workers(session, session.crew, journal, line, again, encoded, content, most_rounds)
        return
    with Lineup(session, journal, most_rounds) as lineup:
        for number in range(len(line)):
            trial, work = line[number], journal.work / f"trial-{number}"
            session.enter_stage("loading", trial.label)
            if trial in again:
                held = _held_again(session, trial, encoded, work)
            else:
                trial, held = _made(session, journal, trial, encoded, work, content)
            if trial.label == REFERENCE and not (held is not None and trial.resident):
                line[number + 1 :] = _most_precise_first(line[number + 1 :])
            if held is not None:
                _take(session, journal, lineup, trial, held, line[number + 1 :])
        lineup.finish()


def _that_can_be(session: Session, journal: Journal, plans: dict[str, RecipePlan]) -> list[Trial]:
    """Return the trials to run; those that are known not to work are kept as unsupported."""
    waiting = []
    for trial in _waiting(session, journal):
        plan = plans[trial.recipe.label]
        planned = _planned(trial, plan)
        if plan.unsupported:  # known before anything is loaded
            _give_up(session, journal, [planned], "", UnsupportedError(plan.unsupported))
        else:
            waiting.append(planned)
    return waiting


def _by_workers(
    session: Session,
    crew: Crew,
    journal: Journal,
    line: list[Trial],
    again: list[Trial],
    encoded: Path | None,
    content: ContentWatch,
    most_rounds: int | None,
) -> None:
    """Have workers make the pictures of all trials at once; then time them, one at a time."""

    def keep(trial: Trial, work: Path) -> Trial:
        changed = content.changed()
        if changed is not None and trial.ok:
            reason = f"{changed} of the model was changed while the run went on"
            trial = _without_figures(ended(trial, ArgumentError(reason)))
        return _keep(session, journal, trial, work)

    spread = Spread(session, crew, journal, keep)
    alive = spread.make([trial for trial in line if trial not in again], encoded)
    _judge_kept(session, journal)
    spread.settle()
    session.doing = ()
    # The reference first: what isn't alive any more is loaded beside it.
    rest = [trial for trial in map(journal.done, [t.label for t in line]) if trial and trial.ok]
    if not any(trial.label == REFERENCE and trial.resident for trial in rest):
        rest = _most_precise_first(rest)
    with Lineup(session, journal, most_rounds) as lineup:
        for number, trial in enumerate(rest):
            session.enter_stage("loading", trial.label)
            held = alive.pop(trial.label, None)
            if held is None:
                work = journal.work / f"again-{number}"
                held = _held_again(session, trial, encoded, work)
            if held is not None:
                later = [t for t in rest[number + 1 :] if t.label not in alive]
                lineup.take(trial, held, later)
        lineup.finish()


def _take(
    session: Session,
    journal: Journal,
    lineup: Lineup,
    trial: Trial,
    held: Held[TrialFound],
    later: list[Trial],
) -> None:
    """Have a trial that is alive timed; the reference shows the noise floor first."""
    if trial.label == REFERENCE and trial.resident:
        _measure_floor(session, journal, held)
    lineup.take(trial, held, later)


def _most_precise_first(trials: list[Trial]) -> list[Trial]:
    """Return trials in the order in which they can stand in for a reference, eager ones first."""
    return sorted(trials, key=lambda t: (t.compiled, -(t.predicted_weight_bytes or 0)))


def _measure_floor(session: Session, journal: Journal, held: Held[TrialFound]) -> None:
    """Have the reference make its pictures once more with reordered sums, where it is compared."""
    if journal.floor or len(session.request.trials) < 2:
        return
    session.enter_stage("measuring the noise floor", REFERENCE)
    found = []
    for number in range(len(journal.workload.pairs)):
        try:
            answer = session.ask(held, Generation(number, reordered=True), Generated)
        except (Cancelled, WorkersLost):
            raise
        except (QuantolabError, OSError):
            return  # if its process has died, the next round says so
        if answer.quality is None:
            return
        found.append(answer.quality)
    journal.floor = tuple(found)


def _to_time_again(
    session: Session, journal: Journal, waiting: list[Trial], most_rounds: int | None
) -> list[Trial]:
    """Return trials of an earlier run that lack rounds, and the reference if any does."""
    reference = speed_reference(journal.trials)
    asked = {trial.label for trial in session.request.trials}
    new_reference = any(trial.label == REFERENCE for trial in waiting)
    again = [
        trial
        for trial in journal.trials
        if trial.ok
        and trial.label in asked
        and (
            new_reference
            or missing_rounds(trial, reference, journal)
            or (most_rounds and reference and is_open(trial, reference, most_rounds))
        )
    ]
    if (waiting or again) and reference is not None and reference not in again:
        again.insert(0, reference)
    return again


def _count(session: Session, waiting: int, again: int) -> None:
    """Say how many pictures are to be made, and how many there are."""
    work, known = session.request.workload, len(session.request.trials) - waiting
    each = pictures_each(session.request)
    session.done = each * known - again * work.repeats
    session.total = each * len(session.request.trials)
    if session.done < 0:  # the reference of an earlier run comes again beside the new ones
        session.total -= session.done
        session.done = 0


def _held_again(
    session: Session, trial: Trial, encoded: Path | None, work: Path
) -> Held[TrialFound] | None:
    """Return the process of a trial of an earlier run; None where it can't be timed here now."""
    way = Way(trial.offload or RESIDENT, trial.tiled)
    asked = session.trial_job(trial.recipe, encoded, trial.compiled, held=True, known=True, way=way)
    try:
        held = session.hold(TRIAL, asked, work)
    except (Cancelled, WorkersLost):
        raise
    except (QuantolabError, OSError):
        return None  # what it has stays
    if on_the_same_machine(trial, held.found):
        return held
    held.end()
    return None


def _made(
    session: Session,
    journal: Journal,
    planned: Trial,
    encoded: Path | None,
    work: Path,
    content: ContentWatch,
) -> tuple[Trial, Held[TrialFound] | None]:
    """Run a trial up to its pictures and keep them; return it, and its process if it is well."""
    before = session.done
    trial, held = _run_trial(session, planned, encoded, work)
    changed = content.changed()
    if changed is not None:
        reason = f"{changed} of the model was changed while the run went on"
        trial = ended(planned, ArgumentError(reason))
    session.done = before + len(journal.workload.pairs)
    trial = _keep(session, journal, trial, work)
    shutil.rmtree(work / IMAGES, ignore_errors=True)
    if held is not None and not trial.ok:
        held.end()
        held = None
    if held is None:
        session.done += journal.workload.repeats  # those that won't be made
    return trial, held


def _planned(trial: Trial, plan: RecipePlan) -> Trial:
    return dataclasses.replace(
        trial,
        predicted_weight_bytes=plan.predicted_weight_bytes,
        kept_layers=plan.kept_layers,
        components=plan.components,
    )


def _run_trial(
    session: Session, planned: Trial, encoded: Path | None, work: Path
) -> tuple[Trial, Held[TrialFound] | None]:
    asked = session.trial_job(planned.recipe, encoded, planned.compiled, held=True)
    try:
        held = session.hold(TRIAL, asked, work)
    except (Cancelled, WorkersLost):
        raise
    except JobOutOfMemory as error:
        way = session.after_out_of_memory(planned.recipe)
        if way is None:
            return ended(planned, error), None
        session.enter_stage(f"out of memory, so again with --offload {way.offload}", planned.label)
        return _run_trial(session, planned, encoded, work)
    except (QuantolabError, OSError) as error:
        return ended(planned, error), None
    names = {f.name for f in dataclasses.fields(Trial)}
    figures = {k: v for k, v in vars(held.found).items() if k in names}
    if session.request.workload.device != "cpu":
        figures |= {"offload": asked.way.offload, "tiled": asked.way.tiled}
    return dataclasses.replace(planned, status=OK, **figures), held


def _give_up(
    session: Session, journal: Journal, trials: list[Trial], step: str, error: QuantolabError
) -> None:
    """Keep all of some trials as ended by what came before them."""
    for trial in trials:
        trial = ended(trial, error, step)
        journal.add(trial, None, session.elapsed)
        session.tell(trial)


def _keep(session: Session, journal: Journal, trial: Trial, work: Path) -> Trial:
    """Judge a trial and keep it with its pictures; where that fails, without. Return it."""
    session.enter_stage("comparing the pictures", trial.label)
    made = work / IMAGES
    places = [made / f"{number:03d}.png" for number in range(len(journal.workload.pairs))]
    kept, step = trial, "judging the pictures"
    try:
        if trial.ok:
            kept = _compared(trial, places, session, journal, journal.done(REFERENCE))
        step = "keeping the pictures"
        journal.add(kept, made if trial.ok else None, session.elapsed)
    except _PICTURE_ERRORS as error:
        kept = _without_figures(ended(trial, error, step))
        journal.add(kept, None, session.elapsed)
    session.tell(kept)
    return kept


def _without_figures(trial: Trial) -> Trial:
    """Return a trial without what its child measured: a row that failed has no figures."""
    bare = Trial(trial.recipe, trial.status, trial.reason, trial.compiled)
    kept = ("predicted_weight_bytes", "kept_layers", "components")
    return dataclasses.replace(bare, **{name: getattr(trial, name) for name in kept})


def _judge_kept(session: Session, journal: Journal) -> None:
    """Judge trials against what came only later: their reference, or who stands in for it."""
    judge = picture_reference(journal.trials)
    for trial in journal.trials:
        if not trial.ok or _is_judged(trial, judge, journal):
            continue
        try:
            judged = _compared(trial, _places(journal, trial), session, journal, judge)
        except _PICTURE_ERRORS as error:
            judged = _without_figures(ended(trial, error, "judging the pictures"))
        if judged != trial:
            journal.judge(judged, session.elapsed)


def _is_judged(trial: Trial, judge: Trial | None, journal: Journal) -> bool:
    """Whether a trial has the quality that it should, or isn't to have one."""
    if journal.borrowed is not None:
        return trial.judged_by == journal.borrowed.folder and bool(trial.quality)
    if judge is None:
        return True
    if trial.label == judge.label:
        return not trial.quality
    return bool(trial.quality) and (trial.judged_by or REFERENCE) == judge.label


def _compared(
    trial: Trial,
    places: list[Path],
    session: Session,
    journal: Journal,
    judge: Trial | None,
) -> Trial:
    """Return a trial with the quality of its pictures, where there are others to compare with.

    Parameters
    ----------
    trial : Trial
        Which ended well.
    places : list of Path
        Its pictures.
    session, journal
        Of the run.
    judge : Trial or None
        Against whose pictures, unless the run has borrowed some.
    """
    from PIL import Image

    if journal.borrowed is None and judge is not None and judge.label == trial.label:
        return dataclasses.replace(trial, quality=(), judged_by=None)
    by = journal.borrowed or judge
    if by is None:
        return trial
    theirs, key, label = _judges(session, journal, by)
    if theirs is None:
        return trial
    quality = []
    for (prompt, seed), own in zip(journal.workload.pairs, places, strict=True):
        with Image.open(own) as ours:
            quality.append(judged(prompt, seed, ours, theirs[key, prompt, seed]))
    notes = (*trial.notes, *version_notes(trial, by), *_dtype_notes(journal))
    notes = tuple(dict.fromkeys(notes))
    return dataclasses.replace(trial, quality=tuple(quality), notes=notes, judged_by=label)


def _judges(
    session: Session, journal: Journal, by: Trial | Borrowed
) -> tuple[Mapping[Place, Image.Image] | None, str, str]:
    """Return pictures to judge by, their label among them, and where they come from."""
    if isinstance(by, Borrowed):
        return journal.theirs, BORROWED, by.folder
    return _pictures_of(by, session, journal) if by.ok else None, by.label, by.label


def _dtype_notes(journal: Journal) -> list[str]:
    """Say it where borrowed pictures were computed in another precision."""
    theirs, ours = journal.borrowed, journal.workload.dtype
    if theirs is None or theirs.dtype == ours:
        return []
    return [f"computed in {ours}, the reference in {theirs.dtype}: PSNR and SSIM hold that too"]


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
    images = dict(journal.theirs)
    for trial in journal.trials:
        images |= _pictures_of(trial, session, journal) or {}
    return images


def _places(journal: Journal, trial: Trial) -> list[Path]:
    pairs = enumerate(journal.workload.pairs)
    return [picture_path(journal.folder, trial, number, *pair) for number, pair in pairs]
