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
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArgumentError, BrokenModelError, ModelNotFoundError, OutputError
from ..models.source import read_json
from ..recipes import Recipe, slug
from ..records import (
    FAILED,
    Comparison,
    Trial,
    Workload,
    to_dict,
    trial_from_dict,
    workload_from_dict,
)

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1
"""Version of ``run.json``. 1: first."""

RUN_FILE, IMAGES, WORK = "run.json", "images", ".work"
RUNS = "quantolab-runs"
"""Where runs go that are given no folder."""
NOT_RUN = "not run yet"
"""Reason of a trial that is asked for and hasn't ended."""


def save(comparison: Comparison, folder: str | os.PathLike) -> Path:
    """Write ``run.json`` and ``images/RECIPE/*.png`` of a comparison and return the folder.

    Raises
    ------
    OutputError
        If the folder can't be written.
    """
    folder = usable_folder(folder)
    for trial in comparison.trials:
        pictures = [
            comparison.images.get((trial.label, prompt, seed))
            for prompt, seed in comparison.workload.pairs
        ]
        if any(picture is None for picture in pictures):
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix=".images-") as made:
            for number, picture in enumerate(pictures):
                picture.save(Path(made) / f"{number:03d}.png")
            keep_pictures(folder, trial.label, comparison.workload, Path(made))
    write_run(folder, comparison)
    return folder


def read(folder: str | os.PathLike) -> Comparison:
    """Return the comparison that a folder holds, finished or not, with its pictures.

    Raises
    ------
    ModelNotFoundError
        If the folder holds no run.
    BrokenModelError
        If ``run.json`` can't be understood, or a picture that it lists is missing.
    """
    return with_pictures(read_run(Path(folder)), {})


def with_pictures(
    comparison: Comparison, known: dict[tuple[str, str, int], Image.Image]
) -> Comparison:
    """Return what `read_run` gave with the pictures of its trials.

    Parameters
    ----------
    comparison : Comparison
        From `read_run`.
    known : dict
        Pictures that were read before, and aren't read again.

    Raises
    ------
    BrokenModelError
        If a picture is missing.
    """
    from PIL import Image

    folder, images = Path(comparison.folder), {}
    for trial in comparison.trials:
        for number, place in enumerate(comparison.workload.pairs if trial.ok else ()):
            key = (trial.label, *place)
            if key in known:
                images[key] = known[key]
                continue
            path = picture_path(folder, trial.label, number, *place)
            try:
                with Image.open(path) as picture:
                    images[key] = picture.convert("RGB")
            except OSError as error:
                raise BrokenModelError(f"{path}, which the run lists, can't be read") from error
    return dataclasses.replace(comparison, images=images)


def read_run(folder: Path) -> Comparison:
    """Return what ``run.json`` says, without the pictures."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"{str(folder)!r} holds no comparison: it has no {RUN_FILE}")
    values = read_json(path)
    try:
        if values["format"] > FORMAT:
            raise BrokenModelError(
                f"{path} has format {values['format']}; this quantolab reads up to {FORMAT}"
            )
        return Comparison(
            workload_from_dict(values["workload"]),
            tuple(trial_from_dict(t) for t in values["trials"]),
            wall_seconds=values["wall_seconds"],
            folder=str(folder),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BrokenModelError):
            raise
        raise BrokenModelError(f"{path} is no record of a comparison: {error!r}") from error


def read_asked(folder: Path) -> tuple[Trial, ...]:
    """Return all trials that a run asks for, those that ``run.json`` doesn't list yet as failed.

    Raises
    ------
    ModelNotFoundError, BrokenModelError
        As for `read_run`.
    """
    done = {trial.label: trial for trial in read_run(folder).trials}
    values = read_json(folder / RUN_FILE).get("asked")
    try:
        asked = tuple(
            Trial(Recipe.from_dict(v["recipe"]), FAILED, NOT_RUN, compiled=v["compiled"])
            for v in values or ()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModelError(f"{folder / RUN_FILE} doesn't say what was asked for") from error
    return tuple(done.get(t.label, t) for t in asked) or tuple(done.values())


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
    from .. import __version__

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
                "asked": [
                    {"recipe": trial.recipe.to_dict(), "compiled": trial.compiled}
                    for trial in asked
                ],
                "workload": to_dict(workload),
                "trials": [to_dict(trial) for trial in comparison.trials],
                "images": {
                    trial.label: [
                        str(picture_path(Path(), trial.label, n, *pair).as_posix())
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


def picture_path(folder: Path, label: str, number: int, prompt: str, seed: int) -> Path:
    """Return where the picture of a recipe, prompt and seed lies; the name tells what it shows."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:40].strip("-")
    return folder / IMAGES / slug(label) / f"{number:03d}-{words or 'prompt'}-seed{seed}.png"


def keep_pictures(folder: Path, label: str, workload: Workload, made: Path) -> None:
    """Move a trial's pictures, ``000.png`` and so on in `made`, to their place, all at once."""
    target = folder / IMAGES / slug(label)
    staged = made / "named"
    staged.mkdir()
    for number, (prompt, seed) in enumerate(workload.pairs):
        name = picture_path(folder, label, number, prompt, seed).name
        (made / f"{number:03d}.png").replace(staged / name)
    target.parent.mkdir(exist_ok=True)
    if target.exists():  # of a trial that was cut before run.json listed it
        shutil.rmtree(target)
    staged.replace(target)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


def check_folder(folder: str | os.PathLike, *, resume: bool) -> None:
    """Make sure that a run can go to a folder, before anything is made or computed.

    Raises
    ------
    ArgumentError
        If the folder holds a run and `resume` is False.
    OutputError
        If it can't be written.
    """
    path = Path(folder).expanduser()
    if (path / RUN_FILE).exists() and not resume:
        raise ArgumentError(
            f"{str(path)!r} already holds a comparison; add --resume (resume=True) to finish it, "
            "or name another folder"
        )
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "it may not be written" if there.is_dir() else "it is a file"
        raise OutputError(f"results can't go to {str(path)!r}: {str(there)!r}: {why}")


def new_folder(model: str | None) -> Path:
    """Return a folder for a run that is given none: ``quantolab-runs/MODEL-TIME``, not made yet."""
    name = slug(Path(model).name if model else "demo")
    return Path(RUNS) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def usable_folder(folder: str | os.PathLike) -> Path:
    """Return a folder that exists and can be written, made if need be.

    Raises
    ------
    OutputError
        If it can't be.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"results can't be written to {str(path)!r}: {error.strerror or error}"
        ) from error
    return path


class Journal:
    """A run folder that is being filled, held by one process at a time.

    Parameters
    ----------
    folder : path
        Where results go.
    workload : Workload
        What the run does.
    trials : tuple of Trial
        The trials it asks for, in order, none of them tried yet.
    resume : bool
        Whether to go on with what the folder holds.

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
    ) -> None:
        self.folder = usable_folder(folder)
        self.workload = workload
        self._asked = trials
        self._done: dict[str, Trial] = {}
        self._earlier_seconds = 0.0
        self._lock = _lock(self.folder)
        try:
            if (self.folder / RUN_FILE).exists():
                self._take_over(resume)
        except Exception:
            self.close()
            raise
        self.work = self.folder / WORK
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def _take_over(self, resume: bool) -> None:
        check_folder(self.folder, resume=resume)
        earlier = read_run(self.folder)
        differences = _differences(to_dict(earlier.workload), to_dict(self.workload))
        if differences:
            raise ArgumentError(
                f"{str(self.folder)!r} holds a comparison with other arguments, so it can't be "
                f"resumed with these: {differences}"
            )
        self._earlier_seconds = earlier.wall_seconds or 0.0
        self._done = {t.label: t for t in earlier.trials if self._is_kept(t)}

    def _is_kept(self, trial: Trial) -> bool:
        """Failed trials are tried again; unsupported ones stay so."""
        if trial.status == "failed":
            return False
        return not trial.ok or all(
            picture_path(self.folder, trial.label, n, *pair).is_file()
            for n, pair in enumerate(self.workload.pairs)
        )

    def done(self, label: str) -> Trial | None:
        """Return the finished trial of that label, or None."""
        return self._done.get(label)

    def add(self, trial: Trial, made: Path | None, wall_seconds: float) -> None:
        """Keep a trial and its pictures (``000.png`` ... in `made`)."""
        if made is not None:
            try:
                keep_pictures(self.folder, trial.label, self.workload, made)
            except OSError as error:
                raise OutputError(
                    f"pictures can't be written to {self.folder}: {error.strerror or error}"
                ) from error
        self._done[trial.label] = trial
        self.write(wall_seconds)

    def write(self, wall_seconds: float) -> Comparison:
        """Write ``run.json`` as things stand and return it as a comparison without pictures."""
        trials = tuple(self._done[t.label] for t in self._asked if t.label in self._done)
        comparison = Comparison(
            self.workload,
            trials,
            wall_seconds=self._earlier_seconds + wall_seconds,
            folder=str(self.folder),
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
    handle = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise OutputError(f"another run is writing to {str(folder)!r} right now") from error
    return handle


def _differences(old: dict, new: dict) -> str:
    return "; ".join(
        f"{key} was {old.get(key)!r}, now {new[key]!r}" for key in new if old.get(key) != new[key]
    )
