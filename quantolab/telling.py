"""How somebody who waits is told what goes on: in lines, or by a bar that moves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from tqdm.auto import tqdm


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


class StepBar:
    """Shows how many steps are done: a bar on a terminal or in a notebook, else a line a step.

    Parameters
    ----------
    unit : str
        What a step is called.
    """

    def __init__(self, unit: str = "step") -> None:
        self._unit = unit
        self._plain = not has_bars()
        self._bar: tqdm | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show what goes on, or has ended, and how many of how many steps are done."""
        if self._plain:
            say_line(f"{done:>3} of {total}  {what}")
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit=self._unit, leave=False)
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
