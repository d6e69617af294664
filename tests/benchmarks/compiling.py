"""Whether every dtype compiles to one graph with Inductor, and how far compiling moves the output.

Run by hand (some minutes):

    python tests/benchmarks/compiling.py [--csv FILE]

The demo model's transformer and tiny random SD3 and PixArt transformers, in bfloat16 and float32,
each dtype against eager; beside it the reference's own distance, three times which is allowed.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

import quantolab as ql

WEIGHTS = ("none", "float8", "int8", "int4", "int2")
ROUNDING = 1e-5  # relative; what reordered float32 sums may move


def architectures():
    path = Path(__file__).parents[1] / "shared" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = sys.modules["architectures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ARCHITECTURES


def demo(weights, dtype):
    from quantolab.models.sample_inputs import sample_inputs

    module = ql.load("demo", weights, dtype=dtype, device="cpu")
    return module, sample_inputs(module, getattr(torch, dtype))


def tiny(architecture, weights, dtype):
    module = architecture.make().to(getattr(torch, dtype))
    if weights != "none":
        module, _ = ql.quantize(module, weights)
    return module, architecture.inputs(getattr(torch, dtype))


def moved(module, inputs):
    """Return how far compiling moves the output, relative to eager."""
    torch._dynamo.reset()
    with torch.no_grad():
        eager = module(**inputs, return_dict=False)[0].double()
        compiled = torch.compile(module, fullgraph=True)(**inputs, return_dict=False)[0].double()
    return ((compiled - eager).norm() / eager.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        return measure(options.csv)


def measure(csv):
    known = architectures()
    makers = {"demo": demo}
    for name in ("sd3", "pixart"):
        makers[name] = lambda weights, dtype, name=name: tiny(known[name], weights, dtype)
    rows = []
    for name, make in makers.items():
        for dtype in ("bfloat16", "float32"):
            for weights in WEIGHTS:
                distance = moved(*make(weights, dtype))
                if weights == "none":
                    allowed = max(3 * distance, ROUNDING)
                rows.append((name, dtype, weights, distance, allowed, distance <= allowed))
                print(*rows[-1], flush=True)
    columns = ["model", "compute_dtype", "weights", "difference", "allowed", "ok"]
    table = pd.DataFrame(rows, columns=columns)
    if csv:
        table.assign(torch=str(torch.__version__)).to_csv(csv, index=False)
    return 0 if table.ok.all() else 1


if __name__ == "__main__":
    sys.exit(main())
