"""bitsandbytes, behind the doors of a backend: nothing else in quantolab imports it.

Its arithmetic alone is used: a layer holds the quantized values and their scales as buffers of its
own, where they are counted, moved and deleted like any other. What Diffusers calls its form needs
a GPU to be written.
"""

from __future__ import annotations

LIBRARY = "bitsandbytes"
"""What must be installed."""

SIGN = f"{__name__}.layers"
"""What a module must have been made with to hold layers of this backend: ours alone are known."""

PACKAGE = "bitsandbytes"
"""What it is called where packages are installed."""

TITLE = "bitsandbytes"
