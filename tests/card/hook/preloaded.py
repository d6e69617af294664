"""Scripts on a test card, each in a fork of one process that has imported what they all need."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import diffusers
import torch  # noqa: F401
import transformers  # noqa: F401

import quantolab as ql

_IMPORTED = (diffusers.FluxPipeline, ql.load, ql.quantize, ql.compare)  # with what each needs


def run(script: str, environment: dict[str, str], said: Path) -> None:
    """Run a script that finds the card; what it prints and where it fails goes into a file."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    try:
        import card_of_tests

        exec(compile(script, "<script>", "exec"), {"card": card_of_tests.insert()})
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    else:
        code = 0
    sys.stdout.flush()
    os._exit(code or 0)
