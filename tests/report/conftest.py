"""A comparison made by hand: five recipes and their ways to end, with real pictures."""

import dataclasses
import warnings
import zlib

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from quantolab.measure.quality import picture_quality
from quantolab.recipes import Recipe
from quantolab.records import (
    ROUNDS,
    Comparison,
    Conditions,
    PictureQuality,
    Timing,
    Trial,
    Workload,
)

CONDITIONS = Conditions(
    device_name="AMD EPYC 9R14", threads=2, platform="Linux-6.8-x86_64", python="3.12.3",
    torch="2.13.0", diffusers="0.42.1", transformers="5.1.0", quanto="0.2.7", peak_method="VmHWM",
)  # fmt: skip
PROMPTS = ("a red circle above a blue square", "two yellow stars on a green field")
# weights: bytes, seconds a picture, noise in 8-bit levels
FIGURES = {
    "none": (6_620_160, 0.181, 0.0),
    "float8": (3_420_480, 0.199, 4.0),
    "int8": (3_421_504, 0.186, 1.6),
    "int4": (1_987_840, 0.241, 11.0),
    "int2": (1_182_720, 0.239, 38.0),
}


def drawn(prompt, seed, size, noise=0.0):
    """Return a picture of coloured shapes with gaussian noise of so many 8-bit levels."""
    random = np.random.default_rng([zlib.crc32(prompt.encode()), seed])
    width, height = size
    picture = Image.new("RGB", size, tuple(random.integers(190, 245, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for k in range(4):
        x, y = random.uniform(0.05, 0.65, 2) * (width, height)
        reach = random.uniform(0.2, 0.4) * min(width, height)
        shape = (pen.ellipse, pen.rectangle)[k % 2]
        shape((x, y, x + reach, y + reach), fill=tuple(random.integers(20, 230, 3).tolist()))
    if not noise:
        return picture
    noisy = np.asarray(picture) + random.normal(0, noise, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def timing(seconds, repeats, seed):
    """Return timings that spread by one per cent around so many seconds."""
    random = np.random.default_rng(seed)
    samples = tuple((seconds * random.normal(1, 0.01, repeats)).tolist())
    return Timing(samples, (seconds * 3,), rounds=tuple(range(repeats)), timed=ROUNDS)


def make_trial(recipe, workload, images, *, compiled=False):
    """Return an `ok` trial of a recipe, its pictures put into `images`."""
    weight_bytes, seconds, noise = FIGURES[recipe.weights]
    weight_bytes += 40_000 * len(recipe.skip)
    noise *= 0.8 ** len(recipe.skip)
    trial = Trial(
        recipe, "ok", compiled=compiled,
        weight_bytes=weight_bytes, predicted_weight_bytes=weight_bytes,
        file_bytes=weight_bytes + 4_096, peak_bytes=410_000_000 + weight_bytes,
        load_seconds=0.31, compile_seconds=21.4 if compiled else None,
        timing=timing(seconds * (0.7 if compiled else 1), workload.repeats, len(recipe.label)),
        conditions=CONDITIONS,
        components=() if recipe.is_reference else recipe.components or ("transformer",),
    )  # fmt: skip
    quality = []
    for prompt, seed in workload.pairs:
        picture = drawn(prompt, seed, workload.size, noise + 0.6 * compiled)
        images[trial.label, prompt, seed] = picture
        wanted = drawn(prompt, seed, workload.size)
        if not recipe.is_reference or compiled:
            quality.append(PictureQuality(prompt, seed, *picture_quality(picture, wanted)))
    return dataclasses.replace(trial, quality=tuple(quality))


def make_comparison(
    recipes=("none", "float8", "int8", "int4", "int2"),
    *,
    compiled=("int8",),
    failed=None,
    prompts=PROMPTS,
    seeds=(0, 1),
    size=(128, 128),
    repeats=7,
):
    """Return a comparison of these recipes; `failed` maps weights to (status, reason)."""
    workload = Workload(
        "demo", tuple(prompts), tuple(seeds), 20, None, size, "float32", "cpu", repeats
    )
    images, trials = {}, []
    for recipe in (r if isinstance(r, Recipe) else Recipe(r) for r in recipes):
        if recipe.weights in (failed or {}):
            status, reason = failed[recipe.weights]
            trials.append(Trial(recipe, status, reason, predicted_weight_bytes=1_182_720))
            continue
        trials.append(make_trial(recipe, workload, images))
        if recipe.weights in compiled:
            trials.append(make_trial(recipe, workload, images, compiled=True))
    return Comparison(workload, tuple(trials), images, wall_seconds=60.0)


@pytest.fixture(scope="session")
def comparison():
    """Five recipes, int8 also compiled, two prompts by two seeds."""
    return make_comparison()


@pytest.fixture(scope="session")
def broken():
    """The same without int8 compiled; int2 ran out of memory."""
    return make_comparison(
        compiled=(), failed={"int2": ("failed", "its process was killed for using 16.2 GB")}
    )


@pytest.fixture(scope="session")
def make():
    """Return the function that makes comparisons, for tests that need another one."""
    return make_comparison


@pytest.fixture(autouse=True)
def global_style_untouched():
    """Fail a test after which matplotlib's settings differ, and one that warns."""
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert dict(matplotlib.rcParams) == before
