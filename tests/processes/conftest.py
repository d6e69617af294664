"""Here the start of servers itself is tested: each is started in earnest."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _started_in_earnest():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("QUANTOLAB_TESTS_ZYGOTE", raising=False)
        yield
