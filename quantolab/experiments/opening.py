"""What every experiment begins with: a bar to show how far it is, unless somebody else watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import ProgressBar
from ..run.session import Watch


@contextmanager
def watched(watch: Watch | None, unit: str = "pictures") -> Iterator[Watch]:
    """Give the watcher that was named, or a progress bar that goes with the block.

    Parameters
    ----------
    watch : callable or None
        As for `compare`.
    unit : str
        What the bar counts, in the plural.
    """
    if watch is not None:
        yield watch
        return
    bar = ProgressBar(unit)
    try:
        yield bar
    finally:
        bar.close()
