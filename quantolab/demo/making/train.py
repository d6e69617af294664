"""Train the demo model from nothing: ``python -m quantolab.demo.making.train --out FOLDER``.

Draws the training pictures, trains the autoencoder, teaches the text encoders to read, trains the
transformer, and writes an ordinary FluxPipeline folder. An interrupted run goes on where it stopped
when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image

from .. import STEPS
from .assemble import assemble
from .denoiser import Denoiser, train_denoiser
from .drawing import SIZE, held_out_prompts
from .evaluate import generate, score
from .guidance import distil_guidance
from .loop import save
from .pool import training_pool
from .reading import train_readers
from .vae import CHANNELS, encode, train_vae, tune_decoder

_VAE_PICTURES = 8000
"""The autoencoder sees this many of the pictures; quarters of them are plenty."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m quantolab.demo.making.train",
        description="Train the demo model from nothing.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="where the pipeline folder is written")
    add("--work", type=Path, help="where checkpoints are kept (default: OUT-work)")
    add("--pictures", type=int, default=24000, help="training pictures (default: %(default)s)")
    add("--start", type=Path, help="pipeline folder to go on from")
    add("--vae-steps", type=int, default=3600, help="(default: %(default)s)")
    add("--reader-steps", type=int, default=500, help="0: those of --start (%(default)s)")
    add("--steps", type=int, default=4000, help="(default: %(default)s)")
    add("--horizon", type=int, default=0, help="steps the learning rate is planned for, if more")
    add("--weak-step", type=int, default=3000, help="state to guide away from (%(default)s)")
    add("--guidance", type=float, default=2.0, help="scale taught at the end (%(default)s)")
    add("--guided-steps", type=int, default=600, help="(default: %(default)s)")
    add("--decoder-steps", type=int, default=600, help="(default: %(default)s)")
    add("--batch", type=int, default=64, help="(default: %(default)s)")
    add("--width", type=int, default=256, help="inner width (default: %(default)s)")
    add("--doubles", type=int, default=1, help="double blocks (default: %(default)s)")
    add("--singles", type=int, default=3, help="single blocks (default: %(default)s)")
    add("--vae-width", type=int, default=16, help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add("--preview-every", type=int, default=1000, help="steps (default: %(default)s)")
    add("--compile", action="store_true", help="compile the model while training (needs g++)")
    options = parser.parse_args(argv)
    if not options.reader_steps and not options.start:
        parser.error("--reader-steps 0 needs --start, a pipeline whose text encoders to use")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = arguments(argv)
    work = options.work or options.out.with_name(options.out.name + "-work")
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    random.seed(options.seed)
    images, captions = training_pool(work, options.pictures, options.seed, options.threads)
    start = FluxPipeline.from_pretrained(options.start) if options.start else None
    vae, vae_seconds = (start.vae, 0.0) if start else _vae(options, work, images)
    latents = _latents(vae, images, work)
    torch.manual_seed(options.seed + 1)
    model = Denoiser(CHANNELS, options.width, options.doubles, options.singles)
    if start:
        model.transformer.load_state_dict(start.transformer.state_dict())
    reader_seconds = _readers(options, model, start, work)
    seconds = train_denoiser(
        model,
        latents,
        captions,
        options.steps,
        work,
        options.batch,
        horizon=options.horizon,
        compiled=options.compile,
        preview=lambda model, step: _preview(vae, model, step, work),
        preview_every=options.preview_every,
        weak_step=options.weak_step,
    )
    torch.manual_seed(options.seed + 3)
    guided_seconds = _guided(options, model, latents, captions, work)
    torch.manual_seed(options.seed + 2)
    decoder_seconds = tune_decoder(vae, images, latents, options.decoder_steps, work)
    export(vae, model, options.out)
    record = {
        **{
            name: value
            for name, value in vars(options).items()
            if name not in ("out", "work", "start")
        },
        "sampling_steps": STEPS,
        "history": [
            *(
                ["the autoencoder of an earlier training, whose transformer was gone on with;"]
                if start
                else [f"the autoencoder: {options.vae_steps:,} steps, {vae_seconds / 60:.0f} min;"]
            ),
            f"the text encoders read captions (`quantolab.demo.making.reading`): "
            f"{options.reader_steps:,} steps, {reader_seconds / 60:.0f} min;"
            if options.reader_steps
            else "the text encoders of that training;",
            f"the transformer: {options.steps:,} steps of "
            f"{options.batch} pictures, {seconds / 60:.0f} min;",
            f"guidance of scale {options.guidance:g}, away from step {options.weak_step:,}, taught "
            f"to the transformer: {options.guided_steps:,} steps, {guided_seconds / 60:.0f} min;",
            f"the decoder once more, on latents a little off: {options.decoder_steps:,} steps, "
            f"{decoder_seconds / 60:.0f} min.",
        ],
        "state": "Trained to the end.",
        "faults": "None recorded.",
        "going_on": "The same command with more steps goes on from the kept checkpoints.",
    }
    (work / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    total = vae_seconds + reader_seconds + seconds + guided_seconds + decoder_seconds
    print(f"wrote {options.out}; training took {total / 60:.0f} min", flush=True)


def export(vae: AutoencoderKL, model: Denoiser, out: Path) -> None:
    """Write the pipeline folder, weights in bfloat16."""
    # A copy that went through bfloat16 is what users load; the training weights stay untouched.
    pipeline = assemble(vae, model)
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(out, safe_serialization=True)
    # transformers 5 writes a new name for the tokenizer's class that transformers 4 doesn't know.
    for path in (out / "model_index.json", *out.glob("tokenizer*/tokenizer_config.json")):
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    # An autoencoder that was read from a folder remembers which.
    vae_config = out / "vae" / "config.json"
    values = json.loads(vae_config.read_text())
    values.pop("_name_or_path", None)
    vae_config.write_text(json.dumps(values, indent=2) + "\n")
    # Unless told a dtype, transformers 5 loads in the one the configuration names, but Diffusers in
    # float32: the parts must agree for a plain from_pretrained to draw.
    for path in out.glob("text_encoder*/config.json"):
        path.write_text(path.read_text().replace('"bfloat16"', '"float32"'))


def _vae(
    options: argparse.Namespace, work: Path, images: torch.Tensor
) -> tuple[AutoencoderKL, float]:
    torch.manual_seed(options.seed)
    vae, seconds = train_vae(images[:_VAE_PICTURES], options.vae_steps, work, options.vae_width)
    return vae, seconds


def _readers(
    options: argparse.Namespace, model: Denoiser, start: FluxPipeline | None, work: Path
) -> float:
    """Text encoders that read captions: trained anew, or those of the pipeline to go on from."""
    if options.reader_steps:
        return train_readers(model, options.reader_steps, work, options.seed)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(model, name).load_state_dict(getattr(start, name).state_dict())
    return 0.0


def _guided(
    options: argparse.Namespace,
    model: Denoiser,
    latents: torch.Tensor,
    captions: list[str],
    work: Path,
) -> float:
    if not options.guided_steps:
        return 0.0
    weak = Denoiser(CHANNELS, options.width, options.doubles, options.singles).eval()
    weak.load_state_dict(torch.load(work / "weak.pt"))
    return distil_guidance(
        model,
        weak,
        latents,
        captions,
        options.guided_steps,
        work,
        options.guidance,
        options.batch,
        options.compile,
        # A model that was trained further since is taught anew.
        name=f"guided-{options.steps}",
    )


def _latents(vae: AutoencoderKL, images: torch.Tensor, work: Path) -> torch.Tensor:
    """Scaled latents of all training pictures, kept for a resumed run."""
    path = work / "latents.pt"
    if not path.exists():
        start = time.monotonic()
        raw = encode(vae, images)
        save(path, {"latents": (raw - vae.config.shift_factor) * vae.config.scaling_factor})
        print(f"encoded {len(images)} pictures in {time.monotonic() - start:.0f} s", flush=True)
    return torch.load(path)["latents"]


def _preview(vae: AutoencoderKL, model: Denoiser, step: int, work: Path) -> None:
    """Write a grid of held-out pictures and print how many of them the judge finds right."""
    prompts = held_out_prompts(48, seed=1)
    pipeline = assemble(vae, model)
    with torch.autocast("cpu", torch.bfloat16):
        images = generate(pipeline, prompts)
    share, _ = score(images, prompts)
    sheet(images, 12).save(work / f"preview-{step}.png")
    print(f"step {step}: {share:.0%} of {len(prompts)} held-out prompts right", flush=True)


def sheet(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Pictures side by side, in rows of `columns`."""
    rows = -(-len(images) // columns)
    pitch = SIZE + gap
    canvas = Image.new("RGB", (columns * pitch + gap, rows * pitch + gap), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (gap + i % columns * pitch, gap + i // columns * pitch))
    return canvas


if __name__ == "__main__":
    main()
