"""Pictures of another run that stand for the reference's: its folder is read as a stranger's."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from ..recipes import Recipe
from ..records import BORROWED, Borrowed, Comparison, ModelContent, Trial, Workload
from .identity import differences, other_content
from .journal import read_run, with_pictures

if TYPE_CHECKING:
    from PIL import Image

# Another machine, another day, another precision: what pictures of the same may differ in.
_FREE = ("model", "revision", "variant", "dtype", "device", "repeats")

NO_CONTENT = (
    "whether the reference's pictures are of the same weights was not checked: one of the runs "
    "kept no digest of its files"
)


@dataclass(frozen=True)
class Reference:
    """A run whose unquantized pictures can be those that others are judged against."""

    folder: str
    """As asked for."""
    run: Comparison
    """Without its pictures."""
    trial: Trial
    """The unquantized one."""

    def check_content(self, content: ModelContent) -> str | None:
        """Make sure that its model is the one that is to be judged; say what can't be checked.

        Raises
        ------
        ArgumentError
            If it holds something else.
        """
        theirs = self.run.content
        if theirs is None or (theirs.commit is None) != (content.commit is None):
            return NO_CONTENT
        said = other_content(theirs, content)
        if said:
            raise ArgumentError(
                f"the reference {self.folder!r} holds pictures of another model than the one "
                f"asked for: {said}"
            )
        return None

    def pictures(self) -> tuple[Borrowed, dict[tuple[str, str, int], Image.Image]]:
        """Return what they are, and the pictures themselves by (`BORROWED`, prompt, seed).

        Raises
        ------
        BrokenModelError
            If one is missing, isn't a picture, or has another size than the run says.
        """
        alone = Comparison(self.run.workload, (self.trial,), folder=self.run.folder)
        size = self.trial.picture_size or self.run.workload.size
        images = with_pictures(alone, {}, size=size).images
        ours = {(BORROWED, *place): picture for (_, *place), picture in images.items()}
        workload = self.run.workload
        said = Borrowed(
            _told(self.folder),
            workload.dtype,
            workload.device,
            self.trial.conditions,
            _digest(ours),
        )
        return said, ours


def find_reference(folder: str | os.PathLike[str], workload: Workload) -> Reference:
    """Return the run in a folder whose unquantized pictures are of the same as a workload's.

    Raises
    ------
    ArgumentError
        If it was asked for other prompts, seeds, steps, size or guidance, or has no unquantized
        pictures.
    ModelNotFoundError, BrokenModelError
        If the folder holds no run, or none that can be understood.
    """
    path = Path(folder).expanduser()
    run = read_run(path)
    said = differences(_sorted(run.workload), _sorted(workload), but=_FREE)
    if said:
        raise ArgumentError(
            f"the reference {str(folder)!r} is a run of other pictures, so nothing can be judged "
            f"against them: {said}"
        )
    if run.reference is None:
        there = ", ".join(f"{trial.label} ({trial.status})" for trial in run.trials)
        raise ArgumentError(
            f"the reference {str(folder)!r} holds no unquantized pictures: its trials are "
            f"{there or 'none'}"
        )
    return Reference(str(folder), run, run.reference)


def _sorted(workload: Workload) -> Workload:
    """Return a workload whose prompts and seeds stand in an order of their own."""
    prompts, seeds = tuple(sorted(workload.prompts)), tuple(sorted(workload.seeds))
    return dataclasses.replace(workload, prompts=prompts, seeds=seeds)


def _told(folder: str) -> str:
    """Return a folder as tables name it: never what could be a recipe's text."""
    try:
        Recipe.parse(folder)
    except ArgumentError:
        return folder
    return f".{os.sep}{folder}"


def _digest(images: Mapping[tuple[str, str, int], Image.Image]) -> str:
    """Return a digest of pictures and of what they show."""
    digest = hashlib.sha256()
    for key in sorted(images):
        picture = images[key]
        digest.update(repr((key, picture.size)).encode() + picture.tobytes())
    return digest.hexdigest()
