"""Whether compiling is really paid back after as many pictures as `compile_report` says.

Run by hand, on a quiet machine (some minutes):

    python tests/benchmarks/break_even.py [--weights none] [--repeats 9]

First the report, in the way that `compare(compile=True)` compiles. Then a comparison that makes
half as many pictures again as the report says are needed, eagerly and compiled, each in a process
of its own. Summed up picture by picture, compile time included, its seconds cross somewhere: that
is the break-even really had.
"""

import argparse
import itertools
import math
import tempfile

import quantolab as ql


def crossing(eager, compiled, compile_seconds):
    """After how many pictures compiled has taken no longer than eager; None if it never has."""
    sums = zip(itertools.accumulate(eager), itertools.accumulate(compiled), strict=True)
    for count, (without, with_it) in enumerate(sums, start=1):
        if compile_seconds + with_it <= without:
            return count
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="none")
    parser.add_argument("--repeats", type=int, default=9, help="pictures that the report times")
    chosen = parser.parse_args()
    row = ql.compile_report(
        "demo", [chosen.weights], ways=["default"], repeats=chosen.repeats
    ).iloc[0]
    print(
        f"{chosen.weights}: compiling {row.compile_seconds:.1f} s, a picture "
        f"{row.eager_seconds:.3f} s eager and {row.compiled_seconds:.3f} s compiled; "
        f"break-even after {row.break_even_images} pictures",
        flush=True,
    )
    if math.isinf(row.break_even_images):
        print("it isn't faster here, so nothing is to be checked")
        return
    pictures = math.ceil(1.5 * row.break_even_images)
    with tempfile.TemporaryDirectory() as place:
        comparison = ql.compare(
            "demo", [chosen.weights], repeats=pictures, compile=True, out=f"{place}/run"
        )
    eager, compiled = (
        next(
            t
            for t in comparison.trials
            if t.compiled == wanted and t.recipe.weights == chosen.weights
        )
        for wanted in (False, True)
    )
    really = crossing(eager.timing.samples, compiled.timing.samples, compiled.compile_seconds)
    print(
        f"really: compiling {compiled.compile_seconds:.1f} s, {pictures} pictures in "
        f"{sum(eager.timing.samples):.1f} s eager and {sum(compiled.timing.samples):.1f} s "
        f"compiled; paid back after {really} pictures"
    )
    if really:
        print(f"said / really: {row.break_even_images / really:.2f}")


if __name__ == "__main__":
    main()
