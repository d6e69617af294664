"""Seconds and memory of quantizing, saving and reloading a model of 200 million parameters.

Run by hand, on a quiet machine:

    python tests/benchmarks/loading.py [int8 float8 int4 int2] [--rounds 5]

A random FLUX transformer is made in a temporary folder. Every measurement is a fresh process, so
that none has the other's memory; ways alternate, and the median of the rounds is printed. Peaks
are of private memory (the process's anonymous pages, sampled every 5 ms), above what it held
before loading: pages of a mapped file don't count, and neither do imported libraries. "Resident"
is the same with those pages, which the system can take back: it is what top shows. "Again" is a
second time in the same process, without what torch and Diffusers do once at their first use.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CONFIG = {
    "patch_size": 1, "in_channels": 64, "num_layers": 4, "num_single_layers": 4,
    "attention_head_dim": 128, "num_attention_heads": 8, "joint_attention_dim": 1024,
    "pooled_projection_dim": 256, "axes_dims_rope": [16, 56, 56], "guidance_embeds": False,
}  # fmt: skip
WAYS = {
    "quantize": "quantolab load, quantizing",
    "diffusers": "plain Diffusers, quantizing",
    "load_saved": "quantolab load_saved",
    "unchecked": "load_saved, check=False",
    "diffusers_saved": "plain Diffusers, saved",
    "read": "reading the file, own memory",
}


def memory():
    """Return this process's private and resident bytes (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return tuple(int(values[name]) * 1024 for name in ("RssAnon", "VmRSS"))


class Peak:
    """Highest private and resident memory while the block runs, above what it was before."""

    def __enter__(self):
        self.bytes = (0, 0)
        self._before, self._done = memory(), threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        return self

    def _sample(self):
        while not self._done.wait(0.005):
            self._look()

    def _look(self):
        now = memory()
        above = (a - b for a, b in zip(now, self._before, strict=True))
        self.bytes = tuple(map(max, self.bytes, above))

    def __exit__(self, *_):
        self._done.set()
        self._watch.join()
        self._look()


def once(way, base, saved, weights):
    """Load one way in this process and print seconds and bytes; imports aren't counted."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    from diffusers import FluxTransformer2DModel, QuantoConfig
    from safetensors.torch import load_file

    import quantolab as ql
    from quantolab.saved.doors import load_saved

    config = QuantoConfig(weights)
    dtype = torch.bfloat16
    ways = {
        "quantize": lambda: ql.load(base, weights, device="cpu"),
        "diffusers": lambda: FluxTransformer2DModel.from_pretrained(
            base, quantization_config=config, torch_dtype=dtype
        ),
        "load_saved": lambda: load_saved(saved, device="cpu"),
        "unchecked": lambda: load_saved(saved, device="cpu", check=False),
        "diffusers_saved": lambda: FluxTransformer2DModel.from_pretrained(saved, torch_dtype=dtype),
        "read": lambda: {
            name: tensor.clone()
            for name, tensor in load_file(
                Path(saved) / "diffusion_pytorch_model.safetensors"
            ).items()
        },
    }
    with Peak() as peak:
        seconds = timed(ways[way])
    private, resident = peak.bytes
    found = {"seconds": seconds, "peak": private, "resident": resident}
    print(json.dumps({**found, "again": timed(ways[way])}))


def timed(load):
    """Return how long a call takes; what it returns is let go afterwards."""
    started = time.perf_counter()
    kept = load()
    seconds = time.perf_counter() - started
    del kept
    return seconds


def measure(way, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "once", way, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(words, rounds):
    import torch
    from diffusers import FluxTransformer2DModel

    import quantolab as ql
    from quantolab.saved.doors import save

    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        torch.manual_seed(0)
        FluxTransformer2DModel(**CONFIG).to(torch.bfloat16).save_pretrained(base)
        size = (base / "diffusion_pytorch_model.safetensors").stat().st_size
        print(f"unquantized: {size / 1e6:.0f} MB, bfloat16")
        for weights in words:
            saved = Path(place) / weights
            save(ql.load(base, weights, device="cpu"), saved)
            found = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    found[way].append(measure(way, base, saved, weights))
            report(weights, saved, found)


def report(weights, saved, found):
    size = (saved / "diffusion_pytorch_model.safetensors").stat().st_size
    print(f"\n{weights}: file of {size / 1e6:.0f} MB")
    seconds, again, peaks, resident = (
        {way: statistics.median(f[what] for f in fs) for way, fs in found.items()}
        for what in ("seconds", "again", "peak", "resident")
    )
    print(f"  {'':30} {'seconds':>8} {'spread':>15} {'again':>8} {'peak MB':>8} {'resident':>8}")
    for way, name in WAYS.items():
        every = [f["seconds"] for f in found[way]]
        spread = f"{min(every):.3f}-{max(every):.3f}"
        print(
            f"  {name:30} {seconds[way]:8.3f} {spread:>15} {again[way]:8.3f} "
            f"{peaks[way] / 1e6:8.0f} {resident[way] / 1e6:8.0f}"
        )
    for word, each in (("first", seconds), ("again", again)):
        print(
            f"  {word}: load_saved / quantizing {each['load_saved'] / each['quantize']:.2f} of "
            f"quantolab's, {each['load_saved'] / each['diffusers']:.2f} of Diffusers'; "
            f"reading / load_saved {each['read'] / each['load_saved']:.2f}; "
            f"quantizing, quantolab / Diffusers {each['quantize'] / each['diffusers']:.2f}"
        )
    print(
        f"  peak, quantizing, quantolab / Diffusers: {peaks['quantize'] / peaks['diffusers']:.2f}, "
        f"resident {resident['quantize'] / resident['diffusers']:.2f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]:
        once(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("weights", nargs="*", default=["int8", "float8", "int4", "int2"])
        parser.add_argument("--rounds", type=int, default=5)
        asked = parser.parse_args()
        main(asked.weights, asked.rounds)
