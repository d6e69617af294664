"""Small models of the denoiser classes of Diffusers, with inputs that each of them takes.

The dimensions are those of Diffusers' own tests (Apache License 2.0), which its wheel doesn't hold.
Widths are as they are there: small and odd, where `architectures` has those of real models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Denoiser:
    """One small model."""

    cls: str
    """Class name in Diffusers."""
    number: int
    """Which of the class's models."""
    config: dict
    inputs: dict
    """What stands for the keyword arguments of forward; empty where nobody wrote any down."""

    def __str__(self) -> str:
        return f"{self.cls}-{self.number}" if self.number else self.cls

    def make(self) -> torch.nn.Module:
        """Return it with random float32 weights, none of them zero, in eval mode."""
        import diffusers

        torch.manual_seed(0)
        module = getattr(diffusers, self.cls)(**self.config).eval()
        for parameter in module.parameters():
            if parameter.is_floating_point() and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)  # else nothing would be compared
        return module

    def output(self, module: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        """Return the first tensor that the model makes of its inputs."""
        generator = torch.Generator().manual_seed(1)
        inputs = {name: _value(said, dtype, generator) for name, said in self.inputs.items()}
        torch.manual_seed(2)
        with torch.no_grad():
            return _first(module(**inputs))


@cache
def denoisers() -> tuple[Denoiser, ...]:
    """Return every model whose class the installed Diffusers has."""
    import diffusers

    path = Path(__file__).with_name("denoisers.json")
    return tuple(
        Denoiser(cls, number, case["config"], case["inputs"])
        for cls, cases in json.loads(path.read_text(encoding="utf-8")).items()
        if hasattr(diffusers, cls)
        for number, case in enumerate(cases)
    )


def _value(said: Any, dtype: torch.dtype, generator: torch.Generator) -> Any:
    if not isinstance(said, dict):
        return said
    if "dict" in said:
        return {name: _value(part, dtype, generator) for name, part in said["dict"].items()}
    for kind, make in (("list", list), ("tuple", tuple)):
        if kind in said:
            return make(_value(part, dtype, generator) for part in said[kind])
    stored = getattr(torch, said["dtype"])
    stored = dtype if stored.is_floating_point else stored
    if "values" in said:
        return torch.tensor(said["values"]).to(stored)
    if "normal" in said:
        return torch.randn(said["normal"], generator=generator).to(stored)
    if "whole" in said:
        return torch.randint(said["below"], said["whole"], generator=generator).to(stored)
    fill, shape = (0, said["zeros"]) if "zeros" in said else (1, said["ones"])
    return torch.full(shape, fill).to(stored)


def _first(found: Any) -> torch.Tensor:
    while not torch.is_tensor(found):
        found = found[0]
    return found
