"""Pictures against the reference's, and what else than a recipe tells two trials apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..measure.quality import picture_flip, picture_quality
from ..records import Borrowed, PictureQuality, Trial

if TYPE_CHECKING:
    from PIL import Image

_MAKE_PICTURES = ("torch", "diffusers", "transformers", "quanto", "device_name")


def judged(prompt: str, seed: int, ours: Image.Image, theirs: Image.Image) -> PictureQuality:
    """Return how near a picture is to the reference's of the same prompt and seed."""
    psnr_db, ssim = picture_quality(ours, theirs)
    return PictureQuality(prompt, seed, psnr_db, ssim, picture_flip(ours, theirs))


def other_conditions(trial: Trial, reference: Trial | Borrowed) -> list[str]:
    """Return what made two trials' pictures otherwise: versions and devices, in words."""
    ours, theirs = trial.conditions, reference.conditions
    if ours is None or theirs is None:
        return []
    return [
        f"{name} {getattr(ours, name)}, the reference's {getattr(theirs, name)}"
        for name in _MAKE_PICTURES
        if getattr(ours, name) != getattr(theirs, name)
    ]


def version_notes(trial: Trial, reference: Trial | Borrowed) -> list[str]:
    """Say what else than the recipe tells two trials' pictures apart, when a run was resumed."""
    said = other_conditions(trial, reference)
    end = ": PSNR and SSIM hold that difference too"
    return [f"made with {'; '.join(said)}{end}"] if said else []
