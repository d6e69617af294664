"""How near two pictures are, and whether a picture is one at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import ArgumentError, BadPictureError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_SSIM_WINDOW = 7  # pixels: scikit-image's default for the uniform window
_LEAST_SIDE = 3  # pixels: a window of one pixel has no structure
_HALF_LEVEL = 0.5 / 255  # half a step of 8-bit pixels: anything less rounds away


def picture_quality(picture: Image.Image, reference: Image.Image) -> tuple[float, float]:
    """Return PSNR in decibels and SSIM of a picture against the reference, over 8-bit RGB.

    PSNR is 10 log10(255**2 / mean squared error) over all pixels and channels, infinite for
    identical pictures. SSIM (Wang, Bovik, Sheikh and Simoncelli, 2004) is the mean over
    channels and positions of a 7x7 window, the largest odd window that fits in smaller
    pictures; it is 1 for identical pictures.

    Parameters
    ----------
    picture, reference : PIL.Image.Image
        Pictures of the same size, 3x3 pixels or more; other modes are converted to RGB.

    Returns
    -------
    tuple of float
        PSNR in decibels, and SSIM.

    Raises
    ------
    ArgumentError
        If the sizes differ or a side has fewer than three pixels.

    Examples
    --------
    >>> from PIL import Image
    >>> picture_quality(Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red"))
    (inf, 1.0)
    """
    import numpy as np

    _check_same_size(picture, reference)
    if min(reference.size) < _LEAST_SIDE:
        raise ArgumentError(
            f"pictures to compare need {_LEAST_SIDE}x{_LEAST_SIDE} pixels or more, "
            f"not {_size(reference)}"
        )
    ratio = picture_psnr(picture, reference)
    if math.isinf(ratio):
        return ratio, 1.0

    from skimage.metrics import structural_similarity

    side = min(_SSIM_WINDOW, min(reference.size))
    ssim = structural_similarity(
        np.asarray(reference.convert("RGB")),
        np.asarray(picture.convert("RGB")),
        data_range=255,
        channel_axis=2,
        win_size=side - (side + 1) % 2,
    )
    return ratio, float(ssim)


def picture_psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Return PSNR in decibels alone, as `picture_quality` has it: SSIM takes far longer.

    Raises
    ------
    ArgumentError
        If the sizes differ.
    """
    import numpy as np

    _check_same_size(picture, reference)
    found = np.asarray(picture.convert("RGB"))  # (height, width, 3)
    wanted = np.asarray(reference.convert("RGB"))  # (height, width, 3)
    if np.array_equal(found, wanted):
        return math.inf  # scikit-image would divide by a squared error of zero

    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(wanted, found, data_range=255))


def difference_map(ours: Image.Image, theirs: Image.Image) -> np.ndarray:
    """Return how far apart two pictures are at each pixel, in 8-bit levels.

    The largest absolute difference of the three channels: a change of hue that leaves the
    brightness alone shows, and no pixel is said to be nearer than its worst channel.

    Parameters
    ----------
    ours, theirs : PIL.Image.Image
        Pictures of the same size; other modes are converted to RGB. Their order is of no account.

    Returns
    -------
    numpy.ndarray
        Whole numbers from 0 to 255 of shape (height, width).

    Raises
    ------
    ArgumentError
        If the sizes differ.

    Examples
    --------
    >>> from PIL import Image
    >>> difference_map(Image.new("RGB", (2, 1), (9, 9, 9)), Image.new("RGB", (2, 1), (9, 4, 7)))
    array([[5, 5]], dtype=uint8)
    """
    import numpy as np

    _check_same_size(ours, theirs)
    one, other = (np.asarray(p.convert("RGB"), dtype=np.int16) for p in (ours, theirs))
    return np.abs(one - other).max(axis=2).astype(np.uint8)


def check_pixels(pixels: np.ndarray) -> None:
    """Raise unless these pixels could be a picture.

    Parameters
    ----------
    pixels : numpy.ndarray
        Floats in [0, 1] of shape (height, width, 3), before rounding to 8 bits, since rounding
        would turn NaN into black.

    Raises
    ------
    BadPictureError
        If a value is NaN or infinite, or the picture is black or a single colour: what weights
        that went wrong produce. Differences below half an 8-bit level don't count.
    ArgumentError
        If the shape is another one.
    """
    import numpy as np

    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ArgumentError(f"pixels must have shape (height, width, 3), not {pixels.shape}")
    wild = int(np.count_nonzero(~np.isfinite(pixels)))
    if wild:
        raise BadPictureError(
            f"the picture holds NaN or infinity in {wild} of its {pixels.size} values"
        )
    lowest, highest = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))  # (3,) each
    if highest.max() < _HALF_LEVEL:
        raise BadPictureError("the picture is black: no value reaches half an 8-bit level")
    if (highest - lowest).max() < _HALF_LEVEL:
        colour = ", ".join(f"{round(float(v) * 255)}" for v in lowest)
        raise BadPictureError(f"every pixel of the picture has the same colour, RGB ({colour})")


def _check_same_size(picture: Image.Image, reference: Image.Image) -> None:
    if picture.size != reference.size:
        raise ArgumentError(
            "two pictures can be compared only at the same size, "
            f"but the picture is {_size(picture)} and the reference {_size(reference)} pixels"
        )


def _size(picture: Image.Image) -> str:
    return "{}x{}".format(*picture.size)
