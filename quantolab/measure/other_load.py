"""Whether the machine did something else while we measured: latency is rough if it did."""

from __future__ import annotations

import time

BUSY = 0.1
"""Share of the processors' time from which other work makes a latency comparison unfit."""


class OtherLoad:
    """Measure what share of all processors' time others took during a ``with`` block.

    `share` is set when the block ends: from 0 (nothing else ran) to 1; None where the system
    doesn't say. Time stolen by a hypervisor counts, time waiting for disks doesn't.
    """

    def __init__(self) -> None:
        self.share: float | None = None

    def __enter__(self) -> OtherLoad:
        self._before = _seconds()
        return self

    def __exit__(self, *_) -> None:
        import psutil

        before, after = self._before, _seconds()
        if before is None or after is None:
            return
        wall, everybody, own = (b - a for a, b in zip(before, after, strict=True))
        room = wall * (psutil.cpu_count() or 1)
        if room > 0:
            self.share = min(1.0, max(0.0, (everybody - own) / room))


def _seconds() -> tuple[float, float, float] | None:
    """Return the clock, all processes' processor seconds so far, and this process's own."""
    import psutil

    try:
        machine = psutil.cpu_times()
        own = psutil.Process().cpu_times()
    except (psutil.Error, OSError):
        return None
    # Guests are counted in user time already; idle and iowait are nobody's work.
    idle = {"idle", "iowait", "guest", "guest_nice"}
    everybody = sum(v for k, v in machine._asdict().items() if k not in idle)
    return time.monotonic(), everybody, own.user + own.system
