"""How near two pictures are, and whether a picture is one at all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ArgumentError, BadPictureError
from .frames import frames_of
from .statistics import LEAST_SAMPLES

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_SSIM_SIGMA, _SSIM_REACH = 1.5, 5  # pixels: Wang's Gaussian window of 11x11
_TRUNCATED = 3.5  # sigmas: where scikit-image ends the window
_RESAMPLES = 9999  # odd by one, so that 2.5 % and 97.5 % fall on resampled means
_LEAST_SIDE = 3  # pixels: a window of one pixel has no structure
_HALF_LEVEL = 0.5 / 255  # half a step of 8-bit pixels: anything less rounds away


def picture_quality(picture: Image.Image, reference: Image.Image) -> tuple[float, float]:
    """Return PSNR in decibels and SSIM of a picture against the reference, over 8-bit RGB.

    PSNR is 10 log10(255**2 / mean squared error) over all pixels and channels, infinite for
    identical pictures. SSIM is that of Wang, Bovik, Sheikh and Simoncelli (2004): the mean over
    channels and positions of their Gaussian window of 11x11 pixels (sigma 1.5), shrunk to what
    fits in smaller pictures; it is 1 for identical pictures. Two videos, each on one sheet, are
    compared frame by frame: PSNR is then that of the mean squared error over all frames, and SSIM
    their mean.

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
    _check_same_size(picture, reference)
    found = [_still_quality(*pair) for pair in _frame_pairs(picture, reference)]
    return _of_all([psnr_db for psnr_db, _ in found]), statistics.fmean(ssim for _, ssim in found)


def _frame_pairs(
    picture: Image.Image, reference: Image.Image
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Yield what is compared: two videos frame by frame, pictures as they are."""
    ours, theirs = frames_of(picture), frames_of(reference)
    if len(ours) != len(theirs):
        raise ArgumentError(
            "two videos can be compared only with as many frames, but one has "
            f"{len(ours)} and the reference {len(theirs)}"
        )
    return zip(ours, theirs, strict=True)


def _still_quality(picture: Image.Image, reference: Image.Image) -> tuple[float, float]:
    import numpy as np

    if min(reference.size) < _LEAST_SIDE:
        raise ArgumentError(
            f"pictures to compare need {_LEAST_SIDE}x{_LEAST_SIDE} pixels or more, "
            f"not {_size(reference)}"
        )
    ratio = _still_psnr(picture, reference)
    if math.isinf(ratio):
        return ratio, 1.0

    from skimage.metrics import structural_similarity

    reach = (min(reference.size) - 1) // 2  # pixels to either side
    ssim = structural_similarity(
        np.asarray(reference.convert("RGB")),
        np.asarray(picture.convert("RGB")),
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        sigma=_SSIM_SIGMA if reach >= _SSIM_REACH else reach / _TRUNCATED,
        use_sample_covariance=False,
    )
    return ratio, float(ssim)


def picture_psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Return PSNR in decibels alone, as `picture_quality` has it: SSIM takes far longer.

    Raises
    ------
    ArgumentError
        If the sizes differ.
    """
    _check_same_size(picture, reference)
    return _of_all([_still_psnr(*pair) for pair in _frame_pairs(picture, reference)])


def _of_all(psnr_db: list[float]) -> float:
    """Return the decibels of a video's mean squared error; of a picture its own, to the bit."""
    return psnr_db[0] if len(psnr_db) == 1 else mean_decibels(psnr_db)


def _still_psnr(picture: Image.Image, reference: Image.Image) -> float:
    import numpy as np

    found = np.asarray(picture.convert("RGB"))  # (height, width, 3)
    wanted = np.asarray(reference.convert("RGB"))  # (height, width, 3)
    if np.array_equal(found, wanted):
        return math.inf  # scikit-image would divide by a squared error of zero

    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(wanted, found, data_range=255))


def flip_map(picture: Image.Image, reference: Image.Image) -> np.ndarray | None:
    """Return how different people would see each pixel when the two pictures take turns: FLIP.

    Parameters
    ----------
    picture, reference : PIL.Image.Image
        Pictures of the same size; other modes are converted to RGB.

    Returns
    -------
    numpy.ndarray or None
        Values from 0 (equal) to 1 of shape (height, width); their mean is the pictures' FLIP. None
        where flip-evaluator isn't installed, which some machines have no wheel for.

    Raises
    ------
    ArgumentError
        If the sizes differ.

    References
    ----------
    Andersson et al., "FLIP: A Difference Evaluator for Alternating Images", Proceedings of the ACM
    on Computer Graphics and Interactive Techniques 3 (2020).
    """
    import numpy as np

    _check_same_size(picture, reference)
    try:
        import flip_evaluator
    except ImportError:
        return None
    wanted, found = (
        np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in (reference, picture)
    )
    errors, _, _ = flip_evaluator.evaluate(wanted, found, "LDR", applyMagma=False)
    return np.asarray(errors, dtype=np.float32).reshape(found.shape[:2])


def picture_flip(picture: Image.Image, reference: Image.Image) -> float | None:
    """Return the mean of `flip_map`: 0 for equal pictures; None where it can't be computed.

    Of two videos the mean over their frames.
    """
    found = [flip_map(*pair) for pair in _frame_pairs(picture, reference)]
    errors = [float(errors.mean()) for errors in found if errors is not None]
    return statistics.fmean(errors) if len(errors) == len(found) else None


def mean_decibels(psnr_db: Sequence[float]) -> float:
    """Return the decibels of the mean squared error over several pictures.

    The mean of their decibels would be infinite where one picture is identical, however far the
    others are.

    Examples
    --------
    >>> round(mean_decibels([math.inf, 12.0, 12.0, 12.0]), 2)
    13.25
    """
    return _decibels(math.fsum(map(_squared_error, psnr_db)) / len(psnr_db))


def decibel_interval(psnr_db: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """Return a 95 % interval of `mean_decibels` over pictures like these; None for few of them.

    The pictures are drawn again with replacement (a percentile bootstrap).
    """
    drawn = _resampled([_squared_error(p) for p in psnr_db], seed)
    return None if drawn is None else (_decibels(drawn[1]), _decibels(drawn[0]))


@dataclass(frozen=True)
class Nearer:
    """By how much one recipe's pictures are nearer to the reference than another's."""

    decibels: float
    """Of the ratio of their mean squared errors: above 0 the first is nearer."""
    low: float | None
    high: float | None
    """95 % interval over pictures; None where they are too few for one."""


def how_much_nearer(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Nearer | None:
    """Return how much nearer one recipe is than another, picture by picture.

    What is hard about a prompt is hard for both, so the same pictures are drawn for both.

    Parameters
    ----------
    one, other : sequence of float
        PSNR in decibels of the same pictures, in the same order.
    seed : int
        Seed of the resampling.

    Returns
    -------
    Nearer or None
        None where either is identical to the reference in all pictures.
    """
    import numpy as np

    errors = np.array([[_squared_error(p) for p in side] for side in (one, other)])
    if not errors.shape[1] or not errors.mean(axis=1).all():
        return None
    said = float(10 * np.log10(errors[1].mean() / errors[0].mean()))
    count = errors.shape[1]
    if count < LEAST_SAMPLES:
        return Nearer(said, None, None)
    picked = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    means = errors[:, picked].mean(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 10 * np.log10(means[1] / means[0])
    ratios = ratios[~np.isnan(ratios)]  # both identical in all that were drawn
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return Nearer(said, float(low), float(high))


def _resampled(errors: list[float], seed: int) -> tuple[float, float] | None:
    """Return a 95 % interval of the mean of some errors; None for fewer than that needs."""
    if len(errors) < LEAST_SAMPLES:
        return None
    if min(errors) == max(errors):
        return errors[0], errors[0]

    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (np.asarray(errors),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _squared_error(psnr_db: float) -> float:
    return 0.0 if math.isinf(psnr_db) else 255**2 / 10 ** (psnr_db / 10)


def _decibels(squared_error: float) -> float:
    return math.inf if squared_error <= 0 else 10 * math.log10(255**2 / squared_error)


def error_multiple(psnr_db: Sequence[float], floor_db: Sequence[float]) -> float | None:
    """Return a recipe's root mean squared error as a multiple of the floor's; None without one."""
    floor = math.fsum(map(_squared_error, floor_db))
    if not floor or len(psnr_db) != len(floor_db):
        return None
    return math.sqrt(math.fsum(map(_squared_error, psnr_db)) / floor)


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
