"""The notebooks run, and what is committed of them is one clean run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.append(str(Path(__file__).parent))

import zygote
from execute import NOTEBOOKS, WIDGET_VIEW, Kernel, run

# For each notebook: smaller values of its first code cell, to run the tests with.
SMALL = {"width": 32, "height": 32, "max_sequence_length": 24}
# In the compute dtype in which every processor is quick.
ONE_PROMPT = {
    "PROMPTS": ["a white house with a red roof"], "STEPS": 1, "REPEATS": 1, "DTYPE": "float32"
}  # fmt: skip
SMALLER = {
    "00_start_here": {"WEIGHTS": ["none", "int4"], "SEEDS": [0], **ONE_PROMPT},
    "01_skipping": {"WEIGHTS": ["int2"], "PICTURES": 1, **ONE_PROMPT},
    "02_single_file": {"WEIGHTS": ["int4"], "STEPS": 1, "CALL": SMALL},
    "03_saving": {"WEIGHTS": ["int4"], "STEPS": 1, "CALL": SMALL},
    # The report compiles the quantized one, `compare` the reference: each is compiled once.
    "04_compile": {
        "WEIGHTS": ["int8"],
        "WAYS": ["repeated-blocks"],
        "COMPARED": "none",
        **ONE_PROMPT,
    },
    "05_your_own_model": {"WEIGHTS": ["none", "int4"], **ONE_PROMPT},
    "06_training": {
        "TRAINING_STEPS": 1,
        "CAPTIONS": 2,
        "HELD_OUT": 2,
        "STEPS": 1,
        "LORA_STEPS": 1,
        "LORA_PICTURES": 8,
    },
    "07_leaving_quanto": {"QUANTIZED": "int8", "TRIED": ["none", "sdnq:int8"], **ONE_PROMPT},
    "08_two_runs": {"SEEDS": [0], "REPEATS": 1, "DTYPE": "float32", "STEPS": 2, "FEWER_STEPS": 1},
}
# Extras, by the library that each is there for.
NEEDED = {
    "06_training": {"peft": "lora"},
    "07_leaving_quanto": {"sdnq": "sdnq", "torchao": "torchao"},
}

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
LARGEST = 2_000_000  # bytes of a file that GitHub still shows at once
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|Users|private|usr|opt)/")
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


def test_every_notebook_is_listed():
    assert sorted(SMALLER) == NAMES


# What takes long on the demo runs on the tests' own tiny pipelines, as on a reader's model.
OF_THEIR_OWN = {
    "00_start_here": "pipeline_folder",
    "01_skipping": "pipeline_folder",
    "04_compile": "shallow_pipeline",
    "05_your_own_model": "pipeline_folder",
    "08_two_runs": "pipeline_folder",
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(zygote.SCRIPTS, "1")
        with Kernel(tmp_path_factory.mktemp("kernel")) as kernel:
            yield kernel


@pytest.mark.parametrize("name", SMALLER)
def test_it_runs(name, kernel, request):
    for library, extra in NEEDED.get(name, {}).items():
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"pip install 'quantolab[{extra}]'")
    own = OF_THEIR_OWN.get(name)
    model = {"MODEL": str(request.getfixturevalue(own))} if own else {}
    notebook = run(name, kernel, {**SMALLER[name], **model})
    assert all(cell.execution_count for cell in code_cells(notebook))


@pytest.fixture(params=NAMES)
def committed(request):
    return nbformat.read(NOTEBOOKS / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_assignments_come_first(committed):
    """One cell of plain assignments, so that a real model is one change away."""
    for statement in ast.parse(code_cells(committed)[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


# What notebooks may import of ours beside the public names: what makes an example file, the code
# that made the demo model, which is there to be read, and what some look into that has no door yet.
LENT = {
    "02_single_file": ("quantolab.doctor.published_names",),
    "04_compile": ("quantolab.report",),
    "06_training": ("quantolab.demo.making",),
    "07_leaving_quanto": ("quantolab.errors", "quantolab.report", "quantolab.units"),
}


@pytest.mark.parametrize("name", NAMES)
def test_public_names_only(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inner = [m for m in modules if m.startswith("quantolab.")]
            assert all(m.startswith(LENT.get(name, ("-",))) for m in inner), inner


def test_outputs_are_of_one_run(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds, "it shows no picture, or no table"


def test_outputs_need_no_kernel(committed):
    assert "widgets" not in committed.metadata
    for cell in code_cells(committed):
        assert not [output for output in cell.outputs if WIDGET_VIEW in output.get("data", {})]


@pytest.mark.parametrize("name", NAMES)
def test_file_can_be_shown_anywhere(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            output.get("data", {}).pop("image/png", None)  # base64, in which any word may occur
    text = PICTURE.sub("", json.dumps(notebook.cells).replace("\\n", "\n"))
    assert not MACHINE_PATH.findall(text)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(texts))
    assert links
    for link in links:
        assert (NOTEBOOKS / link).exists(), link
