"""How somebody who waits is told what goes on: in lines, or by a bar that moves."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO


class Bar(Protocol):
    """What is asked of a bar of tqdm's."""

    def write(self, s: str, file: TextIO | None = None) -> None:
        """Write a line above it."""


def is_in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    return "ipykernel" in sys.modules


def has_bars() -> bool:
    """Whether a bar can be shown; in a file or a pipe it would be thousands of lines."""
    return is_in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def say_line(line: str, bar: Bar | None = None) -> None:
    """Write a line that isn't a result: on standard error, in notebooks as ordinary text.

    There standard error is red, as what went wrong is.

    Parameters
    ----------
    line : str
        Without its end.
    bar : Bar, optional
        The one that is shown meanwhile.
    """
    stream = sys.stdout if is_in_notebook() else sys.stderr
    if stream is None:  # closed by who called
        return
    try:
        if bar is not None:
            bar.write(line, file=stream)
        else:
            stream.write(line + "\n")
            stream.flush()
    except OSError:
        pass  # nobody reads it any more, or the terminal was closed: the work goes on
