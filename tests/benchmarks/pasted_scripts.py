"""Five pasted scripts, one a dtype, against one `quantolab compare`: wall time and memory.

    python tests/benchmarks/pasted_scripts.py [--rounds 3] [--repeats 5]

The scripts are those of the Diffusers documentation (QuantoConfig, FluxPipeline), with the demo
model, the same prompts, steps, text length and number of pictures as the comparison. The two
sides alternate; the first round warms up (file cache, Quanto's C++ extension, which the scripts
need and a compiler builds once) and isn't counted. Memory is the highest sum of proportional set
sizes over all processes of a side, sampled every 20 ms, so that shared pages count once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from quantolab.demo import PROMPTS, SIZE, STEPS, demo_model

WEIGHTS = ("none", "float8", "int8", "int4", "int2")

SCRIPT = """
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, QuantoConfig

model_id = {model!r}
transformer = FluxTransformer2DModel.from_pretrained(
    model_id, subfolder="transformer", dtype=torch.bfloat16{quantization}
)
pipe = FluxPipeline.from_pretrained(model_id, transformer=transformer, dtype=torch.bfloat16)

prompts = {prompts!r}
for number in range({pictures}):
    prompt = prompts[number % len(prompts)]
    image = pipe(
        prompt,
        num_inference_steps={steps},
        width={width},
        height={height},
        max_sequence_length={tokens},
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(f"{weights}-{{number}}.png")
"""


def scripts(folder: Path, repeats: int) -> list[list[str]]:
    """Write the five scripts and return the commands that run them."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(demo_model() / "tokenizer_2").model_max_length
    commands = []
    for weights in WEIGHTS:
        quantization = (
            "" if weights == "none" else f", quantization_config=QuantoConfig({weights!r})"
        )
        path = folder / f"{weights}.py"
        path.write_text(
            SCRIPT.format(
                model=str(demo_model()),
                quantization=quantization,
                prompts=list(PROMPTS),
                pictures=len(PROMPTS) + repeats,
                steps=STEPS,
                width=SIZE[0],
                height=SIZE[1],
                tokens=tokens,
                weights=weights,
            )
        )
        commands.append([sys.executable, str(path)])
    return commands


def measure(commands: list[list[str]], folder: Path) -> tuple[float, int]:
    """Return the wall seconds of commands run one after the other, and their peak bytes."""
    started, peak = time.perf_counter(), 0
    for command in commands:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda p=process, e=errors: e.append(p.stderr.read()))
        reader.start()
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            time.sleep(0.02)
        reader.join()
        if process.returncode:
            sys.exit(f"{command} failed:\n{errors[0].decode()[-2000:]}")
    return time.perf_counter() - started, peak


def _tree_bytes(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        total += sum(int(ln.split()[1]) for ln in text.splitlines() if ln.startswith("Pss:"))
    return total * 1024


def main() -> None:
    """Run both sides in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for number in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            theirs = measure(scripts(folder, arguments.repeats), folder)
            command = ["compare", "--repeats", str(arguments.repeats), "--out", "run"]
            ours = measure([[sys.executable, "-m", "quantolab", *command]], folder)
        word = f"round {number}" if number else "warm-up"
        print(
            f"{word}: scripts {theirs[0]:.1f} s {theirs[1] / 1e6:.0f} MB, "
            f"compare {ours[0]:.1f} s {ours[1] / 1e6:.0f} MB",
            flush=True,
        )
        if number:
            rows.append((ours[0] / theirs[0], ours[1] / theirs[1]))
    seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"compare over scripts, median of {len(rows)}: wall {seconds:.2f}, memory {memory:.2f}")


if __name__ == "__main__":
    main()
