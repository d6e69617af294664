"""FLIP's error maps in the grid: of every picture, in one scale, absent with a sentence."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image

from quantolab.errors import ArgumentError, UnsupportedError
from quantolab.measure.quality import flip_map
from quantolab.report import error_maps as module
from quantolab.report.error_maps import error_maps, why_no_flip
from quantolab.report.grid import image_grid, picture_scale, shown_pixels

RED = "a red circle above a blue square"


@pytest.fixture
def flip():
    pytest.importorskip("flip_evaluator")


@pytest.fixture
def no_flip(monkeypatch):
    """A machine that flip-evaluator has no wheel for."""
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)


def test_a_map_for_every_picture_but_the_references(flip, comparison):
    maps = error_maps(comparison, {})
    assert set(maps.images) == {key for key in comparison.images if key[0] != "none"}
    for key in (("float8", RED, 1), ("int4", RED, 0)):
        pair = comparison.images[key], comparison.images["none", *key[1:]]
        errors = flip_map(*pair)
        assert maps.captions[key] == f"FLIP {errors.mean():.3f}"
        assert maps.images[key].size == pair[0].size
        # Brighter where it errs more, and as bright as its share of the one scale.
        grey = np.asarray(maps.images[key].convert("L"), dtype=float)
        order = np.argsort(np.minimum(errors, maps.scale.maximum).ravel())
        assert (np.diff(grey.ravel()[order]) >= -2).all()


def test_errors_are_computed_once_for_the_same_pictures(flip, comparison, monkeypatch):
    computed, was = [], module.flip_map
    monkeypatch.setattr(module, "flip_map", lambda *pair: computed.append(1) or was(*pair))
    known = {}
    error_maps(comparison, known)
    first = len(computed)
    key = ("int4", RED, 0)
    error_maps(comparison, known)
    assert len(computed) == first > 0
    other = comparison.images | {key: Image.new("RGB", comparison.images[key].size, "red")}
    error_maps(dataclasses.replace(comparison, images=other), known)
    assert len(computed) == first + 1


def test_the_grid_shows_them_in_place_of_the_pictures(flip, comparison):
    figure = image_grid(comparison, view="errors")
    maps = error_maps(comparison, {})
    scale = picture_scale(comparison.images["none", RED, 0].size)
    for axes in figure.axes:
        key = next(k for k in comparison.images if str(k) == axes.get_label())
        expected = maps.images.get(key, comparison.images[key])  # the reference's own stay
        np.testing.assert_array_equal(axes.images[0].get_array(), shown_pixels(expected, scale))
    texts = [text.get_text() for text in figure.texts]
    assert set(maps.captions.values()) <= set(texts)
    said = " ".join(texts)
    assert "maps of FLIP" in said and maps.scale.ticks[-1] in said


def test_pictures_of_other_sizes_have_none(flip, comparison):
    key = ("int4", RED, 0)
    odd = comparison.images | {key: Image.new("RGB", (9, 9))}
    maps = error_maps(dataclasses.replace(comparison, images=odd), {})
    assert key not in maps.images and ("int4", RED, 1) in maps.images


def test_without_a_reference_there_are_none(flip, make):
    with pytest.raises(ArgumentError, match="no unquantized reference to show errors against"):
        image_grid(make(["int8", "int4"], compiled=()), view="errors")
    with pytest.raises(ArgumentError, match="view 'error' is not known"):
        image_grid(make(["none", "int4"], compiled=()), view="error")


def test_without_the_package_there_are_none_and_one_sentence_says_so(no_flip, comparison):
    assert why_no_flip() == "Error maps need the package flip-evaluator, which isn't installed."
    with pytest.raises(UnsupportedError, match="need the package flip-evaluator"):
        image_grid(comparison, view="errors")
    image_grid(comparison)  # the pictures are there
