"""Has processes that tests start begin sooner, and fork their servers off ``zygote``.

Scripts of notebooks run in forks themselves. Processes that do jobs find the test card, where one
is said to be; see ``tests/card``.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path

_WANTED = "quantolab.processes.children"


def _zygote():
    sys.path.append(str(Path(__file__).parents[1] / "shared"))
    try:
        import zygote
    finally:
        sys.path.pop()
    return zygote


class _Finder(importlib.abc.MetaPathFinder):
    """Has the module that starts servers changed as soon as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != _WANTED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            _zygote().insert(module)

        spec.loader.exec_module = run_and_change
        return spec


# What Jupyter checks addresses in schemas by takes seconds to be imported, in each worker too, and
# may be missing.
sys.modules.setdefault("rfc3987_syntax", None)

if "QUANTOLAB_TESTS_FORK_SCRIPTS" in os.environ:
    _zygote().fork_scripts()
if "QUANTOLAB_TESTS_ZYGOTE" in os.environ:
    sys.meta_path.insert(0, _Finder())
if "QUANTOLAB_TEST_CARD" in os.environ and any("quantolab.processes" in a for a in sys.orig_argv):
    _zygote().insert_card()
