"""The only place that turns numbers into text: bytes, seconds, ratios, decibels.

Values are held in bytes and seconds everywhere else; names of columns end in the unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import ArgumentError

# Decimal units, as disk makers and GPU data sheets use them; "GiB" would be 1024^3.
_BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_PARSE_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip

# From here on three digits read 1000: 999.5 kB is said as 1.00 MB.
_ROUNDS_UP = 0.9995

ABSENT = "–"


def is_absent(value: object) -> bool:
    """Return whether a value was not measured: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def format_bytes(count: float | None) -> str:
    """Return bytes as people say them, three digits: ``11.9 GB``; absent is a dash."""
    if is_absent(count):
        return ABSENT
    size, unit = byte_unit(count)
    scaled = count / size
    return f"{scaled:.{_decimals(scaled) if size > 1 else 0}f} {unit}"


def byte_unit(count: float) -> tuple[int, str]:
    """Return the bytes and the name of the unit that suits a size: ``(10**6, "MB")``.

    For the axis of a plot, where every tick has the same unit.
    """
    for size, unit in _BYTE_UNITS:
        if count >= size * _ROUNDS_UP:
            return size, unit
    return 1, "B"


def format_seconds(seconds: float | None) -> str:
    """Return a duration as people say it: ``182 ms``, ``1.31 s``, ``2 min 05 s``."""
    if is_absent(seconds):
        return ABSENT
    if seconds < _ROUNDS_UP:
        return f"{seconds * 1000:.{_decimals(seconds * 1000)}f} ms"
    if seconds < 120:
        return f"{seconds:.{_decimals(seconds)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_roughly(seconds: float | None) -> str:
    """Return an estimate of a duration, no finer than it deserves: ``about 40 s``."""
    if is_absent(seconds):
        return ABSENT
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    return f"about {round(seconds / 3600, 1):g} h"


def format_interval(seconds: float | None, low: float | None, high: float | None) -> str:
    """Return a duration with its interval, the unit said once: ``182 ms (175–190)``."""
    if is_absent(seconds) or is_absent(low) or is_absent(high):
        return format_seconds(seconds)
    middle = format_seconds(seconds)
    number, _, unit = middle.partition(" ")
    if unit not in ("s", "ms"):
        return f"{middle} ({format_seconds(low)}–{format_seconds(high)})"
    scale, places = 1000 if unit == "ms" else 1, len(number.partition(".")[2])
    return f"{middle} ({low * scale:.{places}f}–{high * scale:.{places}f})"


def format_decibels(
    decibels: float | None, low: float | None = None, high: float | None = None
) -> str:
    """Return a PSNR, with its interval if it has one: ``45.7 dB (44.9–46.8)``.

    Infinity (identical pictures) is said in words.
    """
    if is_absent(decibels):
        return ABSENT
    if math.isinf(decibels):
        return "identical"
    said = f"{decibels:.1f} dB"
    if is_absent(low) or is_absent(high):
        return said
    return f"{said} ({low:.1f}–{'∞' if math.isinf(high) else f'{high:.1f}'})"


def format_multiple(value: float | None) -> str:
    """Return how many times something is another, in two digits: ``2.2x``, ``136x``."""
    if is_absent(value):
        return ABSENT
    return f"{value:.1f}x" if value < 9.95 else f"{value:.0f}x"


def format_similarity(value: float | None) -> str:
    """Return an SSIM with three digits."""
    return ABSENT if is_absent(value) else f"{value:.3f}"


def format_ratio(value: float | None) -> str:
    """Return a ratio: ``1.32x``."""
    return ABSENT if is_absent(value) else f"{value:.2f}x"


def format_percent(share: float | None, places: int = 0, space: str = " ") -> str:
    """Return a share of one in per cent: ``26 %``, with so many decimals."""
    return ABSENT if is_absent(share) else f"{100 * share:.{places}f}{space}%"


def format_digits(value: float | None, digits: int = 3) -> str:
    """Return a number without a unit, in at most so many digits: ``0.0123``."""
    return ABSENT if is_absent(value) else f"{value:.{digits}g}"


def format_places(value: float | None, places: int = 2) -> str:
    """Return a number without a unit, with so many decimals: ``0.50``."""
    return ABSENT if is_absent(value) else f"{value:.{places}f}"


def format_count(count: int, what: str) -> str:
    """Return ``"1 picture"`` or ``"2 pictures"``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def format_list(words: Sequence[str], last: str = "and") -> str:
    """Return words as a sentence says them: ``"q, k and v"``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def parse_bytes(text: str | int) -> int:
    """Return the bytes that ``16GB``, ``16 GiB`` or a plain number of bytes say.

    Raises
    ------
    ArgumentError
        If the text is no positive size.
    """
    word = str(text).strip().upper().replace(" ", "")
    digits = word.rstrip("KMGTIB")
    unit = word[len(digits) :]
    try:
        count = float(digits) * _PARSE_UNITS[unit]
    except (KeyError, ValueError):
        count = math.nan
    if not (count >= 1 and math.isfinite(count)):
        raise ArgumentError(f"a size such as 16GB, 16GiB or 16000000000 was expected, not {text!r}")
    return int(count)


def _decimals(scaled: float) -> int:
    """Decimals that leave three significant digits for a value of 1 to 999."""
    return 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
