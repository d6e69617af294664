"""How many captions of the demo int2 draws right after quantization-aware training.

    python tests/benchmarks/training.py [--weights int2] [--minutes 30] [--out FOLDER]

The longer form of the notebook 06_training: the unquantized model's own steps are the lessons, of
captions that aren't in the judge's held-out set; held-out captions are drawn before and after. An
interrupted run goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
from torch.nn.functional import mse_loss

import quantolab as ql
from quantolab.demo.making.drawing import held_out_prompts, random_caption
from quantolab.demo.making.evaluate import generate, psnr, score

RATE, BATCH, KEEP_SECONDS = 1e-3, 16, 60
TOLD = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")


def main() -> None:
    """Train, freeze, and print how many held-out captions come out right before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="int2")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--captions", type=int, default=480)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("trained"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    pipe = ql.load_pipeline("demo", "none", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    teacher = pipe.transformer
    lessons, shared = taught(pipe, asked.captions)
    student, _ = ql.quantize(copy.deepcopy(teacher), asked.weights, trainable=True)
    with torch.no_grad():
        for layer in student.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(narrowed(layer.weight, asked.weights))
    train(student, lessons, shared, asked.minutes * 60, asked.out / "checkpoint.pt")
    ql.freeze(student)
    ql.save(student, asked.out / "saved")
    prompts = held_out_prompts(asked.held_out)
    wanted = generate(pipe, prompts)
    untrained, _ = ql.quantize(copy.deepcopy(teacher), asked.weights)
    for name, module in (("untrained", untrained), ("trained", student)):
        pipe.transformer = module
        images = generate(pipe, prompts)
        right = score(images, prompts)[0]
        print(f"{name}: {right:.0%} right, {psnr(images, wanted):.1f} dB", flush=True)
    print(f"unquantized: {score(wanted, prompts)[0]:.0%} right, of {len(prompts)}")


def taught(pipe, count: int) -> tuple[list, dict]:
    """Return what the pipeline's transformer was given and said at every step of some captions."""
    lessons, shared = [], {"return_dict": False}

    def keep(module, args, given, said):
        rows = zip(*(given[name] for name in TOLD), said[0], strict=True)
        lessons.extend(tuple(value.clone() for value in row) for row in rows)
        shared.update({name: given[name] for name in ("txt_ids", "img_ids")})

    draw = random.Random(5)
    hook = pipe.transformer.register_forward_hook(keep, with_kwargs=True)
    generate(pipe, [random_caption(draw)[1] for _ in range(count)], seed=10_000)
    hook.remove()
    return lessons, shared


def narrowed(weight: torch.Tensor, word: str) -> torch.Tensor:
    """Pull in what lies far out, as much as makes rounding each group best."""
    steps = {"int2": 3, "int4": 15}.get(word)
    if steps is None:
        return weight
    groups = weight.reshape(-1, 128) if weight.shape[1] % 128 == 0 else weight
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    best, least = groups, torch.full_like(low, torch.inf)
    for share in torch.linspace(1, 0.4, 13):
        inside = groups.clamp(low * share, high * share)
        scale = (high - low) * share / steps
        values = ((inside - low * share) / scale).round() * scale + low * share
        error = (values - groups).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, inside, best), torch.minimum(error, least)
    return best.reshape(weight.shape)


def train(student, lessons: list, shared: dict, seconds: float, path: Path) -> None:
    """Train for some seconds of the processor's time, or what is left of them."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0)
    step, spent, mean = 0, 0.0, None
    if path.exists():
        state = torch.load(path)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    draw, started, kept = random.Random(step), time.process_time() - spent, spent
    student.train()
    while (spent := time.process_time() - started) < seconds:
        for group in optimizer.param_groups:
            rate = 0.01 + 0.495 * (1 + math.cos(math.pi * spent / seconds))
            group["lr"] = RATE * min(1, (step + 1) / 30) * rate
        *told, said = map(torch.stack, zip(*draw.choices(lessons, k=BATCH), strict=True))
        answer = student(**dict(zip(TOLD, told, strict=True)), **shared)[0]
        loss = mse_loss(answer, said)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if mean is None else 0.97 * mean + 0.03 * loss.item()
        if spent - kept > KEEP_SECONDS:
            kept = spent
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "spent": spent}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            print(f"{step} steps, {spent / 60:.0f} min of processor, error {mean:.4f}", flush=True)
    student.eval()


if __name__ == "__main__":
    main()
