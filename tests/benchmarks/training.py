"""How many captions of the demo int2 draws right after quantization-aware training.

    python tests/benchmarks/training.py [--weights int2] [--minutes 20] [--out FOLDER]

More than the notebook 06_training does, in four ways. The unquantized model's own steps are the
lessons, of captions that aren't in the judge's held-out set; in the middle of it lessons come from
where the student itself has got to, with what the unquantized model says there. Each group's ends
are trained beside its weights (Esser et al. 2020, "Learned Step Size Quantization"), which may lie
beyond them. Products are in bfloat16. And at last each group gets a weight on either end, so that
quantizing finds the very values that were trained.

Held-out captions are drawn before and after, the first of them into ``pictures.png``: unquantized,
before, after. An interrupted run goes on where it stopped when the same command is given again.
Minutes are those of a processor: ten on two cores are 20. One run of 20, on one thread: 0 of 100
captions right before, 67 after, 97 unquantized.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, mse_loss

import quantolab as ql
from quantolab.demo.making.drawing import held_out_prompts, random_caption
from quantolab.demo.making.evaluate import generate, psnr, score
from quantolab.demo.making.train import sheet

RATE, BATCH, KEEP_SECONDS, SHOWN = 1e-3, 16, 60, 12
TOLD = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
STEPS_OF = {"int2": 3, "int4": 15}  # between the ends of a group
GROUP = 128


def main() -> None:
    """Train, freeze, and print how many held-out captions come out right before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="int2", choices=tuple(STEPS_OF))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--captions", type=int, default=240)
    parser.add_argument("--own", type=int, default=96, help="captions that the student draws")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("trained"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    pipe = ql.load_pipeline("demo", "none", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    teacher = pipe.transformer
    student = with_ranges(copy.deepcopy(teacher), STEPS_OF[asked.weights])
    train(pipe, student, asked)
    trained = without_ranges(student, teacher)
    trained, _ = ql.quantize(trained, asked.weights, trainable=True)
    ql.freeze(trained)
    ql.save(trained, asked.out / "saved")
    prompts = held_out_prompts(asked.held_out)
    wanted = drawn_by(pipe, teacher, prompts)
    untrained, _ = ql.quantize(copy.deepcopy(teacher), asked.weights)
    again = ql.load_saved(asked.out / "saved", dtype="float32")
    pictures = {}
    for name, module in (("untrained", untrained), ("trained", trained), ("reloaded", again)):
        images = pictures[name] = drawn_by(pipe, module, prompts)
        right, held = score(images, prompts)[0], ql.weight_bytes(module)
        print(
            f"{name}: {right:.0%} right, {psnr(images, wanted):.1f} dB, {held:,} bytes", flush=True
        )
    assert pictures["reloaded"] == pictures["trained"]
    rows = (wanted, pictures["untrained"], pictures["trained"])
    sheet([image for row in rows for image in row[:SHOWN]], min(SHOWN, len(prompts))).save(
        asked.out / "pictures.png"
    )
    print(f"unquantized: {score(wanted, prompts)[0]:.0%} right, of {len(prompts)}")


# --- layers ---------------------------------------------------------------------------------------


class RangedLinear(torch.nn.Module):
    """A Linear layer whose weights are rounded to steps between two ends, a pair a group."""

    def __init__(self, layer: torch.nn.Linear, steps: int) -> None:
        super().__init__()
        self.steps, self.shape = steps, layer.weight.shape
        groups = narrowed(layer.weight.data, steps)
        self.weight, self.bias = torch.nn.Parameter(groups), layer.bias
        self.low = torch.nn.Parameter(groups.amin(1, keepdim=True))
        self.high = torch.nn.Parameter(groups.amax(1, keepdim=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product by the rounded weight; rounding has the gradient 1."""
        scale = (self.high - self.low).clamp_min(1e-6) / self.steps
        code = ((self.weight - self.low) / scale).clamp(0, self.steps)
        code = code + (code.round() - code).detach()
        return linear(x, (code * scale + self.low).reshape(self.shape), self.bias)

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """Return the rounded weight, with one of each group on either end."""
        scale = (self.high - self.low).clamp_min(1e-6) / self.steps
        code = ((self.weight - self.low) / scale).clamp(0, self.steps).round()
        for end, nearest in ((0, self.weight.argmin(1)), (self.steps, self.weight.argmax(1))):
            lacks = ~(code == end).any(1)
            code[lacks, nearest[lacks]] = end
        return (code * scale + self.low).reshape(self.shape)


def narrowed(weight: torch.Tensor, steps: int) -> torch.Tensor:
    """Return a weight's groups, what lies far out pulled in as much as makes rounding best."""
    groups = weight.reshape(-1, GROUP) if weight.shape[1] % GROUP == 0 else weight
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    best, least = groups.clone(), torch.full_like(low, torch.inf)
    for share in torch.linspace(1, 0.4, 13):
        inside = groups.clamp(low * share, high * share)
        scale = (high - low) * share / steps
        values = ((inside - low * share) / scale).round() * scale + low * share
        error = (values - groups).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, inside, best), torch.minimum(error, least)
    return best


def with_ranges(module: torch.nn.Module, steps: int) -> torch.nn.Module:
    """Put a layer with trained ends into the place of each Linear layer."""
    for path, layer in list(module.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            owner, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(owner), leaf, RangedLinear(layer, steps))
    return module


def without_ranges(student: torch.nn.Module, teacher: torch.nn.Module) -> torch.nn.Module:
    """Return a plain model with the student's rounded weights, and all else of it."""
    plain = copy.deepcopy(teacher)
    state = student.state_dict()
    for path, layer in student.named_modules():
        if isinstance(layer, RangedLinear):
            state[f"{path}.weight"] = layer.values()
            del state[f"{path}.low"], state[f"{path}.high"]
    plain.load_state_dict(state)
    return plain


# --- lessons --------------------------------------------------------------------------------------


def drawn_by(pipe, module: torch.nn.Module, prompts: list[str], seed: int = 0) -> list:
    """Draw prompts with another transformer."""
    own, pipe.transformer = pipe.transformer, module
    images = generate(pipe, prompts, seed=seed)
    pipe.transformer = own
    return images


def lessons_of(
    pipe, count: int, seed: int, student: torch.nn.Module | None = None
) -> tuple[list, dict]:
    """Return steps of some captions with what the teacher says there.

    Each lesson is what a transformer is given, the teacher's answer last. The steps are the
    teacher's own, or a student's.
    """
    teacher, lessons, shared = pipe.transformer, [], {"return_dict": False}

    def keep(module, args, given, said):
        answer = said[0] if student is None else teacher(**given)[0]
        rows = zip(*(given[name] for name in TOLD), answer, strict=True)
        lessons.extend(tuple(value.clone() for value in row) for row in rows)
        shared.update({name: given[name] for name in ("txt_ids", "img_ids")})

    draw = random.Random(seed)
    captions = [random_caption(draw)[1] for _ in range(count)]
    held_out = set(held_out_prompts(400))
    captions = [caption for caption in captions if caption not in held_out]
    module = teacher if student is None else student
    hook = module.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        drawn_by(pipe, module, captions, seed=10_000 * seed)
    hook.remove()
    return lessons, shared


def train(pipe, student: torch.nn.Module, asked: argparse.Namespace) -> None:
    """Train for some minutes of the processor's time, or what is left of them."""
    path, seconds = asked.out / "checkpoint.pt", asked.minutes * 60
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    step, spent, mean, is_late = 0, 0.0, None, False
    if path.exists():
        state = torch.load(path)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    started = time.process_time() - spent
    lessons, shared = lessons_of(pipe, asked.captions, seed=5)
    draw, kept = random.Random(step), spent
    student.train()
    while (spent := time.process_time() - started) < seconds:
        if not is_late and spent > seconds / 2:  # from here on some of where it has got to itself
            is_late = True
            own, _ = lessons_of(pipe, asked.own, seed=100, student=student.eval())
            lessons = lessons[len(own) :] + own
            student.train()
        for group in optimizer.param_groups:
            rate = 0.01 + 0.495 * (1 + math.cos(math.pi * spent / seconds))
            group["lr"] = RATE * min(1, (step + 1) / 50) * rate
        *told, said = map(torch.stack, zip(*draw.choices(lessons, k=BATCH), strict=True))
        # The way back of the CPU's own attention takes a third of a step.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            answer = student(**dict(zip(TOLD, told, strict=True)), **shared)[0]
        loss = mse_loss(answer.float(), said.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
        if spent - kept > KEEP_SECONDS:
            kept = spent
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "spent": spent}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            print(f"{step} steps, {spent / 60:.0f} min of processor, error {mean:.4f}", flush=True)
    student.eval()


if __name__ == "__main__":
    main()
