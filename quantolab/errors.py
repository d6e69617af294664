"""Every way quantolab says no: what was asked, what was received, what is allowed.

Imports nothing of ours and nothing heavy, so that any room can raise these.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

# A place in the Hub's cache, in quotes or not, and what a token of the Hub looks like.
_IN_CACHE = (
    r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+?)[\\/]+snapshots[\\/]+"
    r"(?P<commit>[0-9a-f]{7})[0-9a-f]*(?P<path>(?:[\\/]+[^\s'\",;:()\\/]+)*)"
)
_QUOTED = re.compile(rf"(?<=['\"])[^'\"\n]*?{_IN_CACHE}")
_BARE = re.compile(
    rf"(?:(?<=[\s(=:])|^)(?:[A-Za-z]:)?[\\/](?:(?!\s(?:[A-Za-z]:)?[\\/])[^'\"\n])*?{_IN_CACHE}"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def as_asked(text: str) -> str:
    """Return a text with models of the Hub named as one asks for them, and without tokens.

    Nobody asked for ``/home/me/.cache/.../models--owner--name/snapshots/0123.../transformer``: it
    becomes ``owner/name/transformer``.
    """
    for pattern in (_QUOTED, _BARE):
        text = pattern.sub(_asked_name, text)
    return _TOKEN.sub("hf_…", text)


def _asked_name(found: re.Match[str]) -> str:
    return f"{found['owner']}/{found['name']}{found['path']}".replace("\\", "/")


class QuantolabError(Exception):
    """Base of every error that quantolab raises on purpose. Its text is one clear sentence."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(as_asked(arg) if isinstance(arg, str) else arg for arg in args))


class ArgumentError(QuantolabError, ValueError):
    """An argument has a value that can't be used; the text names the allowed ones."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument isn't of the kind that its function takes; the text says which it takes."""


class ModelNotFoundError(QuantolabError, FileNotFoundError):
    """A model, folder or file that was asked for isn't there."""


class BrokenModelError(QuantolabError, ValueError):
    """Files are there, but they aren't a model that can be read (truncated, foreign, malformed)."""


class OutputError(QuantolabError, OSError):
    """Results can't be written where they were asked to go."""


class StorageError(QuantolabError, OSError):
    """The system refuses a file or folder: a name too long, no right to read, no room."""


class UnsupportedError(QuantolabError):
    """The combination can't work on this machine or with these versions; the text says why."""


class BadPictureError(QuantolabError):
    """A picture came out black, constant or not a number."""


class Cancelled(QuantolabError):
    """The user ended the work; what was finished is kept."""


class WorkersLost(QuantolabError):
    """The workers that a run was given, or their scheduler, are gone; finished trials are kept."""


class JobFailed(QuantolabError):
    """A job's process ended without a result; the text says how."""


class JobRaised(JobFailed):
    """A job ended with an error that nobody raises on purpose; the text says which."""


class JobOutOfMemory(JobRaised):
    """A job asked for more memory than there is; the text begins with that."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch and the system have several words for it."""
    if isinstance(error, (MemoryError, JobOutOfMemory)):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # On a CPU torch says so in a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def first_line(error: BaseException | str) -> str:
    """Return the first line of what an error says, or its class's name if it says nothing."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__ if isinstance(error, BaseException) else ""


def with_kind(error: BaseException) -> str:
    """Return an error's class and the first line of what it says: ``KeyError: 'x'``."""
    kind, line = type(error).__name__, first_line(str(error))
    return f"{kind}: {line}" if line else kind


def nearest(asked: str, allowed: Iterable[str], likeness: float = 0.5) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed spellings, or an empty string.

    Parameters
    ----------
    asked : str
        What was written.
    allowed : iterable of str
        What could have been written.
    likeness : float
        From 0 to 1, below which spellings aren't close.
    """
    folded = {a.casefold(): a for a in allowed}
    close = difflib.get_close_matches(asked.casefold(), list(folded), n=3, cutoff=likeness)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(folded[c]) for c in close) + "?"


def one_of(what: str, asked: object, allowed: Iterable[str]) -> str:
    """Return `asked` if it is one of the allowed words, else raise with all of them listed.

    Raises
    ------
    ArgumentError
        Naming what was asked, every allowed word and the nearest right spelling.
    """
    words = tuple(allowed)
    if isinstance(asked, str) and asked in words:
        return asked
    hint = nearest(asked, words) if isinstance(asked, str) else ""
    raise ArgumentError(f"{what} {asked!r} is not known; allowed: {', '.join(words)}{hint}")


def whole_number(what: str, asked: object, least: int = 1, most: int | None = None) -> int:
    """Return `asked` if it is a whole number from `least` to `most`, else raise `ArgumentError`."""
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= least:
        if most is None or asked <= most:
            return asked
        raise ArgumentError(f"{what} must be a whole number of {most} or less")
    raise ArgumentError(f"{what} must be a whole number of {least} or more, not {asked!r}")
