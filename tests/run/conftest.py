"""What the tests of runs share."""

import pytest


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Have runs of a single test draw no figures: nobody looks at them, and drawing takes longest.

    The tables are written. What is run for a whole file of tests has all of its report.
    """
    from quantolab.report import files

    makers = files.report_makers

    def tables(comparison):
        return {name: m for name, m in makers(comparison).items() if not name.endswith(".png")}

    monkeypatch.setattr(files, "report_makers", tables)
