"""``python -m quantolab`` does what the ``quantolab`` command does."""

import sys

# Python put the current folder first, and a torch.py there is a stranger's file, no library.
if not sys.flags.safe_path:
    del sys.path[0]

from .cli import run_and_exit

run_and_exit()
