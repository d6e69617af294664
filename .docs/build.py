"""Build the documentation site: ``python .docs/build.py OUT``. Needs no network.

Pages are those of this folder, one for every public name, the columns of the results table, and
the notebooks as they were run. A warning is an error.
"""

from __future__ import annotations

import argparse
import inspect
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

import quantolab as ql
from quantolab import widgets
from quantolab.report.column_words import COLUMN_WORDS
from quantolab.report.tables import COLUMNS, EXTRA_COLUMNS

HERE = Path(__file__).resolve().parent
TOP = HERE.parent


def main() -> int:
    """Gather the pages in a folder of their own, and have Sphinx build them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the site")
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as made:
        source = Path(made)
        gather(source)
        options = ["-W", "--keep-going", "-q", "-b", "html"]
        code = build_main([*options, str(source), str(out)])
    if code == 0:
        print(f"the site begins at {out / 'index.html'}")
    return code


def gather(source: Path) -> None:
    """Put every page into a folder."""
    for page in (*HERE.glob("*.md"), HERE / "conf.py"):
        shutil.copy(page, source)
    shutil.copytree(TOP / ".github/pictures", source / "pictures")
    (source / "notebooks").mkdir()
    for notebook in sorted((TOP / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, source / "notebooks")
    (source / "reference.md").write_text(reference(), encoding="utf-8")
    (source / "columns.md").write_text(columns(), encoding="utf-8")


def reference() -> str:
    """Return the page of every public name, from its docstring."""
    lines = ["# Reference", "", "Every public name, as `import quantolab as ql` gives it.", ""]
    names = [("quantolab", ql, name) for name in ql.__all__ if name != "__version__"]
    names += [("quantolab.widgets", widgets, name) for name in widgets.__all__]
    for module, home, name in names:
        value = getattr(home, name)
        kind = "autofunction" if inspect.isroutine(value) else "autoclass"
        kind = "autoexception" if inspect.isclass(value) and issubclass(value, Exception) else kind
        short = "ql" if home is ql else "widgets"
        lines += [f"## {short}.{name}", "", "```{eval-rst}", f".. {kind}:: {module}.{name}"]
        lines += ["   :members:", "```", ""] if kind == "autoclass" else ["```", ""]
    return "\n".join(lines)


def columns() -> str:
    """Return the page of the results table's columns."""
    rows = [f"| `{name}` | {COLUMN_WORDS[name]} |" for name in (*COLUMNS, *EXTRA_COLUMNS)]
    head = "# Columns of the results table\n\nWhat could not be measured is absent, never zero.\n\n"
    return head + "| column | what it holds |\n|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
