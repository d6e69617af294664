"""Teach the text encoders to read captions before they help to draw.

Which colour belongs to which figure, and where that figure stands, is said by the order of words.
The drawing's loss hardly teaches it: after eight thousand steps together with the transformer, two
figures still exchanged their colours, and the second encoder had unlearnt the order of words. Read
back from the text alone it is learnt in a minute, so that is what the encoders do first: each word
tells all about the thing that it is said of, and the pooled output about all things. Then they stay
as they are, as FLUX's own do. The heads that tell are thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, pad

from .denoiser import LENGTHS, Denoiser, adam
from .drawing import (
    COLOURS,
    FINISHES,
    LIGHTS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    TREES,
    Spec,
    random_caption,
)
from .loop import Training, autocast
from .words import LENGTH, word_tokenizer

_PLACES = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
    "and": ("left", "right"),
    "": ("", ""),
}
"""Where the two things of a caption stand."""

_CLASSES = (
    tuple(dict.fromkeys([*SHAPES, "house", "boat", *TREES, *LIGHTS, "background", ""])),
    (*COLOURS, ""),
    (*FINISHES, ""),
    (*COLOURS, ""),
    ("small", "large", ""),
    ("left", "right", "top", "bottom", ""),
    ("", *NUMBERS),
)
"""What can be told of a thing: what it is, colour, finish, second colour, size, place, number."""

_THINGS = 3
"""Things of a caption: a figure, what stands beside it, and what is behind or above both."""

Thing = tuple[str | int, ...]


def things(spec: Spec) -> tuple[Thing, Thing, Thing]:
    """Return what a caption says, as one class of each kind for each of its things.

    Parameters
    ----------
    spec
        What the caption says.
    """
    here, there = _PLACES[spec.relation]
    count = spec.count if spec.count > 1 else ""
    first, *others = (
        (f.shape, f.colour, f.finish, f.second, f.size, place, count)
        for f, place in zip(spec.figures, (here, there), strict=False)
    )
    second = others[0] if others else (spec.tree, "", "", "", "", there, "")
    if spec.ground in LIGHTS:
        return first, second, (spec.ground, "", "", "", "", "", "")
    return first, second, ("background", spec.ground, spec.pattern, spec.second, "", "", "")


def said_of(caption: str) -> list[int]:
    """Return, for each word and the end, which of the :func:`things` it is said of.

    Parameters
    ----------
    caption
        The words.
    """
    starts = {word: 1 for relation in RELATIONS for word in relation.split()[:1]}
    starts |= {"on": 2, "under": 2}
    places, here = [], 0
    for word in caption.split():
        here = max(here, starts.get(word, 0))
        places.append(here)
    # The end stands for the background even where none is said.
    return [*places, 2]


class Reader(torch.nn.Module):
    """The text encoders of a model with heads that tell what they have read.

    Parameters
    ----------
    model
        Whose text encoders these are.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = model.text_encoder, model.text_encoder_2
        self._sizes = [len(classes) for classes in _CLASSES]
        told = sum(self._sizes)
        self.of_words = torch.nn.Linear(self.text_encoder_2.config.d_model, told)
        self.of_all = torch.nn.Linear(self.text_encoder.config.hidden_size, _THINGS * told)

    def forward(self, tokens: torch.Tensor, said: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return how wrong the encoders read (cross-entropy summed over what can be told).

        Parameters
        ----------
        tokens
            Token ids, of shape (batch, length).
        said
            Which thing each token is said of, -1 for padding; of the same shape.
        told
            The classes of the things, of shape (batch, things, kinds).
        """
        words = self.of_words(self.text_encoder_2(tokens).last_hidden_state)
        pooled = self.of_all(self.text_encoder(tokens[:, :LENGTH]).pooler_output)
        wanted = told.gather(1, said.clamp(min=0)[..., None].expand(-1, -1, told.shape[-1]))
        wanted = wanted.masked_fill((said < 0)[..., None], -100)
        return self._wrong(words, wanted) + self._wrong(pooled.unflatten(1, (_THINGS, -1)), told)

    def _wrong(self, answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        parts = answers.float().split(self._sizes, dim=-1)
        return torch.stack(
            [
                cross_entropy(part.flatten(0, 1), wanted[..., kind].flatten())
                for kind, part in enumerate(parts)
            ]
        ).sum()


def lesson(
    rng: random.Random, n: int, length: int = LENGTH
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the inputs of a :class:`Reader`: random captions, none of them held out.

    Parameters
    ----------
    rng
        The source of chance.
    n
        How many.
    length
        Tokens that they are padded to.
    """
    tokenizer = word_tokenizer()
    pairs = [random_caption(rng) for _ in range(n)]
    tokens = tokenizer(
        [caption for _, caption in pairs], padding="max_length", return_tensors="pt"
    ).input_ids
    tokens = pad(tokens, (0, length - LENGTH), value=tokenizer.pad_token_id)
    said = torch.full((n, length), -1)
    for row, (_, caption) in zip(said, pairs, strict=True):
        places = said_of(caption)
        row[: len(places)] = torch.tensor(places)
    told = torch.tensor(
        [
            [
                [classes.index(c) for classes, c in zip(_CLASSES, thing, strict=True)]
                for thing in things(spec)
            ]
            for spec, _ in pairs
        ]
    )
    return tokens, said, told


def train_readers(model: Denoiser, steps: int, folder: Path, seed: int, batch: int = 192) -> float:
    """Train the text encoders of `model`, in place, or go on where an interrupted run stopped.

    Parameters
    ----------
    model
        Whose text encoders learn to read.
    steps
        Optimizer steps.
    folder
        Where the checkpoint is kept.
    seed
        Which captions.
    batch
        Captions in a step.

    Returns
    -------
    float
        Seconds spent.
    """
    reader = Reader(model)
    # Word order is a table of logits: at the others' learning rate it would hardly ever move.
    others = [p for p in reader.parameters() if p is not model.word_order]
    optimizers = [(adam(others), 2e-3), (adam([model.word_order]), 2e-2)]
    training = Training("reader", reader, optimizers, folder, steps)
    lengths, shares, divisors = zip(*LENGTHS, strict=True)
    while not training.done:
        rng = random.Random(f"lesson {seed} {training.step}")
        (i,) = rng.choices(range(len(lengths)), shares)
        inputs = lesson(rng, max(1, batch // divisors[i] ** 2), lengths[i])
        with autocast():
            loss = reader(*inputs)
        training.update(loss)
    return training.finish()
