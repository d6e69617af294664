"""Text tables: columns line up, figures to the right, nothing over the width."""

import doctest

import pytest

from quantolab import text_tables
from quantolab.text_tables import cut, markdown_columns, table_width, text_columns, text_line

ROWS = [("weights", "bytes", "state"), ("none", "23.8 GB", "ok"), ("int4", "–", "")]


def test_letters_say_where_cells_stand():
    assert text_columns(ROWS, "lrl") == [
        "weights    bytes  state",
        "none     23.8 GB  ok",
        "int4           –",
    ]
    assert text_columns(ROWS, "rlr") == [
        "weights  bytes    state",
        "   none  23.8 GB     ok",
        "   int4  –",
    ]


def test_the_rule_is_as_wide_as_the_table():
    head, rule, *body = text_columns(ROWS, "lrl", rule=True)
    assert rule == "-" * len(head) == "-" * (7 + 2 + 7 + 2 + 5)
    assert [head, *body] == text_columns(ROWS, "lrl")
    # A last column whose heading is shorter than its cells: the table's width, not the head's.
    assert text_columns([("a", "b"), ("1", "long")], "ll", rule=True)[1] == "-" * 7


@pytest.mark.parametrize(
    ("width", "first"), [(8, "name  w…"), (9, "name  why"), (None, "name  why")]
)
def test_what_goes_over_the_width_is_cut_with_a_sign(width, first):
    rows = [("name", "why"), ("int4", "no")]
    assert text_columns(rows, "ll", width=width) == [first, "int4  no"]


def test_a_line_that_just_fits_is_whole():
    assert cut("12345", 5) == "12345"
    assert cut("123456", 5) == "1234…"


def test_a_wider_cell_elsewhere_moves_the_column():
    assert text_line(("a", "b"), (4, 3), "lr") == "a       b"
    assert len("a       b") == table_width((4, 3))


def test_no_rows_no_lines():
    assert text_columns([], "") == []


@pytest.mark.parametrize("align", ["l", "lll"])
def test_a_letter_a_column(align):
    with pytest.raises(ValueError, match="zip"):
        text_columns([("a", "b")], align)


def test_rows_have_equally_many_cells():
    with pytest.raises(ValueError, match="zip"):
        text_columns([("a", "b"), ("c",)], "ll")


def test_markdown_keeps_its_blanks_and_its_bars():
    assert markdown_columns(ROWS, "lrl") == [
        "| weights |   bytes | state |",
        "| ------- | ------: | ----- |",
        "| none    | 23.8 GB | ok    |",
        "| int4    |       – |       |",
    ]


def test_the_examples_are_true():
    assert doctest.testmod(text_tables).attempted == 4
    assert doctest.testmod(text_tables).failed == 0
