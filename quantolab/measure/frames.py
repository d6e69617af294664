"""Videos: all their frames on one sheet, which is kept, shown and compared as a picture is.

A sheet says how many frames it holds; from that alone follows where each of them is: line by line,
as many in a line as make the lines as many, or one more than the lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES = "frames"
"""Under which name a sheet says how many it holds, in its file too."""
MOST_FRAMES = 10_000


def lines_and_columns(count: int) -> tuple[int, int]:
    """Return how many lines and columns a sheet of so many frames has.

    Examples
    --------
    >>> lines_and_columns(81), lines_and_columns(17)
    ((9, 9), (4, 5))
    """
    columns = math.isqrt(count - 1) + 1
    return math.ceil(count / columns), columns


def sheet_of(frames: np.ndarray) -> Image.Image:
    """Return the sheet of a video.

    Parameters
    ----------
    frames : numpy.ndarray
        8-bit values of shape (frames, height, width, 3).

    Returns
    -------
    PIL.Image.Image
        What is left over of the last line is black.
    """
    import numpy as np
    from PIL import Image

    count, height, width, colours = frames.shape
    lines, columns = lines_and_columns(count)
    places = np.zeros((lines * columns, height, width, colours), np.uint8)
    places[:count] = frames
    whole = places.reshape(lines, columns, height, width, colours).swapaxes(1, 2)
    sheet = Image.fromarray(whole.reshape(lines * height, columns * width, colours))
    sheet.info[FRAMES] = count
    return sheet


def frame_count(picture: Image.Image) -> int | None:
    """Return how many frames a sheet holds; None for a picture that is no sheet."""
    picture.load()  # one that lies on disk says it once it is read
    try:
        count = int(picture.info.get(FRAMES, 0))
    except (TypeError, ValueError):
        return None
    if not 1 <= count <= MOST_FRAMES:
        return None
    lines, columns = lines_and_columns(count)
    width, height = picture.size
    return None if width % columns or height % lines else count


def frame_size(size: tuple[int, int], count: int | None) -> tuple[int, int]:
    """Return width and height of one frame of a sheet of this size; a picture's are its own."""
    if count is None:
        return size
    lines, columns = lines_and_columns(count)
    return size[0] // columns, size[1] // lines


def frames_of(picture: Image.Image) -> list[Image.Image]:
    """Return the frames of a sheet in their order; a picture that is none is its only frame."""
    count = frame_count(picture)
    if count is None:
        return [picture]
    _, columns = lines_and_columns(count)
    width, height = frame_size(picture.size, count)
    found = []
    for number in range(count):
        left, top = number % columns * width, number // columns * height
        found.append(picture.crop((left, top, left + width, top + height)))
    return found


def save_png(picture: Image.Image, path: Any, words: Mapping[str, str] = {}) -> None:
    """Write a picture, or a sheet with the number of its frames, as PNG with words beside."""
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    count = frame_count(picture)
    if count is not None:
        said.add_text(FRAMES, str(count))
    for name, text in words.items():
        said.add_itxt(name, text)
    picture.save(path, "PNG", pnginfo=said)
