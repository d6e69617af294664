"""Is a word a layer worth it? Pictures of advised recipes against plain dtypes, byte for byte.

    python tests/benchmarks/advice.py [--model MODEL] [--budgets 2386369,...] [--steps 10]
                                      [--earlier FILE] [--dtype DTYPE] [--out FOLDER]

For each budget the advised recipe, the best plain dtype that fits and, with ``--earlier``, what
another version advised (``{budget: [weights, [skip, ...]]}`` as JSON; ``advice_0_1_0.json``
beside this has 0.1.0's for the demo model) are made into pictures of the same prompts, none of
which the advice has seen, in a compute dtype, with the noise floor that its rounding makes. Prints
a table; ``--out`` keeps the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import quantolab as ql
from quantolab.experiments.advising import advice_of
from quantolab.weights import QUANTIZED

BUDGETS = "1872165,2386369,3041803,3877257,4942175,6299581,8029809,10235256"
PROMPTS = (
    "a blue circle right of a yellow square on a black background",
    "a large red star with yellow dots on a white background",
    "a white house with a red roof under a sun",
    "a red boat with a white sail on the sea",
    "a green ring above a red triangle on a blue background",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--dtype", default="bfloat16", help="of the pictures that judge")
    parser.add_argument("--results", type=Path, help="file that keeps the sensitivities")
    parser.add_argument("--out")
    asked = parser.parse_args()
    budgets = [int(word) for word in asked.budgets.split(",")]
    before = json.loads(asked.earlier.read_text()) if asked.earlier else {}
    earlier = {int(b): ql.Recipe(weights, tuple(skip)) for b, (weights, skip) in before.items()}
    quiet = {"watch": lambda progress: None, "steps": asked.steps}
    advised = {b: ql.advise(asked.model, b, out=asked.results, **quiet) for b in budgets}
    recipes = dict.fromkeys(
        [ql.Recipe("none"), *map(ql.Recipe, QUANTIZED), *advised.values(), *earlier.values()]
    )
    run = ql.compare(
        asked.model, list(recipes), PROMPTS, repeats=1, out=asked.out,
        resume=bool(asked.out and (Path(asked.out) / "run.json").exists()), dtype=asked.dtype,
        **quiet,
    )  # fmt: skip
    table = ql.results_table(run).set_index("recipe")
    heads = ("bytes", "best plain dtype", "earlier advice", "advised", "same from halves")
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}\n")
    for budget in budgets:
        plain = [w for w in QUANTIZED if table.weight_bytes[w] <= budget]
        best = max(plain, key=lambda word: table.psnr_db[word])
        cells = [f"{budget:,}", f"{best} {table.psnr_db[best]:.1f} dB"]
        old = earlier.get(budget)
        cells.append(f"{table.psnr_db[old.label]:.1f} dB" if old else "")
        new = advised[budget]
        cells.append(f"**{table.psnr_db[new.label]:.1f} dB**")
        cells.append(f"{100 * (advice_of(new).same_from_halves or 0):.0f} %")
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    floor = [picture.psnr_db for picture in run.floor]
    sys.stdout.write(f"noise floor in {asked.dtype}: {floor} dB, picture by picture\n")


if __name__ == "__main__":
    main()
