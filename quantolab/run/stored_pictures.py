"""A run's pictures as they lie on disk: known by their heads, decoded when they are looked at."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image

from ..errors import BrokenModelError
from ..files.json_objects import check_inside

_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # of a PNG file, up to width and height
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # one that was cut lacks it


class StoredPicture(Image.Image):
    """A picture in a run's folder, whose pixels are read once somebody asks for them.

    All that PIL does with a picture it does with this one: it calls `load` first.

    Parameters
    ----------
    folder, path : Path
        The run's folder, which nothing may lead out of, and the file.
    size : (int, int)
        Width and height, by the file's head.
    key : str
        Digest of where the file lies and when it was written.
    """

    def __init__(self, folder: Path, path: Path, size: tuple[int, int], key: str) -> None:
        super().__init__()
        self._mode, self._size = "RGB", size
        self._place = (folder, path)
        self.key = key

    @property
    def is_decoded(self) -> bool:
        """Whether its pixels are in memory."""
        return self._im is not None

    def load(self) -> Any:
        """Read the pixels, unless they are here, and do what PIL does.

        Raises
        ------
        BrokenModelError
            If the file is gone, or can't be decoded.
        """
        if self._im is None:
            picture = decoded(*self._place, self.size)
            self.im, self.info = picture.im, picture.info
        return super().load()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image.Image):
            return NotImplemented
        self.load(), other.load()
        mine = (self.mode, self.size, self.info, self.tobytes())
        return mine == (other.mode, other.size, other.info, other.tobytes())

    __hash__ = None  # type: ignore[assignment]  # as of any picture


def stored_picture(folder: Path, path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture of a run without decoding it, where its head and its end are a PNG file's.

    Parameters
    ----------
    folder, path : Path
        The run's folder, and the file.
    size : (int, int), optional
        Width and height that it must have.

    Raises
    ------
    BrokenModelError
        If it is missing, no PNG file, or has another size.
    """
    check_inside(folder, path)
    try:
        with path.open("rb", buffering=0) as file:
            start, now = file.read(len(_START) + 8), path.stat()
            file.seek(max(0, now.st_size - len(_END)))
            whole = start.startswith(_START) and file.read() == _END
    except OSError as error:
        raise _unreadable(path) from error
    if not whole or len(start) < len(_START) + 8:
        return decoded(folder, path, size)  # says what is wrong, if anything is
    found = struct.unpack(">II", start[len(_START) :])
    if 0 in found:  # no picture, and nothing can be laid out for it
        raise _unreadable(path)
    if size is not None and found != size:
        raise _of_other_size(path, found, size)
    stamp = repr((str(path), now.st_mtime_ns, now.st_size, now.st_ino))
    return StoredPicture(folder, path, found, xxhash.xxh3_128_hexdigest(stamp.encode()))


def decoded(folder: Path, path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture of a run, pixels and all; parameters and errors as for `stored_picture`."""
    check_inside(folder, path)
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if size is not None and picture.size != size:
                raise _of_other_size(path, picture.size, size)
            return picture.convert("RGB")
    except BrokenModelError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> BrokenModelError:
    return BrokenModelError(f"{path}, which the run lists, can't be read")


def _of_other_size(path: Path, found: tuple[int, int], size: tuple[int, int]) -> BrokenModelError:
    said = "{}x{} pixels, where the run says {}x{}".format(*found, *size)
    return BrokenModelError(f"{path} has {said}")
