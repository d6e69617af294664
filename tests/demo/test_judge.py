"""The judge accepts true drawings and rejects wrong ones."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from quantolab.demo.making.drawing import FAMILIES, SIZE, draw, parse, random_spec
from quantolab.demo.making.judge import judge


def _draw(caption: str, seed: int = 0) -> Image.Image:
    return draw(parse(caption), random.Random(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_true_drawings_are_right(family):
    rng = random.Random(1)
    specs = [random_spec(rng, family) for _ in range(30)]
    wrong = [s.caption for s in specs if not judge(draw(s, rng), s.caption).right]
    assert wrong == []


@pytest.mark.parametrize("family", FAMILIES)
def test_drawings_of_other_captions_are_wrong(family):
    rng = random.Random(2)
    accepted = 0
    for _ in range(40):
        spec, other = random_spec(rng, family), random_spec(rng, family)
        accepted += spec != other and judge(draw(spec, rng), other.caption).right
    assert accepted <= 1


@pytest.mark.parametrize(
    ("drawn", "asked"),
    [
        ("a red heart on a blue background", "a pink heart on a blue background"),
        ("a red heart on a blue background", "a red circle on a blue background"),
        ("a red heart on a blue background", "a red heart on a purple background"),
        ("a small red heart on a blue background", "a large red heart on a blue background"),
        ("a large red heart on a blue background", "a small red heart on a blue background"),
        ("a red circle on a blue background", "a red flower on a blue background"),
        (
            "a red heart with white dots on a blue background",
            "a red heart on a blue background",
        ),
        (
            "a red heart on a blue background",
            "a red heart with white dots on a blue background",
        ),
        (
            "a red heart with white stripes on a blue background",
            "a red heart with white dots on a blue background",
        ),
        (
            "a red heart with white dots on a blue background",
            "a red heart with yellow dots on a blue background",
        ),
        (
            "a red heart with a white outline on a blue background",
            "a white heart with a red outline on a blue background",
        ),
        (
            "a red heart on a blue background with white dots",
            "a red heart on a blue background with white stripes",
        ),
        ("a red heart on a blue background with white dots", "a red heart on a blue background"),
        (
            "a red heart above a white star on a blue background",
            "a white star above a red heart on a blue background",
        ),
        (
            "a red heart above a white star on a blue background",
            "a red heart left of a white star on a blue background",
        ),
        (
            "a red heart left of a white star on a blue background",
            "a white heart left of a red star on a blue background",
        ),
        ("three red hearts on a blue background", "four red hearts on a blue background"),
        ("three red hearts on a blue background", "three red stars on a blue background"),
        (
            "a red house with a blue roof left of a tree under a sun",
            "a red house with a blue roof right of a tree under a sun",
        ),
        (
            "a red house with a blue roof left of a tree under a sun",
            "a red house with a blue roof left of a tree under a moon",
        ),
        (
            "a red house with a blue roof left of a tree under a sun",
            "a red house with a blue roof left of an apple tree under a sun",
        ),
        (
            "a red house with a blue roof left of a tree under a sun",
            "a red house with a blue roof left of a pine under a sun",
        ),
        (
            "a red boat with a white sail on the sea under a sun",
            "a white boat with a red sail on the sea under a sun",
        ),
    ],
)
def test_one_wrong_thing_is_enough(drawn, asked):
    image = _draw(drawn)
    assert judge(image, drawn).right
    verdict = judge(image, asked)
    assert not verdict.right
    assert verdict.reasons


def test_and_leaves_the_order_open():
    caption = "a red heart and a white star on a blue background"
    swapped = "a white star and a red heart on a blue background"
    assert judge(_draw(caption), swapped).right
    for asked in (caption, swapped):
        verdict = judge(_draw("a red heart and a white moon on a blue background"), asked)
        assert verdict.reasons == ("a moon instead of a star",), asked


def test_png_does_not_matter():
    image = _draw("four pink flowers on a black background")
    file = io.BytesIO()
    image.save(file, "PNG")
    again = Image.open(io.BytesIO(file.getvalue()))
    assert judge(again, "four pink flowers on a black background").right


def test_slight_blur_and_noise_do_not_matter():
    caption = "a large red heart with white stripes on a blue background"
    image = _draw(caption).filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(0).normal(0, 5, (SIZE, SIZE, 3))
    noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    assert judge(Image.fromarray(noisy), caption).right


def test_another_size_is_scaled():
    caption = "a red heart on a blue background"
    assert judge(_draw(caption).resize((256, 256)), caption).right


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_and_nothing_are_wrong(family):
    caption = random_spec(random.Random(3), family).caption
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert not judge(Image.fromarray(noise), caption).right
    for level in (0, 128, 255):
        assert not judge(Image.new("RGB", (SIZE, SIZE), (level,) * 3), caption).right


def test_a_foreign_caption_is_refused():
    with pytest.raises(ValueError, match="not a caption"):
        judge(Image.new("RGB", (SIZE, SIZE)), "a cat")
