"""The highest memory while something runs, on the device that runs it."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

_SAMPLE_SECONDS = 0.01

ALLOCATOR = "allocator's peak on the device"
RESIDENT = "process's resident peak"
SAMPLED = "process's resident size, sampled every 10 ms"


def private_bytes() -> int | None:
    """Return what this process holds by itself: neither shared libraries nor mapped files.

    None where the system doesn't say.
    """
    import psutil

    _give_back()
    try:
        full = psutil.Process().memory_full_info()
    except (psutil.Error, OSError):
        return None
    return int(full.uss)


def _give_back() -> None:
    """Have the allocator return what it keeps of freed memory, which says nothing (glibc only)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass


class PeakMemory:
    """Measure the memory peak of a ``with`` block.

    On an accelerator it is the allocator's peak; on a CPU the resident peak of this process,
    which includes the libraries it has loaded. `bytes` and `method` are set when the block ends;
    `bytes` is None where there is no way to know (MPS keeps no peak). So is `reserved`, what the
    allocator took from an accelerator; None elsewhere.

    Parameters
    ----------
    device : str
        Device that runs the block.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._kind = device.split(":")[0]
        self._sampler: _Sampler | None = None
        self.bytes: int | None = None
        self.reserved: int | None = None
        self.method: str | None = None

    def __enter__(self) -> PeakMemory:
        if self._kind in ("cuda", "xpu"):
            import torch

            # Without a name, libraries answer for their current device.
            getattr(torch, self._kind).reset_peak_memory_stats(self._device)
        elif self._kind == "cpu" and not _reset_resident_peak():
            self._sampler = _Sampler()
            self._sampler.start()
        return self

    def __exit__(self, *_) -> None:
        if self._kind in ("cuda", "xpu"):
            import torch

            library = getattr(torch, self._kind)
            self.bytes = library.max_memory_allocated(self._device)
            self.reserved = library.max_memory_reserved(self._device)
            self.method = ALLOCATOR
        elif self._sampler is not None:
            self.bytes, self.method = self._sampler.stop(), SAMPLED
        elif self._kind == "cpu":
            self.bytes, self.method = _resident_peak(), RESIDENT


def _reset_resident_peak() -> bool:
    """Make the kernel forget the resident peak so far; False where it can't (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _resident_peak() is not None


def _resident_peak() -> int | None:
    """Return VmHWM in bytes; `getrusage` is no use, since its peak is inherited over a fork."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class _Sampler(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._peak = 0

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self._peak = max(self._peak, process.memory_info().rss)
            if self._done.wait(_SAMPLE_SECONDS):
                return

    def stop(self) -> int | None:
        self._done.set()
        self.join()
        return self._peak or None
