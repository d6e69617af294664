"""Numbers as text: three digits, the right unit, a dash for what wasn't measured."""

import math

import pytest

from quantolab import units
from quantolab.errors import ArgumentError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"),
        (9_996, "10.0 kB"), (128_000, "128 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"),
        (4_310_000, "4.31 MB"), (11_900_000_000, "11.9 GB"), (999_600_000, "1.00 GB"),
        (2_500_000_000_000, "2500 GB"), (None, "–"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_bytes(count, text):
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "unit"),
    [(5, (1, "B")), (5_000, (10**3, "kB")), (5e6, (10**6, "MB")), (23.8e9, (10**9, "GB"))],
)
def test_byte_unit(count, unit):
    assert units.byte_unit(count) == unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4.20 ms"), (0.1824, "182 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"),
        (1.312, "1.31 s"), (59.96, "60.0 s"), (119.4, "119 s"), (125, "2 min 05 s"),
        (3_599.6, "60 min 00 s"), (7_260, "2 h 01 min"), (None, "–"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_seconds(seconds, text):
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.182, 0.175, 0.190), "182 ms (175–190)"),
        ((1.31, 1.29, 1.4), "1.31 s (1.29–1.40)"),
        ((0.998, 0.99, 1.2), "998 ms (990–1200)"),
        ((125, 124, 126), "2 min 05 s (2 min 04 s–2 min 06 s)"),
        ((0.182, None, None), "182 ms"),
        ((0.182, math.nan, math.nan), "182 ms"),
        ((None, None, None), "–"),
    ],
)
def test_interval(values, text):
    assert units.format_interval(*values) == text


def test_decibels_similarity_and_ratio():
    assert units.format_decibels(45.678) == "45.7 dB"
    assert units.format_decibels(math.inf) == "identical"
    assert units.format_similarity(0.98765) == "0.988"
    assert units.format_ratio(1.3249) == "1.32x"
    for write in (units.format_decibels, units.format_similarity, units.format_ratio):
        assert write(None) == write(math.nan) == units.ABSENT


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16GB", 16 * 10**9), ("16 gb", 16 * 10**9), ("16GiB", 16 * 2**30),
        ("1.5 MB", 1_500_000), ("800kB", 800_000), ("1TB", 10**12), ("123", 123), (456, 456),
        ("12 B", 12),
    ],
)  # fmt: skip
def test_parse_bytes(text, count):
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "sixteen", "16 XB", "inf", "nan", "0.5"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ArgumentError) as caught:
        units.parse_bytes(text)
    assert str(caught.value) == (
        f"a size such as 16GB, 16GiB or 16000000000 was expected, not {text!r}"
    )


@pytest.mark.parametrize("count", [1, 999, 12_345, 6_000_000, 11_900_000_000])
def test_what_is_written_can_be_read(count):
    assert units.parse_bytes(units.format_bytes(count)) == pytest.approx(count, rel=0.005)


def test_absent():
    assert [units.is_absent(v) for v in (None, math.nan, 0, 0.0, math.inf, "")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text"), [("q", "q"), (("q", "k"), "q or k"), (["q", "k", "v"], "q, k or v")]
)
def test_a_list_as_a_sentence_says_it(words, text):
    assert units.format_list(words, "or") == text
    assert units.format_list(words) == text.replace(" or ", " and ")
