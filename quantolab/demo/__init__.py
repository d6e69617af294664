"""The demo model: a tiny FLUX pipeline that ships with the package and runs in seconds on a CPU.

It was trained from nothing on pictures that :mod:`quantolab.demo.making.drawing` draws, and is
there to learn and to test with: its pictures look the same in float8 and int8, change in places in
int4 and fall apart in int2. It draws one to four figures, houses and boats; the folder's README.md
says how well. Importing this loads nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

from ..arguments import public

STEPS = 20
"""Denoising steps that suit the demo model."""

SIZE = (128, 128)
"""Width and height of its pictures."""

PROMPTS: tuple[str, ...] = (
    "a large red star with yellow dots on a black background",
    "a green triangle left of a red ring on a yellow background",
    "a white house with a red roof left of an apple tree under a sun",
    "a red boat with a white sail on the sea under a moon",
)
"""Prompts that show what each precision keeps and loses."""

VARIED = (
    *PROMPTS,
    "a pink star with green stripes on a blue background",
    "four turquoise flowers on a blue background",
    "a green triangle left of a white diamond on a yellow background",
    "a small purple heart with white dots",
    "a yellow house with a blue roof",
    "a green boat and a moon",
    "an apple tree on a white background",
    "a black square with an orange outline beside two pink circles on a white background",
)
"""Prompts of many kinds, some unlike any caption that it was trained on: what matters for all of
them matters for others, too."""


@public
def demo_model() -> Path:
    """Return the folder of the demo pipeline, for ``FluxPipeline.from_pretrained``."""
    return Path(__file__).parent / "pipeline"
