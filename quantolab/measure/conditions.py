"""What machine, which versions: the circumstances that a figure carries along."""

from __future__ import annotations

import platform
from importlib import metadata

from ..devices import device_name
from ..records import Conditions


def describe_conditions(device: str, peak_method: str | None) -> Conditions:
    """Return the conditions under which this process measures on a device."""
    import torch

    return Conditions(
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        diffusers=metadata.version("diffusers"),
        transformers=metadata.version("transformers"),
        quanto=metadata.version("optimum-quanto"),
        peak_method=peak_method,
    )
