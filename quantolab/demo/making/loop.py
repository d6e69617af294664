"""What both trainings share: averaged weights, checkpoints, a learning rate that falls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

_TELL, _KEEP = 50, 50


class Average:
    """A slow-moving average of weights, which draws better than the last weights do."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.values = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int, limit: float) -> None:
        """Move towards the weights; early steps count more, so that the start is forgotten."""
        decay = min(limit, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the weights; a second call undoes the first."""
        for parameter, value in zip(self._parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def learning_rate(step: int, steps: int, top: float, horizon: int = 0, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a hundredth of `top`.

    Parameters
    ----------
    step
        Where the training is.
    steps
        Where it ends.
    top
        The highest learning rate.
    horizon
        Where the cosine would end, if that is later than `steps`: then the last tenth of the
        training falls straight to zero, so that a training can be cut short and gone on with.
    warmup
        Steps of the warm-up.
    """
    done = min(1.0, step / max(steps, horizon))
    rate = top * min(1.0, (step + 1) / warmup) * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))
    if horizon > steps:
        rate *= min(1.0, (steps - step) / (0.1 * steps))
    return rate


class Training:
    """A model in training, its checkpoint, and a line about its progress now and then.

    Parameters
    ----------
    name
        What is trained; also the name of the checkpoint.
    model
        The model.
    optimizers
        Each with its highest learning rate.
    folder
        Where the checkpoint is kept; if one is there, the training goes on from it.
    steps
        Where the training ends.
    horizon
        See :func:`learning_rate`.
    average
        How slowly the averaged weights follow, at most.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        optimizers: list[tuple[torch.optim.Optimizer, float]],
        folder: Path,
        steps: int,
        horizon: int = 0,
        average: float = 0.995,
    ) -> None:
        self._name, self._model, self._optimizers = name, model, optimizers
        self._path, self._steps, self._horizon = folder / f"{name}.pt", steps, horizon
        self._limit = average
        self._average = Average(model.parameters())
        self._mean, self._earlier = 0.0, 0.0
        self.step = 0
        if self._path.exists():
            self._restore()
        self._first, self._start = self.step, time.monotonic()

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._steps

    @property
    def seconds(self) -> float:
        """Seconds spent, those of interrupted runs included."""
        return self._earlier + time.monotonic() - self._start

    def update(self, loss: torch.Tensor) -> None:
        """Take one step down the loss."""
        for optimizer, top in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self._steps, top, self._horizon)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, _ in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        # A fall cut short is over before a slow average has seen it.
        falling = self._horizon > self._steps and self.step > 0.9 * self._steps
        self._average.update(self.step, 0.98 if falling else self._limit)
        value = loss.item()
        self._mean = value if self.step == 1 else 0.98 * self._mean + 0.02 * value
        if self.step % _TELL == 0 or self.done:
            self._tell()
        if self.step % _KEEP == 0 or self.done:
            self._keep()

    def look(self, what: Callable[[], None]) -> None:
        """Call something while the model has its averaged weights."""
        # This must not change which random numbers the training sees.
        kept = torch.get_rng_state()
        self._average.swap()
        what()
        self._average.swap()
        torch.set_rng_state(kept)

    def finish(self) -> float:
        """Leave the averaged weights in the model; the seconds spent."""
        self._average.swap()
        self._model.requires_grad_(False)
        return self.seconds

    def _tell(self) -> None:
        here = time.monotonic() - self._start
        left = here / max(1, self.step - self._first) * (self._steps - self.step)
        print(
            f"{self._name} {self.step}/{self._steps}  loss {self._mean:.4f}  "
            f"{self.seconds / 60:.1f} min, {left / 60:.1f} min left",
            flush=True,
        )

    def _restore(self) -> None:
        state = torch.load(self._path)
        self._model.load_state_dict(state["model"])
        for (optimizer, _), kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self._average.values = state["average"]
        self.step, self._earlier, self._mean = state["step"], state["seconds"], state["mean"]
        torch.set_rng_state(state["rng"])

    def _keep(self) -> None:
        save(
            self._path,
            {
                "model": self._model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
                "average": self._average.values,
                "step": self.step,
                "seconds": self.seconds,
                "mean": self._mean,
                "rng": torch.get_rng_state(),
            },
        )


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a file of tensors so that an interruption leaves the previous one whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def has_bfloat16() -> bool:
    """Return whether this processor multiplies in bfloat16 itself; else it takes far longer."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast() -> torch.autocast:
    """Return a context in which a CPU computes in bfloat16 where that is quick, else in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())
