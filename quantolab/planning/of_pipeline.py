"""The configuration of a pipeline in memory, as a folder that is planned like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files.whole import write_whole

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def write_configs(pipe: DiffusionPipeline, folder: Path) -> Path:
    """Write what describes a pipeline and its parts, no weights, into a folder; return it."""
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        longest = getattr(part, "model_max_length", None)  # a tokenizer's
        if isinstance(longest, int):
            (folder / name).mkdir()
            write_whole(
                folder / name / "tokenizer_config.json", json.dumps({"model_max_length": longest})
            )
        if not isinstance(part, torch.nn.Module):
            continue
        config = getattr(part, "config", None)
        if hasattr(config, "to_diff_dict"):  # of transformers, which names the class there
            config.save_pretrained(folder / name)
            file = folder / name / "config.json"
            values = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**values, "architectures": [type(part).__name__]}))
        elif hasattr(part, "save_config"):
            part.save_config(folder / name)
    return folder
