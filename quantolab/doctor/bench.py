"""What one cell's phases share: tiny pipeline, dtype, a folder that outlives each process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .tiny_pipeline import TinyPipeline


@dataclass(frozen=True)
class Bench:
    """One cell at work."""

    tiny: TinyPipeline
    weights: str
    place: Path
    """The cell's own folder; what one phase leaves there the next one finds."""
    stage: Callable[[str], None]
    """Say what begins now: a crash or an error is then told with it."""
    reference_moved: float = 0.0
    """How far compiling moves the unquantized model."""

    def keep_output(self, output: torch.Tensor, classes: dict[str, int]) -> None:
        """Keep a model's output, and how many layers have which class of weight."""
        from safetensors.torch import save_file

        save_file({"output": output.contiguous()}, self.place / "kept.safetensors")
        (self.place / "kept.json").write_text(json.dumps(classes))

    def kept_output(self) -> tuple[torch.Tensor, dict[str, int]]:
        """Return what the earlier phase kept."""
        from safetensors.torch import load_file

        output = load_file(self.place / "kept.safetensors")["output"]
        return output, json.loads((self.place / "kept.json").read_text())
