"""Which device runs, and what to call it. torch is imported inside the functions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .errors import ArgumentError, UnsupportedError, one_of

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")

BEST_FIRST = ("cuda", "xpu", "mps", "cpu")
"""Which of them ``auto`` takes: the first that is there."""

_SPOKEN = {"gpu": "'cuda'", "nvidia": "'cuda'", "rocm": "'cuda'", "hip": "'cuda'", "amd": "'cuda'",
           "metal": "'mps'", "apple": "'mps'", "intel": "'xpu'"}  # fmt: skip
"""What devices are called elsewhere. torch built for AMD's ROCm calls it cuda too."""

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def resolve_device(device: str = "auto") -> str:
    """Return the device that `device` means on this machine.

    Parameters
    ----------
    device : str
        ``"auto"`` takes the accelerator if there is one, else the CPU.

    Raises
    ------
    ArgumentError
        If the word is unknown.
    UnsupportedError
        If this machine or this build of torch has no such device.
    """
    import torch

    kind = check_device(device)
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if kind == "auto":
        return next(name for name in BEST_FIRST if there[name])
    if not there[kind]:
        found = ", ".join(name for name, ok in there.items() if ok)
        raise UnsupportedError(
            f"device {kind!r} was asked for, but torch {torch.__version__} finds only: {found}"
        )
    return device


def check_device(device: str) -> str:
    """Return the kind of a device, ``"cuda"`` of ``"cuda:1"``, whether or not there is one here.

    Raises
    ------
    ArgumentError
        If the word is unknown; what others call an accelerator gets its name here.
    """
    kind, colon, index = str(device).partition(":")
    if kind.casefold() in _SPOKEN:
        raise ArgumentError(
            f"device {device!r} is not known; allowed: {', '.join(DEVICES)}; did you mean "
            f"{_SPOKEN[kind.casefold()]}?"
        )
    one_of("device", kind, DEVICES)
    if colon and not (index.isascii() and index.isdigit() and kind in ("cuda", "xpu")):
        raise ArgumentError(
            f"device {device!r} is not known; allowed: {', '.join(DEVICES)}, and cuda:N or xpu:N"
        )
    return kind


def processor_computes(dtype: str) -> bool:
    """Return whether this machine's processor multiplies in a compute dtype by itself.

    Without that, torch does it number by number, several times slower than in float32.
    """
    import torch

    if dtype == "bfloat16":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == "float16":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def device_name(device: str) -> str:
    """Return the name of the hardware behind a device, as its maker calls it."""
    import torch

    kind = device.split(":")[0]
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind == "xpu":
        return torch.xpu.get_device_name(device)
    return _cpu_name()


def synchronize(device: str) -> None:
    """Wait until the device has done all that was asked of it; nothing to do on a CPU."""
    import torch

    kind = device.split(":")[0]
    if kind == "mps":  # there is one
        torch.mps.synchronize()
    elif kind != "cpu":
        getattr(torch, kind).synchronize(device)  # without a name, the current one


def give_back(device: str) -> None:
    """Give back what an accelerator's allocator keeps and nobody uses, as after an error."""
    import gc

    import torch

    gc.collect()  # what an error's frames held
    kind = device.split(":")[0]
    if kind != "cpu":
        getattr(torch, kind).empty_cache()


def free_bytes(device: str) -> int | None:
    """Return the free memory of a device; None where there is no way to know."""
    kind = device.split(":")[0]
    if kind == "cpu":
        import psutil

        available = int(psutil.virtual_memory().available)
        allowed = _cgroup_memory()
        return available if allowed is None else min(available, allowed)
    import torch

    if kind == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    module = getattr(torch, kind)
    return int(module.mem_get_info(device)[0]) if hasattr(module, "mem_get_info") else None


def held_bytes(device: str) -> tuple[int, int] | None:
    """Return what everybody holds of an accelerator's memory, and what this process allocated.

    None where the device doesn't say, and for a CPU, whose other work is seen by its processors.
    """
    kind = device.split(":")[0]
    if kind == "cpu":
        return None
    import torch

    module = getattr(torch, kind)
    if not hasattr(module, "mem_get_info") or not hasattr(module, "memory_reserved"):
        return None
    free, total = module.mem_get_info(device)
    return int(total - free), int(module.memory_reserved(device))


def allowed_processors() -> tuple[int, ...]:
    """Return the numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def processor_quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float | None:
    """Return how many processors' time this process's cgroup may take; None without a quota."""
    quotas = []
    for text in _cgroup_texts("cpu.max", root, own):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():  # else "max"
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_memory(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int | None:
    """Return the bytes that this process's cgroup may still take; None without a limit."""
    free = []
    limits = _cgroup_texts("memory.max", root, own)
    taken = _cgroup_texts("memory.current", root, own)
    for limit, current in zip(limits, taken, strict=False):
        if limit.isdigit() and current.isdigit():
            free.append(max(0, int(limit) - int(current)))
    return min(free, default=None)


def _cgroup_texts(name: str, root: Path, own: Path) -> list[str]:
    """Return what a file says in this process's cgroup (version 2) and in those above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    mine = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    folder = root / mine
    texts = []
    for path in (folder, *(p for p in folder.parents if p.is_relative_to(root))):
        try:
            texts.append((path / name).read_text().strip())
        except OSError:
            continue
    return texts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = " ".join(line.split(":", 1)[1].split())
                return f"{name}, {os.cpu_count()} cores"
    except OSError:
        pass  # no /proc outside Linux
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
