"""Run notebooks from top to bottom and keep what they show.

``python tests/notebooks/execute.py [NAME ...]`` renews the outputs of the notebooks in
``notebooks/``, of all of them or of those named. What they write goes to a temporary folder.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

sys.path.append(str(Path(__file__).parents[1] / "shared"))

from forked_kernel import kernel_spec

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 900


class Kernel:
    """One kernel for several notebooks, in a copy of their folder; importing takes it seconds.

    Nothing that one notebook assigned or imported is there for the next.

    Parameters
    ----------
    place : Path
        An empty folder for the copy.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "notebooks"
        unwanted = shutil.ignore_patterns("out", ".ipynb_checkpoints")
        shutil.copytree(NOTEBOOKS, self.folder, ignore=unwanted)
        self.manager = _manager(place)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        if self.manager.has_kernel:
            run_sync(self.manager.shutdown_kernel)(now=True)


def run(
    name: str, kernel: Kernel, values: Mapping[str, object] | None = None
) -> nbformat.NotebookNode:
    """Execute a notebook from top to bottom, offline, and return it with its outputs.

    Parameters
    ----------
    name : str
        Without ``.ipynb``.
    kernel : Kernel
        Where; it is started if it doesn't run.
    values : mapping of str to anything, optional
        Other values for names that the first code cell assigns.

    Raises
    ------
    ValueError
        If the first code cell doesn't assign such a name.
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    notebook = nbformat.read(kernel.folder / f"{name}.ipynb", as_version=4)
    assignments = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assigned = {s.targets[0].id for s in ast.parse(assignments.source).body}
    for variable, value in (values or {}).items():
        if variable not in assigned:
            raise ValueError(f"{name}: the first code cell doesn't assign {variable}")
        assignments.source += f"\n{variable} = {value!r}"
    before = [nbformat.v4.new_code_cell("%reset -f")] * kernel.manager.has_kernel
    notebook.cells[:0] = before
    client = NotebookClient(
        notebook,
        km=kernel.manager,
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(kernel.folder)}},
        store_widget_state=False,  # GitHub refuses a notebook with half a state
        record_timing=False,
    )
    # Libraries' advice about what isn't installed here would only distract.
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    client.execute(env={**os.environ, **quiet, "HF_HUB_OFFLINE": "1"})
    del notebook.cells[: len(before)]
    return notebook


def without_live_views(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what only a running kernel can show; a panel's static picture stays."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kept = [o for o in cell.outputs if WIDGET_VIEW not in o.get("data", {})]
            cell.outputs = _joined(kept)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join what was printed in several goes, as Jupyter does, if nothing else lies between."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if (
            joined
            and output.output_type == "stream"
            and output.get("name") == joined[-1].get("name")
        ):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _manager(place: Path) -> AsyncKernelManager:
    """Return a manager whose kernel is of this very interpreter, whatever Jupyter has installed."""
    spec = place / "kernels" / "running"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(kernel_spec()))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_spec_manager=specs, kernel_name="running")


def main(names: list[str]) -> None:
    """Renew the outputs of the named notebooks, or of all."""
    for name in names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as place, Kernel(Path(place)) as kernel:
            notebook = without_live_views(run(name, kernel))
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


if __name__ == "__main__":
    main([Path(name).stem for name in sys.argv[1:]])
