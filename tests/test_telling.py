"""Who waits is told on standard error, in notebooks in ordinary colours, and never fails for it."""

import sys

from quantolab.telling import has_bars, say_line


def test_lines_go_where_they_are_no_results(capsys, monkeypatch):
    say_line("one")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    say_line("two")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("two\n", "one\n")
    assert has_bars()


def test_nobody_who_reads_is_no_fault(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stderr", Closed())
    say_line("one")
    assert not has_bars()
    monkeypatch.setattr(sys, "stderr", None)
    say_line("one")
    assert not has_bars()
