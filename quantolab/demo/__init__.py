"""The demo model: a tiny FLUX pipeline that ships with the package and runs in seconds on a CPU.

It was trained from nothing on pictures that :mod:`quantolab.demo.drawing` draws, and is there to
learn and to test with: its pictures stay the same in float8 and int8, lose detail in int4 and fall
apart in int2. Its training is unfinished (the folder's README.md says how far it got): it draws
houses well, everything else badly. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

STEPS = 20
"""Denoising steps that suit the demo model."""

SIZE = (128, 128)
"""Width and height of its pictures."""

PROMPTS: tuple[str, ...] = (
    "a white house with a red roof left of an apple tree under a sun",
    "a pink house with a blue roof right of a pine under a moon",
    "a turquoise house with a purple roof right of an apple tree under a moon",
    "a yellow house with a red roof left of a tree under a sun",
)
"""Prompts that show what each precision keeps and loses."""


def demo_model() -> Path:
    """Return the folder of the demo pipeline, for ``FluxPipeline.from_pretrained``."""
    return Path(__file__).parent / "pipeline"
