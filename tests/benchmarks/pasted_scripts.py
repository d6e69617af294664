"""Five pasted scripts, one a dtype, against one `quantolab compare`: wall time and memory.

    python tests/benchmarks/pasted_scripts.py [--rounds 3] [--repeats 5] [--steps 20] [--large]

The scripts are those of the Diffusers documentation (QuantoConfig, FluxPipeline), with the demo
model, the same prompts, steps, text length and number of pictures as the comparison. With --large
the demo's transformer gives way to a random one of 1.4 GB, so that memory is that of weights and
not of imported libraries (few --steps will do).

The two sides alternate; the first round warms up (file cache, Quanto's C++ extension, which the
scripts need and a compiler builds once) and isn't counted. Memory is the highest sum of
proportional set sizes over all processes of a side, so that shared pages count once; sampling it
slows processes down, so it has a round of its own, the last, which isn't timed.
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

LARGE = {
    "attention_head_dim": 128, "num_attention_heads": 16, "axes_dims_rope": [16, 56, 56],
    "num_layers": 2, "num_single_layers": 6,
}  # fmt: skip
"""What differs from the demo's transformer with --large: 0.7 billion parameters."""

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


def large(folder: Path) -> Path:
    """Write the demo pipeline with a large random transformer, and return its folder."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel

    pipeline = FluxPipeline.from_pretrained(demo_model(), dtype=torch.bfloat16)
    torch.manual_seed(0)
    config = {**pipeline.transformer.config, **LARGE}
    pipeline.transformer = FluxTransformer2DModel.from_config(config).to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    return folder


def scripts(folder: Path, model: Path, repeats: int, steps: int) -> list[list[str]]:
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
                model=str(model),
                quantization=quantization,
                prompts=list(PROMPTS),
                pictures=len(PROMPTS) + repeats,
                steps=steps,
                width=SIZE[0],
                height=SIZE[1],
                tokens=tokens,
                weights=weights,
            )
        )
        commands.append([sys.executable, str(path)])
    return commands


def measure(commands: list[list[str]], folder: Path, sample: bool) -> float:
    """Return the wall seconds of commands run one after the other, or their peak bytes."""
    started, peak = time.perf_counter(), 0
    for command in commands:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda p=process, e=errors: e.append(p.stderr.read()))
        reader.start()
        while sample and process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            time.sleep(0.05)
        reader.join()
        process.wait()
        if process.returncode:
            sys.exit(f"{command} failed:\n{errors[0].decode()[-2000:]}")
    return peak if sample else time.perf_counter() - started


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
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model = large(Path(made)) if arguments.large else demo_model()
        compare(model, arguments.rounds, arguments.repeats, arguments.steps)


def compare(model: Path, rounds: int, repeats: int, steps: int) -> None:
    """Run both sides in turn and print the ratios."""
    ratios = []
    for number in range(rounds + 2):
        sample = number == rounds + 1
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            theirs = measure(scripts(folder, model, repeats, steps), folder, sample)
            command = [sys.executable, "-m", "quantolab", "compare", str(model), "--out", "run"]
            command += ["--repeats", str(repeats), "--steps", str(steps)]
            # A folder isn't known to be the demo: prompts and size are said.
            command += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
            command += ["--size", f"{SIZE[0]}x{SIZE[1]}"]
            ours = measure([command], folder, sample)
        word = "memory" if sample else f"round {number}" if number else "warm-up"
        unit, scale = ("MB", 1e6) if sample else ("s", 1)
        print(
            f"{word}: scripts {theirs / scale:.1f} {unit}, compare {ours / scale:.1f} {unit}",
            flush=True,
        )
        ratios.append(ours / theirs)
    seconds = statistics.median(ratios[1:-1])
    print(f"compare over scripts: wall {seconds:.2f} (median), memory {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
