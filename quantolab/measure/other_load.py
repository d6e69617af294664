"""Whether the machine did something else while we measured, on the processors that we may use."""

from __future__ import annotations

import time

from ..devices import allowed_processors, processor_quota

BUSY = 0.1
"""Share of the processors' time from which other work is told beside a latency."""


class OtherLoad:
    """Measure what others took of the processors that this process may use, in a ``with`` block.

    Those are the ones of its affinity, and no more than its cgroup's quota. When the block ends,
    `share` is from 0 (nothing else ran) to 1, or None where the system doesn't say; `seconds` and
    `room` are processor seconds: what others took, and what there were. Time stolen by a
    hypervisor counts, time waiting for disks doesn't. Clocks tick a hundred times a second, so in
    a short block others may seem to have taken a little less than nothing.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self.seconds: float | None = None
        self.room = 0.0

    def __enter__(self) -> OtherLoad:
        self._mine = allowed_processors()
        self._before = _seconds(self._mine)
        return self

    def __exit__(self, *_) -> None:
        before, after = self._before, _seconds(self._mine)
        if before is None or after is None:
            return
        wall, everybody, own = (b - a for a, b in zip(before, after, strict=True))
        quota = processor_quota()
        room = len(self._mine) if quota is None else min(quota, len(self._mine))
        self.room = wall * room
        # What a quota leaves us no use for, others may have.
        self.seconds = everybody - own - wall * (len(self._mine) - room)
        self.share = share_of(self.seconds, self.room)


def share_of(seconds: float | None, room: float) -> float | None:
    """Return processor seconds as a share of what there were, from 0 to 1; None if not known."""
    return None if seconds is None or room <= 0 else min(1.0, max(0.0, seconds / room))


def _seconds(processors: tuple[int, ...]) -> tuple[float, float, float] | None:
    """Return the clock, processor seconds of everybody on these so far, and this process's own."""
    import psutil

    try:
        each = psutil.cpu_times(percpu=True)
        own = psutil.Process().cpu_times()
    except (psutil.Error, OSError):
        return None
    # Guests are counted in user time already; idle and iowait are nobody's work.
    idle = {"idle", "iowait", "guest", "guest_nice"}
    everybody = sum(
        value
        for number in processors
        if number < len(each)
        for kind, value in each[number]._asdict().items()
        if kind not in idle
    )
    return time.monotonic(), everybody, own.user + own.system
