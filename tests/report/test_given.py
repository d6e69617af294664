"""What the figures and tables are given: a table where a comparison is meant, and so on."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

import quantolab as ql
from quantolab.errors import ArgumentTypeError
from quantolab.report.tables import results_table


def test_a_plot_takes_the_table_or_the_comparison(make):
    comparison = make()
    of_table, of_comparison = (
        [t.get_text() for t in ql.plot_tradeoff(given).texts]
        for given in (results_table(comparison), comparison)
    )
    plt.close("all")
    assert of_table == of_comparison
    assert of_table


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: ql.image_grid(results_table(c)), "comparison must be a Comparison"),
        (lambda c: ql.results_table([c]), "comparison must be a Comparison"),
        (lambda c: ql.results_table(results_table(c)), "comparison must be a Comparison"),
        (lambda c: ql.plot_tradeoff([c]), "table must be a table"),
        (lambda c: ql.plot_tradeoff(c.trials[0]), "table must be a table"),
        (lambda c: ql.save_comparison(results_table(c), "x"), "comparison must be a Comparison"),
        (lambda c: ql.compare(c), "model must be text, a path or None, not a Comparison"),
    ],
)
def test_others_are_told_what_is_wanted(make, call, said):
    with pytest.raises(ArgumentTypeError, match=said):
        call(make())
