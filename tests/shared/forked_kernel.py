"""A kernel for Jupyter to start that forks off ``zygote``: others import Diffusers for ten seconds.

``python forked_kernel.py CONNECTION_FILE`` lives as long as the kernel does and hands signals on to
it. When it is killed, the kernel ends.
"""

import os
import signal
import sys
from pathlib import Path

from zygote import HOUSE, PLACE, Fork

KERNEL = """
import os, signal, sys, threading

def end_with_who_asked():
    os.read(0, 1)
    os._exit(70)

threading.Thread(target=end_with_who_asked, daemon=True).start()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "ipykernel_launcher"
from ipykernel import kernelapp
kernelapp.launch_new_instance()
"""


def kernel_spec() -> dict[str, object]:
    """Return what Jupyter is told of it; of a kernel started in earnest where none can be forked.

    Without ``zygote`` there is nothing to fork from.
    """
    words = ["-m", "ipykernel_launcher", "-f"]
    if PLACE in os.environ:
        words = ["-P", "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}); "
                 "import forked_kernel; forked_kernel.main()"]  # fmt: skip
    argv = [sys.executable, *words, "{connection_file}"]
    return {"argv": argv, "display_name": "Python 3", "language": "python"}


def main() -> None:
    """Have a kernel forked, and end as it does."""
    said = f"{sys.argv[1]}.log"
    environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}  # isn't its parent
    kernel = Fork(
        Path(os.environ[PLACE]) / HOUSE, environment,
        script=KERNEL, said=[said, said], arguments=["-f", sys.argv[1]],
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel.pid, number))
    sys.exit(kernel.wait() % 256)
