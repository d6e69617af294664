"""Whether plain Diffusers loads what quantolab saved, in one fresh process after another.

Run by hand:

    python tests/benchmarks/fresh_loads.py [int8 float8 int4 int2] [--rounds 20]

A random FLUX transformer, 30 Linear layers at width 256, is quantized and saved by quantolab in
bfloat16 and in float32. Each round loads each folder in a fresh process with nothing but
``FluxTransformer2DModel.from_pretrained``, compares every tensor with those that quantolab had in
memory, bit for bit, and the output of one forward pass of 80 tokens with quantolab's. Those
processes don't import quantolab, with one exception: for int4 and int2, Quanto compiles its
`unpack` at first use, for a minute, and where there is no compiler, or with --no-compiler, the
process is given quantolab's in its place.

The output is compared as loaded, and again after ``model.to("cpu")``: int4 in bfloat16 needs that.
Diffusers' loader leaves its weights in Quanto's generic class, which another kernel computes than
the one freshly quantized weights have; moved to the device, even to the one where they are, they
get their class and their outputs back.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 64, "num_attention_heads": 4, "joint_attention_dim": 64,
    "pooled_projection_dim": 64, "axes_dims_rope": [16, 24, 24], "guidance_embeds": True,
}  # fmt: skip
WORDS = ("float8", "int8", "int4", "int2")
DTYPES = ("bfloat16", "float32")
ROW = "{:8} {:10} {:>8} {:>14} {:>14} {:>18} {:>15}  {}"


def save_all(place, words):
    """Save a folder for each weights dtype and compute dtype, with what loading it must give."""
    import torch
    from diffusers import FluxTransformer2DModel

    import quantolab as ql
    from quantolab.models.sample_inputs import first_output, sample_inputs
    from quantolab.saved.pieces import pieces

    torch.manual_seed(0)
    FluxTransformer2DModel(**CONFIG).save_pretrained(place / "base")
    for word in words:
        for dtype in DTYPES:
            module = ql.load(place / "base", word, dtype=dtype, device="cpu")
            folder = ql.save(module, place / f"{word}-{dtype}")
            inputs = sample_inputs(module, getattr(torch, dtype))
            tensors = {
                spec.name: value.clone()
                for piece in pieces(module)
                for spec, value in zip(piece.specs, piece.values(), strict=True)
            }
            expected = {
                "inputs": inputs,
                "tensors": tensors,
                "output": first_output(module, inputs),
            }
            torch.save(expected, folder.with_suffix(".pt"))


def once(folder, dtype, no_compiler):
    """Be the fresh process: load with plain Diffusers, compare, print what was found."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    from diffusers import FluxTransformer2DModel

    if no_compiler == "True":
        from quantolab.backends.quanto.cures import use_no_compiler

        use_no_compiler()
    expected = torch.load(Path(folder).with_suffix(".pt"), weights_only=True)
    module, info = FluxTransformer2DModel.from_pretrained(
        folder, torch_dtype=getattr(torch, dtype), output_loading_info=True
    )
    found = module.state_dict()
    equal = found.keys() == expected["tensors"].keys() and all(
        (tensor.dtype, tensor.shape) == (found[name].dtype, found[name].shape)
        and torch.equal(as_bytes(tensor), as_bytes(found[name]))
        for name, tensor in expected["tensors"].items()
    )

    def apart():
        with torch.no_grad():
            output = module.eval()(**expected["inputs"], return_dict=False)[0]
        return (output.double() - expected["output"].double()).abs().max().item()

    found = {"weights": equal, "apart": apart()}
    module.to("cpu")
    found["moved_apart"] = apart()
    odd = [name for names in info.values() for name in names]
    print(json.dumps({**found, "odd": odd[:1]}))


def as_bytes(tensor):
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def load_fresh(folder, dtype, no_compiler):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "once", folder, dtype, str(no_compiler)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if done.returncode < 0:
        return {"error": signal.Signals(-done.returncode).name}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main(words, rounds, no_compiler):
    with tempfile.TemporaryDirectory() as place:
        save_all(Path(place), words)
        header = ("weights", "compute", "loaded", "weights equal", "outputs equal")
        print(ROW.format(*header, "difference", "equal after .to", "what else"))
        for word in words:
            for dtype in DTYPES:
                folder = f"{place}/{word}-{dtype}"
                generic = no_compiler and word in ("int4", "int2")
                runs = [load_fresh(folder, dtype, generic) for _ in range(rounds)]
                print(row(word, dtype, runs), flush=True)


def row(word, dtype, runs):
    loaded = [run for run in runs if "error" not in run]
    else_ = {run["error"] for run in runs if "error" in run}
    else_ |= {f"{name} is missing or unknown" for run in loaded for name in run["odd"]}
    apart = f"{max(run['apart'] for run in loaded):.3g}" if loaded else "-"
    counts = (len(loaded), sum(r["weights"] for r in loaded), sum(r["apart"] == 0 for r in loaded))
    texts = [f"{count} of {len(runs)}" for count in counts]
    moved = f"{sum(run['moved_apart'] == 0 for run in loaded)} of {len(runs)}"
    return ROW.format(word, dtype, *texts, apart, moved, "; ".join(sorted(else_))).rstrip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]:
        once(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("weights", nargs="*", default=list(WORDS))
        parser.add_argument("--rounds", type=int, default=20)
        parser.add_argument("--no-compiler", action="store_true")
        asked = parser.parse_args()
        can_compile = shutil.which("c++") and shutil.which("ninja")
        main(asked.weights, asked.rounds, asked.no_compiler or not can_compile)
