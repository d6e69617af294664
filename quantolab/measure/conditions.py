"""What machine, which versions: the circumstances that a figure carries along."""

from __future__ import annotations

import platform
from importlib import metadata

from ..devices import device_name


def describe_conditions(device: str, peak_method: str | None) -> dict:
    """Return the fields of `records.Conditions` for this process, as plain values."""
    import torch

    return {
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "diffusers": metadata.version("diffusers"),
        "transformers": metadata.version("transformers"),
        "quanto": metadata.version("optimum-quanto"),
        "peak_method": peak_method,
    }
