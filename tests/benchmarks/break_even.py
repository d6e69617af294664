"""Whether compiling is really paid back after as many pictures as `compile_report` says.

Run by hand, on a quiet machine (some minutes):

    python tests/benchmarks/break_even.py [--weights none] [--repeats 9]

First the report, from few pictures. Then another one that really makes half as many again as the
first says are needed, eager and compiled in turn, so that a machine that drifts hits both. Summed
up picture by picture, compile time included, the seconds of the two cross somewhere: that is the
break-even really had.
"""

import argparse
import itertools
import math

import quantolab as ql


def crossing(eager, compiled, compile_seconds):
    """After how many pictures compiled has taken no longer than eager; None if it never has."""
    sums = zip(itertools.accumulate(eager), itertools.accumulate(compiled), strict=True)
    for count, (without, with_it) in enumerate(sums, start=1):
        if compile_seconds + with_it <= without:
            return count
    return None


def report(weights, pictures):
    """Return the row of a report that times so many pictures."""
    return ql.compile_report("demo", [weights], ways=["default"], repeats=pictures).iloc[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="none")
    parser.add_argument("--repeats", type=int, default=9, help="pictures that the report times")
    chosen = parser.parse_args()
    row = report(chosen.weights, chosen.repeats)
    print(
        f"{chosen.weights}: compiling {row.compile_seconds:.1f} s, a picture "
        f"{row.eager_seconds:.3f} s eager and {row.compiled_seconds:.3f} s compiled; "
        f"break-even after {row.break_even_images} pictures "
        f"({row.break_even_low_images} to {row.break_even_high_images})",
        flush=True,
    )
    if math.isinf(row.break_even_images):
        print("it isn't faster here, so nothing is to be checked")
        return
    pictures = math.ceil(1.5 * row.break_even_images)
    made = report(chosen.weights, pictures)
    really = crossing(made.eager_samples, made.compiled_samples, made.compile_seconds)
    print(
        f"really: compiling {made.compile_seconds:.1f} s, {pictures} pictures in "
        f"{sum(made.eager_samples):.1f} s eager and {sum(made.compiled_samples):.1f} s "
        f"compiled; paid back after {really} pictures"
    )
    if really:
        print(f"said / really: {row.break_even_images / really:.2f}")


if __name__ == "__main__":
    main()
