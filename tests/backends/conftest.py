"""Tests that take `architecture` run once for each of `architectures.ARCHITECTURES`."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load(name):
    if name in sys.modules:
        return sys.modules[name]
    # Test modules aren't a package, so a sibling is loaded by its path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up here
    spec.loader.exec_module(module)
    return module


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        known = _load("architectures").ARCHITECTURES
        metafunc.parametrize("architecture", known.values(), ids=known, scope="session")


@pytest.fixture(scope="session")
def architecture_folder(architecture, tmp_path_factory):
    """The folder of a saved component of this architecture, in float32."""
    folder = tmp_path_factory.mktemp(architecture.name)
    architecture.make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def architectures():
    """All of them by name, for tests of one."""
    return _load("architectures").ARCHITECTURES
