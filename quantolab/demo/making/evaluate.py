"""How well the demo model draws: ``python -m quantolab.demo.making.evaluate FOLDER``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...loading.in_memory import quantize
from ...quietly import quiet_imports
from ...weights import WORDS
from .. import STEPS
from .drawing import held_out_prompts, parse
from .judge import Verdict, judge

with quiet_imports():
    from diffusers import FluxPipeline

"""The rungs of the ladder; "none" is the pipeline as it is, in bfloat16."""


def generate(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    text_length: int | None = None,
    batch: int = 16,
) -> list[Image.Image]:
    """Draw prompts, each with a seed of its own.

    Parameters
    ----------
    pipeline
        The demo pipeline.
    prompts
        What to draw.
    seed
        Seed of the first picture; each next one is one more.
    steps
        Denoising steps.
    text_length
        Padded length of the prompts; the tokenizer's if not given.
    batch
        How many at a time.
    """
    size = pipeline.vae.config.sample_size
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(part))
        images += pipeline(
            part,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=text_length or pipeline.tokenizer_2.model_max_length,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        ).images
    return images


def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> tuple[float, list[Verdict]]:
    """Return the share of pictures that show their prompt, and the verdict on each."""
    verdicts = [judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    return sum(verdict.right for verdict in verdicts) / len(verdicts), verdicts


def psnr(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB, over all pictures together; infinite if they are equal."""
    pairs = zip(images, references, strict=True)
    error = np.mean([(np.asarray(a, float) - np.asarray(b, float)) ** 2 for a, b in pairs])
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def quantized(pipeline: FluxPipeline, weights: str) -> FluxPipeline:
    """Return a pipeline that shares all parts but the transformer, which is quantized."""
    if weights == "none":
        return pipeline
    from quantolab.recipes import Recipe

    transformer, _ = quantize(deepcopy(pipeline.transformer), Recipe(weights=weights))
    parts = {**pipeline.components, "transformer": transformer}
    other = FluxPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    return other


def load(folder: Path) -> FluxPipeline:
    """Load a pipeline folder in bfloat16."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ladder(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    weights: Sequence[str] = WORDS,
) -> dict[str, dict[str, object]]:
    """Score and PSNR at every precision.

    Parameters
    ----------
    pipeline
        The demo pipeline in bfloat16.
    prompts
        What to draw.
    seed, steps
        As for :func:`generate`.
    weights
        Which rungs; "none" comes first.

    Returns
    -------
    dict
        Per weights dtype: "score" (share that the judge finds right), "psnr" (dB against
        bfloat16, None for itself), "images" and "verdicts".
    """
    result: dict[str, dict[str, object]] = {}
    reference: list[Image.Image] = []
    for rung in weights:
        start = time.monotonic()
        images = generate(quantized(pipeline, rung), prompts, seed, steps)
        reference = reference or images
        share, verdicts = score(images, prompts)
        result[rung] = {
            "score": share,
            "psnr": None if images is reference else psnr(images, reference),
            "seconds": time.monotonic() - start,
            "images": images,
            "verdicts": verdicts,
        }
    return result


def by_family(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, tuple[int, int]]:
    """Per family of captions: how many pictures are right, and of how many."""
    result: dict[str, tuple[int, int]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        right, all_ = result.get(parse(prompt).family, (0, 0))
        result[parse(prompt).family] = right + verdict.right, all_ + 1
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m quantolab.demo.making.evaluate",
        description="Score a demo pipeline at every precision.",
    )
    parser.add_argument("folder", type=Path, help="the pipeline folder")
    parser.add_argument("--prompts", type=int, default=200, help="held-out (default: 200)")
    parser.add_argument("--families", nargs="*", default=[], help="only these (default: all)")
    parser.add_argument("--weights", nargs="+", default=WORDS, help="only these (none first)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--long", action="store_true", help="score 512 text tokens as well")
    options = parser.parse_args(argv)
    prompts = held_out_prompts(options.prompts, options.seed, options.families)
    pipeline = load(options.folder)
    rows = ladder(pipeline, prompts, options.seed, weights=options.weights)
    numbers: dict[str, dict[str, object]] = {}
    print(f"{'weights':8}  right  PSNR to bfloat16")
    for weights, row in rows.items():
        name = "bfloat16" if weights == "none" else weights
        decibel = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
        print(f"{name:8}  {row['score']:5.1%}  {decibel}")
        numbers[name] = {"score": row["score"], "psnr": row["psnr"]}
    if options.long:
        images = generate(pipeline, prompts, options.seed, text_length=512, batch=8)
        numbers["bfloat16, 512 text tokens"] = {"score": score(images, prompts)[0], "psnr": None}
        print(f"bfloat16 with 512 text tokens: {score(images, prompts)[0]:.1%}")
    families = by_family(prompts, rows["none"]["verdicts"])
    for family, (right, all_) in families.items():
        print(f"{family}: {right} of {all_}")
    if options.json:
        result = {"prompts": len(prompts), "weights": numbers, "families": families}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
