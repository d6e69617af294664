"""quantolab: compare, skip, save and compile Quanto weights of diffusion models.

This file is the glossary: every public name once, and the room it lives in. A name is loaded
when it is first used, so importing quantolab loads neither torch nor diffusers nor quanto.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = {
    # values
    "Recipe": "recipes",
    "Trial": "records",
    "Comparison": "records",
    "QuantolabError": "errors",
    # the demo model
    "demo_model": "demo",
    # quantize and load
    "quantize": "backends.quanto",
    "load": "backends.quanto",
    "load_single_file": "backends.quanto",
    "load_pipeline": "backends.quanto",
    # keep and reload
    "save": "backends.quanto",
    "load_saved": "backends.quanto",
    "verify_saved": "backends.quanto",
    "from_quanto": "backends.quanto",
    "to_quanto": "backends.quanto",
    # look
    "weight_bytes": "backends.quanto",
    "skip_report": "models.skips",
    "plan": "models.plan",
    "diffusers_code": "report.code",
    # what works here
    "path_matrix": "doctor",
    # compare and show
    "compare": "comparing",
    "compile_report": "compiling",
    "sensitivity": "sensing",
    "advise": "sensing",
    "results_table": "report.tables",
    "image_grid": "report.figures",
    "plot_tradeoff": "report.figures",
    "save_comparison": "report.files",
    "load_comparison": "report.files",
}

__all__ = ["__version__", *_ROOMS]

if TYPE_CHECKING:  # what editors and type checkers see
    from .backends.quanto import (
        from_quanto,
        load,
        load_pipeline,
        load_saved,
        load_single_file,
        quantize,
        save,
        to_quanto,
        verify_saved,
        weight_bytes,
    )
    from .comparing import compare
    from .compiling import compile_report
    from .demo import demo_model
    from .doctor import path_matrix
    from .errors import QuantolabError
    from .models.plan import plan
    from .models.skips import skip_report
    from .recipes import Recipe
    from .records import Comparison, Trial
    from .report.code import diffusers_code
    from .report.figures import image_grid, plot_tradeoff
    from .report.files import load_comparison, save_comparison
    from .report.tables import results_table
    from .sensing import advise, sensitivity


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOMS))
