"""House rules: imports point one way, nothing heavy is loaded early, the files agree."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import quantolab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "quantolab"

# Each room may import rooms of a lower rank, and modules of its own.
RANKS = {
    "errors": 0, "units": 1,
    "recipes": 1, "records": 2, "devices": 1,
    "demo": 3,
    "models": 4,
    "backends": 5, "measure": 3,
    "run": 6,
    "report": 7,
    "progress": 8,
    "comparing": 9, "compiling": 9, "doctor": 9, "lab": 9, "sensing": 9, "full_size": 9,
    "widgets": 10,
    "cli": 11, "__main__": 12,
}  # fmt: skip

# quantolab.demo trains and judges the demo model: as a program it stands above the library.
PROGRAMS = {"demo/train.py", "demo/evaluate.py"}

HEAVY = {"torch", "diffusers", "transformers", "optimum", "ipywidgets", "pandas", "matplotlib"}


def imported_rooms(path: Path):
    """Rooms of ours that a file imports, wherever in the file it does so."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module.split(".") if node.module else ()))
            if len(target) > 1:
                yield target[1]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantolab."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("quantolab."):
                    yield alias.name.split(".")[1]


def sources():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if relative.as_posix() in PROGRAMS:
        return
    for other in imported_rooms(path):
        if other == room or other not in RANKS:  # own module, or a name such as __version__
            continue
        assert RANKS[other] < RANKS[room], f"{relative} imports {other}, which stands above it"


def test_every_room_has_a_rank():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in sources()}
    assert rooms <= RANKS.keys()


def test_quanto_has_one_door():
    for path in sources():
        if path.is_relative_to(PACKAGE / "backends" / "quanto"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            )  # fmt: skip
            assert not any(n.startswith("optimum") for n in names), path


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import quantolab",
        "import quantolab; quantolab.Recipe; quantolab.QuantolabError; dir(quantolab)",
        "import quantolab.cli\ntry: quantolab.cli.main(['--help'])\nexcept SystemExit: pass",
        "import quantolab.cli\ntry: quantolab.cli.main(['compare', '--help'])\n"
        "except SystemExit: pass",
        "import quantolab.cli\ntry: quantolab.cli.main(['plan', '--help'])\n"
        "except SystemExit: pass",
        "import quantolab.cli\ntry: quantolab.cli.main(['lab', '--help'])\nexcept SystemExit: pass",
        "import quantolab; quantolab.demo_model()",
    ],
)
def test_nothing_heavy_is_loaded_early(code):
    assert not loaded_by(code) & HEAVY


def test_a_comparison_is_asked_for_without_torch():
    code = "from quantolab.run.request import check_request; check_request('demo')"
    assert not loaded_by(code) & {"torch", "diffusers", "transformers", "optimum"}


def test_results_open_without_torch():
    code = "import quantolab as ql; ql.results_table; ql.image_grid; ql.load_comparison"
    assert "torch" not in loaded_by(code)


def test_every_public_name_loads_and_is_documented():
    for name in quantolab.__all__:
        value = getattr(quantolab, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.strip(" -") for line in (ROOT / "environment.yml").read_text().splitlines()]
    start = lines.index("pip:") + 1
    listed = [line for line in lines[start:] if line and line != "e ."]
    assert listed == project["dependencies"]
    assert f"python{project['requires-python']}" in lines


def test_the_top_level_keeps_its_shape():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    tops = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    allowed = {
        "pyproject.toml", "quantolab", "notebooks", "tests", "environment.yml", "README.md",
        "LICENSE",
    }  # fmt: skip
    assert tops <= allowed
