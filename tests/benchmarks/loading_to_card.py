"""Seconds of loading a model onto a card, through pinned memory and without.

Run by hand, on a machine with a card:

    python tests/benchmarks/loading_to_card.py [MODEL] [--weights none,int8] [--rounds 7] --csv FILE

MODEL is the demo, a folder in Diffusers layout or a model of the Hub, whose denoiser is loaded;
the demo is so small that it says little. The file is read once before anything is timed, so that
no disk is. Ways alternate; each round loads in each way, in an order that turns, and lets the model
go. A way that loads a saved quantized model is timed too: there nothing is computed on the way.
What is loaded is compared in both ways, to the bit. The CSV has a row a load, and names no place.
"""

import argparse
import csv
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = (
    "model", "weights", "source", "way", "round", "seconds", "weight_bytes", "gigabytes_a_second",
    "device", "device_name", "torch",
)  # fmt: skip
WAYS = ("pageable", "pinned")


def timed(load, device):
    """Return a module and how long loading it took, until the device had it."""
    from quantolab.devices import synchronize

    gc.collect()
    synchronize(device)
    started = time.perf_counter()
    module = load()
    synchronize(device)
    return module, time.perf_counter() - started


def bits(module):
    """Return the values of a module's tensors on the CPU."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)
    tensors = module.state_dict(keep_vars=True).values()
    return [(t if type(t) in plain else t.dequantize()).to("cpu") for t in tensors]


def check_same(load):
    """End with a sentence if both ways load other values."""
    import torch

    from quantolab.loading import moving

    found = []
    for moving.PINNED in (False, True):
        found.append(bits(load()))
    if not all(map(torch.equal, *found)):
        sys.exit("what is loaded through pinned memory isn't what is loaded without")


def rows_of(load, device, rounds):
    """Yield (way, round, seconds, bytes) of loads that alternate."""
    import quantolab as ql
    from quantolab.loading import moving

    for number in range(rounds):
        for way in WAYS if number % 2 else WAYS[::-1]:
            moving.PINNED = way == "pinned"
            module, seconds = timed(load, device)
            held = ql.weight_bytes(module)
            del module
            yield way, number, seconds, held


def measure(model, words, device, rounds):
    """Return a row a load."""
    import torch

    import quantolab as ql
    from quantolab.devices import device_name

    rows = []
    facts = {"device": device, "device_name": device_name(device), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as place:
        for word in words:
            saved = Path(place) / word.replace(":", "-")
            ql.save(ql.load(model, word, device="cpu"), saved)
            loads = {
                "model": lambda word=word: ql.load(model, word, device=device),
                "saved": lambda saved=saved: ql.load_saved(saved, device=device, check=False),
            }
            for source, load in loads.items():
                check_same(load)
                for way, number, seconds, held in rows_of(load, device, rounds):
                    named = {"model": Path(model).name, "weights": word, "source": source}
                    figures = {"seconds": seconds, "weight_bytes": held,
                               "gigabytes_a_second": held / seconds / 1e9}  # fmt: skip
                    rows.append({**named, "way": way, "round": number, **figures, **facts})
    return rows


def report(rows):
    """Print the median of each way, and their ratio round by round."""
    print(f"{'weights':14} {'source':8} {'pageable':>10} {'pinned':>10} {'median ratio':>13}")
    for weights, source in dict.fromkeys((row["weights"], row["source"]) for row in rows):
        mine = [r for r in rows if (r["weights"], r["source"]) == (weights, source)]
        seconds = {w: [r["seconds"] for r in mine if r["way"] == w] for w in WAYS}
        ratio = statistics.median(
            a / b for a, b in zip(seconds["pageable"], seconds["pinned"], strict=True)
        )
        medians = [statistics.median(seconds[way]) for way in WAYS]
        print(f"{weights:14} {source:8} {medians[0]:9.3f}s {medians[1]:9.3f}s {ratio:12.2f}x")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--weights", default="none,int8,int4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", required=True)
    asked = parser.parse_args(argv)

    from quantolab.devices import resolve_device

    device = resolve_device(asked.device)
    if device.partition(":")[0] not in ("cuda", "xpu"):
        sys.exit(f"a card is needed (cuda, xpu), and there is only {device}")
    rows = measure(asked.model, asked.weights.split(","), device, asked.rounds)
    with Path(asked.csv).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    report(rows)


if __name__ == "__main__":
    main()
