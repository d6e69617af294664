"""PSNR and SSIM of pictures whose error is known by hand, and pictures that aren't any."""

import math
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from quantolab.errors import ArgumentError, BadPictureError
from quantolab.measure.quality import (
    check_pixels,
    decibel_interval,
    difference_map,
    error_multiple,
    flip_map,
    how_much_nearer,
    mean_decibels,
    picture_flip,
    picture_psnr,
    picture_quality,
)


def noise(size=(32, 24), seed=0):
    """Return an RGB picture of random pixels, values 20 to 230."""
    values = np.random.default_rng(seed).integers(20, 230, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def shifted(picture, by):
    """Return the picture with every value raised by the same amount."""
    return Image.fromarray((np.asarray(picture).astype(int) + by).astype(np.uint8))


@pytest.mark.parametrize("picture", [noise(), Image.new("RGB", (16, 16), "black")])
def test_identical_pictures(picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture_quality(picture, picture.copy()) == (math.inf, 1.0)


@pytest.mark.parametrize("by", [1, 5, 20])
def test_psnr_of_a_known_error(by):
    psnr_db, ssim = picture_quality(shifted(noise(), by), noise())
    assert psnr_db == pytest.approx(20 * math.log10(255 / by), abs=1e-9)
    assert 0.9 < ssim < 1


def test_unsigned_pixels_do_not_wrap_around():
    # The same error from either side; uint8 arithmetic would turn -5 into 251.
    down, up = shifted(noise(), -5), shifted(noise(), 5)
    assert picture_quality(down, noise())[0] == picture_quality(up, noise())[0]


def test_ssim_of_unrelated_pictures_is_near_zero():
    psnr_db, ssim = picture_quality(noise(seed=1), noise(seed=2))
    assert abs(ssim) < 0.2
    assert psnr_db < 15


@pytest.mark.parametrize(("side", "sigma"), [(11, 1.5), (7, 3 / 3.5)])
def test_ssim_by_hand_for_a_picture_of_one_window(side, sigma):
    reference, picture = noise((side, side), seed=3), noise((side, side), seed=4)
    x, y = (np.asarray(p).astype(float).reshape(side * side, 3) for p in (reference, picture))
    away = np.arange(side) - side // 2
    bell = np.exp(-(away**2) / (2 * sigma**2))
    weights = (np.outer(bell, bell) / bell.sum() ** 2).reshape(-1, 1)

    def mean(values):
        return (weights * values).sum(0)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    spread = mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    by_hand = ((2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)) / (
        (mean(x) ** 2 + mean(y) ** 2 + c1) * (sum(spread) + c2)
    )
    assert picture_quality(picture, reference)[1] == pytest.approx(by_hand.mean())


@pytest.mark.parametrize("size", [(3, 3), (4, 9), (6, 6), (7, 5), (64, 3)])
def test_small_pictures_have_a_similarity(size):
    psnr_db, ssim = picture_quality(shifted(noise(size), 3), noise(size))
    assert math.isfinite(psnr_db)
    assert 0.9 < ssim < 1


def test_other_modes_are_read_as_rgb():
    grey = noise().convert("L")
    assert picture_quality(grey, grey.convert("RGB")) == (math.inf, 1.0)


def test_psnr_alone_is_the_same():
    near, far = shifted(noise(), 3), noise(seed=9)
    assert picture_psnr(near, far) == picture_quality(near, far)[0]
    assert picture_psnr(near, near.copy()) == math.inf


def test_difference_map_by_hand():
    ours = Image.fromarray(np.array([[[0, 10, 20], [255, 7, 7]]], dtype=np.uint8))
    theirs = Image.fromarray(np.array([[[4, 1, 20], [0, 7, 9]]], dtype=np.uint8))
    for pair in ((ours, theirs), (theirs, ours)):
        levels = difference_map(*pair)
        assert levels.dtype == np.uint8
        assert levels.tolist() == [[9, 255]]  # the worst channel, either way round
    assert not difference_map(noise(), noise()).any()
    assert difference_map(noise((32, 24)), noise((32, 24), seed=1)).shape == (24, 32)


@pytest.mark.parametrize("compare", [picture_quality, picture_psnr, difference_map])
def test_sizes_that_differ(compare):
    with pytest.raises(ArgumentError) as caught:
        compare(noise((32, 24)), noise((24, 32)))
    assert str(caught.value) == (
        "two pictures can be compared only at the same size, "
        "but the picture is 32x24 and the reference 24x32 pixels"
    )


def test_pictures_too_small_to_compare():
    with pytest.raises(ArgumentError) as caught:
        picture_quality(noise((2, 8)), noise((2, 8)))
    assert str(caught.value) == "pictures to compare need 3x3 pixels or more, not 2x8"


def test_a_picture_passes():
    assert check_pixels(np.asarray(noise()) / 255) is None
    assert check_pixels((np.asarray(noise()) / 255).astype(np.float16)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(value):
    pixels = np.asarray(noise((4, 4))) / 255
    pixels[1, 2, 0] = value
    with pytest.raises(BadPictureError) as caught:
        check_pixels(pixels)
    assert str(caught.value) == "the picture holds NaN or infinity in 1 of its 48 values"


@pytest.mark.parametrize("value", [0.0, 0.001])
def test_black(value):
    with pytest.raises(BadPictureError) as caught:
        check_pixels(np.full((4, 4, 3), value))
    assert str(caught.value) == "the picture is black: no value reaches half an 8-bit level"


def test_a_single_colour():
    pixels = np.broadcast_to(np.array([1.0, 0.5, 0.0]), (4, 4, 3))
    with pytest.raises(BadPictureError) as caught:
        check_pixels(pixels + np.random.default_rng(0).uniform(0, 1e-4, (4, 4, 3)))
    assert str(caught.value) == (
        "every pixel of the picture has the same colour, RGB (255, 128, 0)"
    )


def test_one_lit_pixel_is_a_picture():
    pixels = np.zeros((4, 4, 3))
    pixels[0, 0, 0] = 1
    assert check_pixels(pixels) is None


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (3, 4, 4), (0, 4, 3)])
def test_other_shapes(shape):
    with pytest.raises(ArgumentError):
        check_pixels(np.zeros(shape))


def test_decibels_of_the_mean_error():
    assert mean_decibels([math.inf, 12.0, 12.0, 12.0]) == pytest.approx(13.249, abs=1e-3)
    assert mean_decibels([30.0]) == pytest.approx(30)
    assert mean_decibels([math.inf, math.inf]) == math.inf


def test_an_interval_over_pictures():
    assert decibel_interval([30.0, 31.0, 32.0, 33.0, 34.0]) is None
    assert decibel_interval([30.0] * 6) == (pytest.approx(30), pytest.approx(30))
    assert decibel_interval([math.inf] * 6) == (math.inf, math.inf)
    few, many = ([26.0, 28.0, 30.0, 32.0, 34.0, 36.0] * n for n in (1, 20))
    low, high = decibel_interval(few)
    assert 26 < low < mean_decibels(few) < high < 36
    inner = decibel_interval(many)
    assert low < inner[0] < mean_decibels(few) < inner[1] < high


def test_the_interval_over_pictures_holds_the_truth():
    random, held = np.random.default_rng(4), 0
    true = mean_decibels(list(random.normal(30, 2, 200_000)))
    for _ in range(100):
        low, high = decibel_interval(list(random.normal(30, 2, 40)))
        held += low <= true <= high
    assert 88 <= held <= 99


def test_recipes_are_compared_picture_by_picture():
    prompts = np.random.default_rng(1).normal(30, 6, 12)  # some prompts are far harder
    nearer = how_much_nearer(list(prompts + 0.8), list(prompts))
    assert (nearer.decibels, nearer.low, nearer.high) == tuple(map(pytest.approx, (0.8,) * 3))
    back = how_much_nearer(list(prompts), list(prompts + 0.8))
    assert back.decibels == pytest.approx(-0.8)
    few = how_much_nearer([30.0, 31.0], [29.0, 30.0])
    assert few.decibels == pytest.approx(1.0)
    assert few.low is few.high is None
    assert how_much_nearer([math.inf], [30.0]) is None


def test_multiples_of_a_floor():
    assert error_multiple([40.0, 40.0], [60.0, 60.0]) == pytest.approx(10)
    assert error_multiple([40.0], [math.inf]) is None
    assert error_multiple([40.0], []) is None


def test_flip_is_0_for_equal_pictures_and_grows():
    pytest.importorskip("flip_evaluator")
    reference = noise()
    near, far = (picture_flip(shifted(reference, by), reference) for by in (2, 20))
    assert picture_flip(reference, reference.copy()) == 0
    assert 0 < near < far < 1
    errors = flip_map(shifted(reference, 20), reference)
    assert errors.shape == (24, 32)
    assert errors.mean() == pytest.approx(far)


def test_without_flip_evaluator_there_is_no_flip(monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    assert picture_flip(noise(), noise(seed=1)) is None
