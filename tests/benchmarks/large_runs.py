"""How long large runs take to open, and what they weigh: pictures, tables, HTML.

    python tests/benchmarks/large_runs.py [--folder FOLDER] [--size 128] [--profile]

Makes runs by hand in a folder (they are kept there for the next time): 500 prompts by 4 recipes and
4 prompts by 500 recipes, 2,000 pictures each, and one of 10,000 recipes without pictures. Prints
processor seconds of what a reader waits for, and bytes of what a notebook would keep; the aims are
3 s and 1 MB for the explorer, 2 s for 10,000 rows.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import quantolab as ql
from quantolab.recipes import Recipe
from quantolab.records import Comparison, Conditions, PictureQuality, Timing, Trial, Workload
from quantolab.run import journal

WORDS = ("int8", "int4", "float8", "int2")
CONDITIONS = Conditions(
    "AMD EPYC", 2, "Linux", "3.12", "2.13.0", "0.42.1", "5.1.0", "0.2.7", "resident"
)


def recipes(count: int) -> list[Recipe]:
    """Return so many recipes: words, then words that keep one block after another."""
    plain = [Recipe("none"), *map(Recipe, WORDS)]
    more = (
        Recipe(WORDS[n % 4], layers={f"transformer_blocks.{n // 4}": "none"}) for n in range(count)
    )
    return [*plain, *more][:count]


def trial(recipe: Recipe, workload: Workload, ok: bool, noise: np.random.Generator) -> Trial:
    """Return a trial with figures as a run has them."""
    if not ok:
        return Trial(recipe, "failed", "out of memory", predicted_weight_bytes=600)
    seconds = tuple(float(s) for s in 1.0 + 0.1 * noise.random(6))
    quality = () if recipe.is_reference else tuple(
        PictureQuality(*pair, 30.0 + n % 9, 0.9, 0.05) for n, pair in enumerate(workload.pairs)
    )  # fmt: skip
    return Trial(
        recipe, "ok", weight_bytes=4_000_000, predicted_weight_bytes=4_000_000,
        file_bytes=4_100_000, load_seconds=0.5, quality=quality, conditions=CONDITIONS,
        timing=Timing(seconds, (3.0,), rounds=tuple(range(6)), timed="rounds"),
        components=("transformer",), judged_by=None if recipe.is_reference else "none",
    )  # fmt: skip


def make_run(folder: Path, prompts: int, count: int, size: int | None) -> Path:
    """Write a run; without a size one whose trials but the reference have no pictures."""
    if (folder / journal.RUN_FILE).is_file():
        return folder
    noise = np.random.default_rng(0)
    words = tuple(f"a {n} foxes in the snow" for n in range(prompts))
    workload = Workload(
        "demo", words, (0,), 20, None, (size or 8, size or 8), "bfloat16", "cpu", 6
    )  # fmt: skip
    trials = [trial(r, workload, size is not None or r.is_reference, noise) for r in recipes(count)]
    if size is None:  # figures for all the same: such tables come from `read_table` too
        trials = [trial(r, workload, True, noise) for r in recipes(count)]
        folder.mkdir(parents=True)
        journal.write_run(folder, Comparison(workload, tuple(trials)))
        return folder
    across, down = np.meshgrid(*[np.linspace(0, 200, size, dtype=np.float32)] * 2)
    base = np.stack([across, down, np.full_like(across, 60)], -1)
    images = {}
    for t in trials:
        for pair in workload.pairs:
            grain = noise.integers(0, 55, (size, size, 1))
            images[t.label, *pair] = Image.fromarray((base + grain).astype("uint8"))
    journal.save(Comparison(workload, tuple(trials), images), folder)
    return folder


class Clock:
    """Says what took how many processor seconds."""

    def __init__(self, profile: bool) -> None:
        self.profile = profile

    def __call__(self, what: str, job):
        profiler = cProfile.Profile()
        began = time.process_time()
        if self.profile:
            result = profiler.runcall(job)
        else:
            result = job()
        seconds = time.process_time() - began
        sys.stdout.write(f"{seconds:7.2f} s  {what}\n")
        if self.profile:
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(25)
        sys.stdout.flush()
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "large-runs")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    clock = Clock(asked.profile)
    from quantolab import widgets
    from quantolab.widgets.tabling import ResultsTable, table_html

    warm = widgets.explorer(run=make_run(asked.folder / "small", 1, 2, 32))
    warm.static_html()
    for prompts, count in ((500, 4), (4, 500)):
        place = asked.folder / f"{prompts}x{count}-{asked.size}"
        folder = make_run(place, prompts, count, asked.size)
        sys.stdout.write(f"{prompts} prompts by {count} recipes, {asked.size} pixels\n")
        clock("load_comparison", partial(ql.load_comparison, folder))
        panel = clock("the explorer is there", partial(widgets.explorer, run=folder))
        html = clock("what a saved notebook shows", panel.static_html)
        sys.stdout.write(f"{len(html) / 1e6:7.2f} MB of HTML\n")
    folder = make_run(asked.folder / "rows", 1, 10_000, None)
    sys.stdout.write("10,000 recipes\n")
    comparison = clock("the run is read", lambda: journal.read_run(folder))
    frame = clock("results_table", lambda: ql.results_table(comparison))
    from quantolab.report.tables import text_table

    clock("as text", lambda: text_table(frame))
    clock("as HTML", lambda: table_html(frame))
    clock("as a widget", lambda: ResultsTable(frame))
    clock("as a comparison shows itself", comparison._repr_html_)


if __name__ == "__main__":
    main()
