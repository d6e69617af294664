"""Teach the denoiser to draw as if it were guided, at the price of one call a step.

The target is autoguidance (Karras et al., "Guiding a Diffusion Model with a Bad Version of
Itself", arXiv:2406.02507): where the trained model and a weaker one disagree, go further away from
the weaker one. Done with two models in each step it would cost twice the time; here, as in
FLUX.1-dev, one model is trained to give the guided velocity by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch.nn.functional import mse_loss

from .denoiser import Denoiser, noisy, pack
from .loop import Training, autocast
from .words import word_tokenizer

_RATE = 3e-4


def guided(
    good: Callable[..., torch.Tensor], weak: Callable[..., torch.Tensor], scale: float
) -> Callable[..., torch.Tensor]:
    """Return what predicts the guided velocity of two models.

    Parameters
    ----------
    good, weak
        The trained model and an earlier, weaker state of it; called as `Denoiser.forward`.
    scale
        How far to go: 1 is the trained model itself, 2 doubles its difference from the weaker one.
    """

    def velocity(latents, time, tokens):
        ours = good(latents, time, tokens)
        return ours + (scale - 1) * (ours - weak(latents, time, tokens))

    return velocity


def distil_guidance(
    model: Denoiser,
    weak: Denoiser,
    latents: torch.Tensor,
    captions: list[str],
    steps: int,
    folder: Path,
    scale: float,
    batch: int = 48,
    compiled: bool = False,
    name: str = "guided",
) -> float:
    """Train `model`, in place, to give by itself the velocity that `weak` guides it to.

    Parameters
    ----------
    model
        The trained model; its text encoders stay as they are.
    weak
        An earlier state of it.
    latents, captions
        As for `train_denoiser`.
    steps
        Optimizer steps.
    folder
        Where the checkpoint is kept.
    scale
        Of the guidance, see `guided`.
    batch
        Pictures in a step.
    compiled
        Compile the models (needs a C++ compiler).
    name
        Of the checkpoint.

    Returns
    -------
    float
        Seconds spent.
    """
    tokens = word_tokenizer()(captions, padding="max_length", return_tensors="pt").input_ids
    clean = pack(latents)
    teacher, weak = deepcopy(model).requires_grad_(False), weak.requires_grad_(False)
    model.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.transformer.parameters(), betas=(0.9, 0.99), weight_decay=0.0
    )
    training = Training(name, model, [(optimizer, _RATE)], folder, steps, average=0.98)
    student, *teachers = (torch.compile(m) if compiled else m for m in (model, teacher, weak))
    target = guided(*teachers, scale)
    while not training.done:
        picks = torch.randint(len(clean), (batch,))
        mixed, time, _ = noisy(clean[picks])
        with autocast():
            with torch.no_grad():
                wanted = target(mixed, time, tokens[picks]).float()
            velocity = student(mixed, time, tokens[picks])
        training.update(mse_loss(velocity.float(), wanted))
    return training.finish()
