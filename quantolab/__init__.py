"""quantolab: compare, skip, save and compile Quanto weights of diffusion models.

This file is the glossary: every public name once, and the room it lives in. A name is loaded
when it is first used, so importing quantolab loads neither torch nor diffusers nor quanto.
"""

from __future__ import annotations

import importlib

# Not from typing: under `python -m quantolab`, whatever this file imports that Python hasn't by
# itself would come from the current folder, whoever put it there.
TYPE_CHECKING = False

__version__ = "0.1.0"

_ROOMS = {
    # values
    "Recipe": "recipes",
    "Trial": "report.shown",
    "Comparison": "report.shown",
    "QuantolabError": "errors",
    # the demo model
    "demo_model": "demo",
    # quantize and load
    "quantize": "loading.in_memory",
    "freeze": "loading.freezing",
    "calibrate": "run.calibrating",
    "dequantize": "loading.dequantizing",
    "load": "loading.component",
    "load_single_file": "single_file.reading",
    "load_pipeline": "loading.pipelines",
    # keep and reload
    "save": "saved.doors",
    "load_saved": "saved.doors",
    "verify_saved": "saved.verifying",
    "from_quanto": "saved.converting",
    "to_quanto": "saved.converting",
    "convert": "saved.changing",
    # look
    "weight_bytes": "measure.held_bytes",
    "skip_report": "planning.skips",
    "plan": "planning.plan",
    "diffusers_code": "report.code",
    # what works here
    "path_matrix": "doctor",
    # compare and show
    "compare": "experiments.comparing",
    "compile_report": "experiments.compiling",
    "sensitivity": "experiments.sensitivity",
    "advise": "experiments.advising",
    "advice_report": "experiments.advising",
    "advice_cost": "experiments.advising",
    "plot_advice": "experiments.advice_curve",
    "results_table": "report.tables",
    "choose": "report.choosing",
    "image_grid": "report.figures",
    "plot_tradeoff": "report.figures",
    "plot_payback": "report.payback",
    "save_comparison": "report.files",
    "load_comparison": "report.files",
    "merge": "report.files",
    "runs": "report.listing",
    "side_by_side": "report.beside",
    "picture_origin": "run.origin",
}

__all__ = ["__version__", *_ROOMS]

if TYPE_CHECKING:  # what editors and type checkers see
    from .demo import demo_model
    from .doctor import path_matrix
    from .errors import QuantolabError
    from .experiments.advice_curve import plot_advice
    from .experiments.advising import advice_cost, advice_report, advise
    from .experiments.comparing import compare
    from .experiments.compiling import compile_report
    from .experiments.sensitivity import sensitivity
    from .loading.component import load
    from .loading.dequantizing import dequantize
    from .loading.freezing import freeze
    from .loading.in_memory import quantize
    from .loading.pipelines import load_pipeline
    from .measure.held_bytes import weight_bytes
    from .planning.plan import plan
    from .planning.skips import skip_report
    from .recipes import Recipe
    from .report.beside import side_by_side
    from .report.choosing import choose
    from .report.code import diffusers_code
    from .report.figures import image_grid, plot_tradeoff
    from .report.files import load_comparison, merge, save_comparison
    from .report.listing import runs
    from .report.payback import plot_payback
    from .report.shown import Comparison, Trial
    from .report.tables import results_table
    from .run.calibrating import calibrate
    from .run.origin import picture_origin
    from .saved.changing import convert
    from .saved.converting import from_quanto, to_quanto
    from .saved.doors import load_saved, save
    from .saved.verifying import verify_saved
    from .single_file.reading import load_single_file


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
