"""Comparisons made by hand, as the tests of tables and figures have them."""

import importlib.util
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[1] / "report" / "conftest.py"


@pytest.fixture(scope="session")
def make():
    """Return the function that makes a comparison of hand-made trials and drawn pictures."""
    spec = importlib.util.spec_from_file_location("hand_made", _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_comparison


@pytest.fixture(scope="session")
def comparison(make):
    """Five recipes, int8 also compiled, two prompts by two seeds; int2 failed."""
    return make(failed={"int2": ("failed", "its process was killed for using 16.2 GB")})
