"""Libraries are imported without their lines about kernels for other machines, and quickly."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep warnings, logged or not, away from the user while libraries are imported."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no rubbish while libraries are imported: what they make stays.

    Torch and Diffusers make so many objects that looking through them over and over takes a
    quarter of the time that importing them does. For processes that hold no model yet: until
    its end rubbish takes some megabytes, which a load's peak would show.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
