"""The folder of a comparison, while it grows and afterwards: ``run.json`` and ``images/``.

Every file appears whole or not at all. A trial counts once ``run.json`` lists it, and its
pictures are in place before that, so a run that is killed loses at most the trial in progress.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import (
    ArgumentError,
    BrokenModelError,
    Cancelled,
    ModelNotFoundError,
    OutputError,
    nearest,
)
from ..files.json_objects import read_object
from ..files.whole import clear_leftovers, usable_folder, workplace, write_whole
from ..measure.frames import save_png
from ..plain_values import from_dict, to_dict
from ..recipes import Recipe, slug
from ..records import (
    BORROWED,
    FAILED,
    Borrowed,
    Comparison,
    ModelContent,
    PictureQuality,
    Trial,
    Workload,
)
from ..units import format_list
from . import RUNS
from .identity import differences, other_content
from .jobs import IMAGES
from .origin import origin_of, write_picture
from .sense import check_sense

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1
"""Version of ``run.json``. 1: first."""

RUN_FILE, WORK = "run.json", ".work"
LOGS = "logs"
"""Folder of what trials that failed elsewhere printed last."""

Place = tuple[str, str, int]
"""Label, prompt and seed: a key of `Comparison.images`."""


@dataclass(frozen=True)
class _Asked:
    recipe: Recipe
    compiled: bool


@dataclass(frozen=True)
class _Run:
    """What is read of ``run.json``; the rest of it is for people."""

    format: int
    workload: Workload
    trials: tuple[Trial, ...]
    wall_seconds: float | None
    asked: tuple[_Asked, ...] = ()
    content: ModelContent | None = None
    notes: tuple[str, ...] = ()
    floor: tuple[PictureQuality, ...] = ()
    borrowed: Borrowed | None = None


def save(comparison: Comparison, folder: str | os.PathLike, asked: tuple[Trial, ...] = ()) -> Path:
    """Write ``run.json`` and ``images/RECIPE/*.png`` of a comparison and return the folder.

    Parameters
    ----------
    comparison : Comparison
        What to keep.
    folder : path
        Where to.
    asked : tuple of Trial
        All trials that it asks for, where some haven't ended.

    Raises
    ------
    OutputError
        If the folder can't be written.
    """
    folder = usable_folder(folder)
    check_no_links(folder)
    for trial in comparison.trials:
        pictures = [
            comparison.images.get((trial.label, prompt, seed))
            for prompt, seed in comparison.workload.pairs
        ]
        if any(picture is None for picture in pictures):
            continue
        with workplace(folder) as made:
            for number, picture in enumerate(pictures):
                place = comparison.workload.pairs[number]
                write_picture(picture, made / f"{number:03d}.png", origin_of(
                    comparison.workload, trial.recipe, place, trial.conditions,
                    compiled=trial.compiled,
                ))  # fmt: skip
            keep_pictures(folder, trial, comparison.workload, made)
    if comparison.borrowed is not None:
        keep_borrowed(folder, comparison.workload, comparison.images)
    finished = len(comparison.trials) == len(asked or comparison.trials)
    write_run(folder, comparison, finished=finished, asked=asked)
    return folder


def read(folder: str | os.PathLike) -> Comparison:
    """Return the comparison that a folder holds, finished or not, with its pictures.

    They are decoded when they are looked at.

    Raises
    ------
    ModelNotFoundError
        If the folder holds no run.
    BrokenModelError
        If ``run.json`` can't be understood, or a picture that it lists is missing.
    """
    return with_pictures(read_run(Path(folder)), {}, decode=False)


def with_pictures(
    comparison: Comparison,
    known: Mapping[Place, Image.Image],
    *,
    size: tuple[int, int] | None = None,
    decode: bool = True,
) -> Comparison:
    """Return what `read_run` gave with the pictures of its trials.

    Parameters
    ----------
    comparison : Comparison
        From `read_run`.
    known : dict
        Pictures that were read before, and aren't read again.
    size : (int, int), optional
        Width and height that each must have, told by its head before it is unpacked.
    decode : bool
        Whether to decode them now, and not only when they are looked at.

    Raises
    ------
    BrokenModelError
        If a picture is missing, or has another size.
    """
    from .stored_pictures import decoded, stored_picture

    read_picture = decoded if decode else stored_picture
    folder, images = Path(comparison.folder), {}
    places = {
        (trial.label, *pair): picture_path(folder, trial, number, *pair)
        for trial in comparison.trials
        if trial.ok
        for number, pair in enumerate(comparison.workload.pairs)
    }
    if comparison.borrowed is not None:
        places |= _borrowed_places(folder, comparison.workload)
    for key, path in places.items():
        images[key] = known[key] if key in known else read_picture(folder, path, size)
    return dataclasses.replace(comparison, images=images)


def _borrowed_places(folder: Path, workload: Workload) -> dict[Place, Path]:
    """Return where the copies of another run's pictures lie."""
    return {
        (BORROWED, *pair): folder / IMAGES / BORROWED / _picture_name(number, *pair)
        for number, pair in enumerate(workload.pairs)
    }


def keep_borrowed(folder: Path, workload: Workload, images: Mapping[Place, Image.Image]) -> None:
    """Copy another run's pictures into a run's folder, all at once, and nothing else of them."""
    places = _borrowed_places(folder, workload)
    with workplace(folder) as made:
        staged = made / "named"
        staged.mkdir()
        for key, path in places.items():
            save_png(images[key], staged / path.name)
        target = folder / IMAGES / BORROWED
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        staged.replace(target)


def read_run(folder: Path) -> Comparison:
    """Return what ``run.json`` says, without the pictures."""
    run = _read(folder)
    return Comparison(
        run.workload,
        run.trials,
        wall_seconds=run.wall_seconds,
        folder=str(folder),
        content=run.content,
        notes=run.notes,
        floor=run.floor,
        borrowed=run.borrowed,
    )


def read_asked(folder: Path) -> tuple[Trial, ...]:
    """Return all trials that a run asks for, those that ``run.json`` doesn't list yet as asked.

    Raises
    ------
    ModelNotFoundError, BrokenModelError
        As for `read_run`.
    """
    run = _read(folder)
    done = {trial.label: trial for trial in run.trials}
    asked = tuple(Trial(entry.recipe, compiled=entry.compiled) for entry in run.asked)
    return tuple(done.get(t.label, t) for t in asked) or tuple(done.values())


def _read(folder: Path) -> _Run:
    path = folder / RUN_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"{str(folder)!r} holds no comparison: it has no {RUN_FILE}")
    values = read_object(path, folder)
    try:
        run = from_dict(_Run, values)
        check_sense(run.workload, run.trials, run.wall_seconds, run.floor)
    except ValueError as error:
        raise BrokenModelError(f"{path} is no record of a comparison: {error}") from error
    if run.format > FORMAT:
        raise BrokenModelError(
            f"{path} has format {run.format}; this quantolab reads up to {FORMAT}"
        )
    return run


def write_run(
    folder: Path, comparison: Comparison, *, finished: bool = True, asked: tuple[Trial, ...] = ()
) -> None:
    """Write ``run.json``: all that is needed to run it again and to judge it.

    Parameters
    ----------
    folder : Path
        The run's folder.
    comparison : Comparison
        What is known by now.
    finished : bool
        Whether every recipe has been tried.
    asked : tuple of Trial
        All trials that the run asks for, finished or not.
    """
    asked = asked or comparison.trials
    workload = comparison.workload
    write_whole(
        folder / RUN_FILE,
        json.dumps(
            {
                "format": FORMAT,
                "quantolab": __version__,
                "finished": finished,
                "recipes": [trial.label for trial in asked],
                "asked": [to_dict(_Asked(trial.recipe, trial.compiled)) for trial in asked],
                "workload": to_dict(workload),
                "content": None if comparison.content is None else to_dict(comparison.content),
                "notes": list(comparison.notes),
                "floor": [to_dict(quality) for quality in comparison.floor],
                **_borrowed_values(comparison),
                "trials": [to_dict(trial) for trial in comparison.trials],
                "images": {
                    trial.label: [
                        picture_path(folder, trial, n, *pair).relative_to(folder).as_posix()
                        for n, pair in enumerate(workload.pairs)
                    ]
                    for trial in comparison.trials
                    if trial.ok
                },
                "wall_seconds": comparison.wall_seconds,
                "generation_seconds": comparison.generation_seconds,
                "overhead": comparison.overhead,
            },
            indent=1,
            ensure_ascii=False,
        ),
    )


def _borrowed_values(comparison: Comparison) -> dict[str, object]:
    return {} if comparison.borrowed is None else {"borrowed": to_dict(comparison.borrowed)}


def picture_path(folder: Path, trial: Trial, number: int, prompt: str, seed: int) -> Path:
    """Return where the picture of a recipe, prompt and seed lies; the name tells what it shows."""
    return _pictures(folder, trial) / _picture_name(number, prompt, seed)


def _picture_name(number: int, prompt: str, seed: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:40].strip("-")
    return f"{number:03d}-{words or 'prompt'}-seed{seed}.png"


def _pictures(folder: Path, trial: Trial) -> Path:
    """Return the folder of a trial's pictures; in runs of 0.1.0 it has the name it had there."""
    place = folder / IMAGES / slug(trial.label)
    if trial.earlier_label is not None and not place.is_dir():
        earlier = folder / IMAGES / slug(trial.earlier_label)
        return earlier if earlier.is_dir() else place
    return place


def keep_pictures(folder: Path, trial: Trial, workload: Workload, made: Path) -> None:
    """Move a trial's pictures, ``000.png`` and so on in `made`, to their place, all at once."""
    target = _pictures(folder, trial)
    staged = made / "named"
    staged.mkdir()
    for number, (prompt, seed) in enumerate(workload.pairs):
        name = picture_path(folder, trial, number, prompt, seed).name
        (made / f"{number:03d}.png").replace(staged / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # of a trial that was cut before run.json listed it
        shutil.rmtree(target)
    staged.replace(target)


def check_folder(folder: str | os.PathLike, *, resume: bool) -> None:
    """Make sure that a run can go to a folder, before anything is made or computed.

    Raises
    ------
    ArgumentError
        If the folder holds a run and `resume` is False, or holds none and it is True.
    OutputError
        If it can't be written.
    """
    path = Path(folder).expanduser()
    if (path / RUN_FILE).exists() and not resume:
        raise ArgumentError(
            f"{str(path)!r} already holds a comparison; add --resume (resume=True) to finish it, "
            "or name another folder"
        )
    # A run that was killed between making its folder and marking it left an empty one.
    if resume and not (is_begun(path) or _is_empty(path)):
        raise ArgumentError(
            f"{str(path)!r} holds no run to go on with; without --resume (resume=True) a new one "
            f"begins there{_nearest_run(path)}"
        )
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "it may not be written" if there.is_dir() else "it is a file"
        raise OutputError(f"results can't go to {str(path)!r}: {str(there)!r}: {why}")


def is_begun(folder: Path) -> bool:
    """Return whether a folder is that of a run, be it one that was cut before it wrote anything."""
    return any(os.path.lexists(folder / name) for name in (RUN_FILE, WORK, _LOCK_FILE))


def _is_empty(folder: Path) -> bool:
    try:
        return folder.is_dir() and next(folder.iterdir(), None) is None
    except OSError:
        return False


def _nearest_run(path: Path) -> str:
    """Return a hint to runs whose folders are spelt nearly like one that holds none."""
    path = path.absolute()
    there = next(p for p in (path, *path.parents) if p.is_dir())
    if there == path:  # runs lie inside it, or beside
        return nearest(path.name, _folders(path.parent, is_begun)) or _some_of(path)
    missing = path.relative_to(there).parts
    wanted = is_begun if len(missing) == 1 else Path.is_dir
    return nearest(missing[0], _folders(there, wanted))


def _some_of(folder: Path) -> str:
    names = [repr(str(folder / name)) for name in _folders(folder, is_begun)[:2]]
    return f"; did you mean {format_list(names, 'or')}?" if names else ""


def _folders(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Return the names of a folder's folders that are wanted; none if it may not be read."""
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and wanted(p))
    except OSError:
        return []


@contextmanager
def begun(folder: str | os.PathLike, *, resume: bool) -> Iterator[None]:
    """Make a folder that of a run for the block, from its first moment on.

    So a run that is killed before it has written anything can be resumed like any other. One that
    is refused leaves nothing behind.

    Raises
    ------
    ArgumentError, OutputError
        As `check_folder`.
    """
    check_folder(folder, resume=resume)
    path = Path(folder).expanduser()
    made = [p for p in (path / WORK, path, *path.parents) if not os.path.lexists(p)]
    usable_folder(path)
    (path / WORK).mkdir(exist_ok=True)
    try:
        yield
    except Cancelled:
        raise
    except Exception:
        withdraw(made)
        raise


def withdraw(folders: Iterable[Path]) -> None:
    """Remove folders as far as nothing lies in them, the innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def check_no_links(folder: Path) -> None:
    """Make sure that nothing in a run folder that is written or removed is a link.

    A run folder may be a stranger's: what its links point to is nobody's to change.

    Raises
    ------
    OutputError
        For the first that is one.
    """
    images = folder / IMAGES
    places = [folder / RUN_FILE, folder / WORK, folder / _LOCK_FILE, images, folder / LOGS]
    if images.is_dir() and not images.is_symlink():
        places += images.iterdir()
    for place in places:
        if place.is_symlink():
            raise OutputError(f"{place} is a link; a run is kept in its own folder alone")


def new_folder(model: str | None) -> Path:
    """Return a folder for a run that is given none: ``quantolab-runs/MODEL-TIME``, not made yet."""
    name = slug(Path(model).name if model else "demo")
    return Path(RUNS) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


NOT_CHECKED = (
    "the run was begun by a quantolab that kept no digest of the model: whether its earlier trials "
    "are of the same weights was not checked"
)


def check_same(
    folder: Path, earlier: Comparison, workload: Workload, content: ModelContent | None
) -> None:
    """Make sure that a run is gone on with as it was begun.

    Where both know the content of their model, where that lies doesn't matter.

    Raises
    ------
    ArgumentError
        With what differs.
    """
    known = content is not None and earlier.content is not None
    free = {"repeats"}  # rounds are added to those that there are
    if known:
        free |= {"model", "revision"}
    if "auto" in (workload.device, earlier.workload.device):
        free.add("device")  # one of them isn't resolved
    said = differences(earlier.workload, workload, but=tuple(free))
    if said:
        raise ArgumentError(
            f"{str(folder)!r} holds a comparison with other arguments, so it can't be resumed with "
            f"these: {said}"
        )
    if content is not None and earlier.content is not None and earlier.trials:
        said = other_content(earlier.content, content)
        if said:
            raise ArgumentError(
                f"{str(folder)!r} holds a comparison of another model, so it can't be resumed with "
                f"{workload.model!r} as it is now: {said}. Name another folder"
            )


class Journal:
    """A run folder that is being filled, held by one process at a time.

    Parameters
    ----------
    folder : path
        Where results go.
    workload : Workload
        What the run does.
    trials : tuple of Trial
        The trials it asks for, in order, none of them ended.
    resume : bool
        Whether to go on with what the folder holds.
    content : ModelContent, optional
        What the model's files hold.
    borrowed : (Borrowed, mapping), optional
        Pictures of another run to judge by; a run that has some already keeps those without.

    Raises
    ------
    ArgumentError
        If the folder holds a run and `resume` is False, or another run than this one.
    OutputError
        If the folder can't be written or another process fills it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        workload: Workload,
        trials: tuple[Trial, ...],
        *,
        resume: bool = False,
        content: ModelContent | None = None,
        borrowed: tuple[Borrowed, Mapping[Place, Image.Image]] | None = None,
    ) -> None:
        self.content = content
        self.notes: tuple[str, ...] = ()
        self.floor: tuple[PictureQuality, ...] = ()
        self.borrowed: Borrowed | None = None
        self.theirs: Mapping[Place, Image.Image] = {}
        """Pictures of another run to judge by, as `Comparison.images` has them."""
        self.folder = usable_folder(folder)
        check_no_links(self.folder)
        self.workload = workload
        self._asked = trials
        self._trials: dict[str, Trial] = {}
        self._again: set[str] = set()  # those that ended badly and are tried again
        self._earlier_seconds = 0.0
        self._lock = _lock(self.folder)
        clear_leftovers(self.folder)
        try:
            if (self.folder / RUN_FILE).exists():
                self._take_over(resume)
            if borrowed is not None:
                self._borrow(*borrowed)
            elif self.borrowed is not None:
                alone = Comparison(
                    self.workload, (), folder=str(self.folder), borrowed=self.borrowed
                )
                self.theirs = with_pictures(alone, {}).images
        except Exception:
            self.close()
            raise
        self.work = self.folder / WORK
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def _take_over(self, resume: bool) -> None:
        check_folder(self.folder, resume=resume)
        earlier = read_run(self.folder)
        check_same(self.folder, earlier, self.workload, self.content)
        if self.workload.device == "auto":  # it couldn't be resolved this time
            self.workload = earlier.workload
        self.notes, self.floor = earlier.notes, earlier.floor
        self.borrowed = earlier.borrowed
        if earlier.content is None and earlier.workload.revision is None and earlier.trials:
            self.notes = tuple(dict.fromkeys((*self.notes, NOT_CHECKED)))
        self._earlier_seconds = earlier.wall_seconds or 0.0
        self._trials = {trial.label: self._with_pictures(trial) for trial in earlier.trials}
        self._again = {t.label for t in self._trials.values() if t.status == FAILED}
        # What the run was asked for before stays: other recipes are added to it.
        labels = {trial.label for trial in self._asked}
        before = tuple(Trial(t.recipe, compiled=t.compiled) for t in read_asked(self.folder))
        new = {trial.label for trial in before}
        self._asked = (*before, *(t for t in self._asked if t.label not in new))
        self._again &= labels

    def _with_pictures(self, trial: Trial) -> Trial:
        """Return a trial as it is, or as failed if its pictures are no longer there."""
        if not trial.ok or all(
            picture_path(self.folder, trial, n, *pair).is_file()
            for n, pair in enumerate(self.workload.pairs)
        ):
            return trial
        return self.without_pictures(trial)

    def without_pictures(self, trial: Trial) -> Trial:
        """Return a trial whose pictures are no longer there: failed, and to be done again."""
        return dataclasses.replace(trial, status=FAILED, reason="its pictures are gone")

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that has ended, in the order in which they were asked for."""
        return tuple(self._trials[t.label] for t in self._asked if t.label in self._trials)

    def done(self, label: str) -> Trial | None:
        """Return the finished trial of that label; None if it is to be tried, perhaps again."""
        return None if label in self._again else self._trials.get(label)

    def add(self, trial: Trial, made: Path | None, wall_seconds: float) -> None:
        """Keep a trial and its pictures (``000.png`` ... in `made`)."""
        if made is not None:
            try:
                keep_pictures(self.folder, trial, self.workload, made)
            except OSError as error:
                raise OutputError(
                    f"pictures can't be written to {self.folder}: {error.strerror or error}"
                ) from error
        self._again.discard(trial.label)
        self._trials[trial.label] = trial
        self.write(wall_seconds)

    def judge(self, trial: Trial, wall_seconds: float) -> None:
        """Keep what is known of a kept trial now, its pictures as they are or gone."""
        self._trials[trial.label] = trial
        self.write(wall_seconds)

    def put(self, trials: Iterable[Trial], wall_seconds: float) -> None:
        """Keep what is known of several kept trials now, their pictures as they are."""
        self._trials |= {trial.label: trial for trial in trials}
        self.write(wall_seconds)

    def keep_log(self, trial: Trial, text: str) -> None:
        """Keep what a trial's process printed before it failed, where nobody else could see it."""
        usable_folder(self.folder / LOGS)
        write_whole(self.folder / LOGS / f"{slug(trial.label)}.txt", text)

    def _borrow(self, said: Borrowed, theirs: Mapping[Place, Image.Image]) -> None:
        """Have all pictures judged against those of another run, of which a copy is kept.

        Trials that were judged against others are to be judged anew.
        """
        if self.borrowed is None or said.digest != self.borrowed.digest:
            self._trials = {
                label: dataclasses.replace(trial, quality=(), judged_by=None)
                for label, trial in self._trials.items()
            }
        keep_borrowed(self.folder, self.workload, theirs)
        self.borrowed, self.theirs = said, theirs

    def write(self, wall_seconds: float) -> Comparison:
        """Write ``run.json`` as things stand and return it as a comparison without pictures."""
        trials = self.trials
        comparison = Comparison(
            self.workload,
            trials,
            wall_seconds=self._earlier_seconds + wall_seconds,
            folder=str(self.folder),
            content=self.content,
            notes=self.notes,
            floor=self.floor,
            borrowed=self.borrowed,
        )
        write_run(
            self.folder,
            comparison,
            finished=len(trials) == len(self._asked),
            asked=self._asked,
        )
        return comparison

    def close(self) -> None:
        """Remove what was only needed while running and let others use the folder."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        if self._lock is not None:
            (self.folder / _LOCK_FILE).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


_LOCK_FILE = ".lock"


def _lock(folder: Path) -> int | None:
    """Hold a folder until closed or dead, so that two runs never mix; None where locks aren't."""
    try:
        import fcntl
    except ImportError:
        return None  # Windows
    handle = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise OutputError(f"another run is writing to {str(folder)!r} right now") from error
    return handle


def is_held(folder: Path) -> bool:
    """Return whether a run is writing to a folder now; nothing is written for that."""
    try:
        import fcntl

        handle = os.open(folder / _LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (ImportError, OSError):
        return False  # Windows, or nobody has locked it
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)  # and lets go of it
    return False
