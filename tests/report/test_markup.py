"""HTML tables: what is text is escaped, figures stand to the right, and the markup is whole."""

from html.parser import HTMLParser

import pytest

from quantolab.report.markup import Raw, pairs, table, table_cell, table_of, table_row


class Seen(HTMLParser):
    """Cells of a table: tag, attributes and words; and whether all that opens is closed."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1][2].append(data)

    @property
    def words(self):
        return ["".join(words) for _, _, words in self.cells]


def test_cells_are_escaped_unless_they_are_html():
    text = table(("a<b",), [("<i>",), (Raw("<b>bold</b>"),)], align="l")
    assert Seen(text).words == ["a<b", "<i>", "bold"]
    assert "&lt;i&gt;" in text and "<b>bold</b>" in text


def test_a_letter_a_column():
    seen = Seen(table(("x", "y"), [("1", "2")], align="lr", foot=("all", "3")))
    sides = ["right" if "text-align:right" in a["style"] else "left" for _, a, _ in seen.cells]
    assert sides == ["left", "right"] * 3
    assert [tag for tag, _, _ in seen.cells] == ["th", "th", "td", "td", "td", "td"]
    assert ["font-weight:600" in a["style"] for _, a, _ in seen.cells] == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="zip"):
        table(("x", "y"), [("1",)], align="lr")


def test_a_high_table_scrolls_under_its_heading():
    high, low = (table(("x",), [("1",)], align="l", height=height) for height in ("9em", ""))
    assert "max-height:9em" in high and "position:sticky" in high and "tabindex='0'" in high
    assert "max-height" not in low and "position:sticky" not in low


def test_pairs_name_their_rows():
    seen = Seen(pairs([("on disk", "3.4 MB"), ("<odd>", Raw("yes"))]))
    assert seen.words == ["on disk", "3.4 MB", "<odd>", "yes"]
    assert [a.get("scope") for _, a, _ in seen.cells] == ["row", None] * 2


def test_the_pieces():
    cell = table_cell("a & b", "color:red", rowspan=2)
    assert cell == "<td rowspan='2' style='color:red'>a &amp; b</td>"
    row = table_row([cell])
    assert table_of(row, "border:0", "ql") == f"<table class='ql' style='border:0'>{row}</table>"
    assert row == f"<tr>{cell}</tr>"
