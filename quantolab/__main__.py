"""``python -m quantolab`` does what the ``quantolab`` command does."""

from .cli import run_and_exit

run_and_exit()
