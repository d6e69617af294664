"""What each layout of `hub_server.layouts` needs, written down, not computed."""

from __future__ import annotations

import json
from pathlib import Path

CONFIGS = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder_2/config.json", "transformer/config.json", "vae/config.json",
]  # fmt: skip
TOKENIZERS = [
    f"{folder}/{file}"
    for folder in ("tokenizer", "tokenizer_2")
    for file in ("tokenizer.json", "tokenizer_config.json")
]
PLAIN = {
    "transformer": ["transformer/diffusion_pytorch_model.safetensors"],
    "rest": [
        "text_encoder/model.safetensors", "text_encoder_2/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
}  # fmt: skip
SHARDS = ["transformer/diffusion_pytorch_model.safetensors.index.json"]
HALF_SHARDS = ["transformer/diffusion_pytorch_model.safetensors.index.fp16.json"]
NEEDED = {
    "variants": PLAIN,
    "sharded": PLAIN | {"transformer": SHARDS},
    "both-formats": PLAIN,
    "extra-folders": PLAIN,
    "fp16-only": {
        key: [path.replace(".safetensors", ".fp16.safetensors") for path in paths]
        for key, paths in PLAIN.items()
    },
    "sharded-fp16-only": {
        "transformer": HALF_SHARDS,
        "rest": [path.replace(".safetensors", ".fp16.safetensors") for path in PLAIN["rest"]],
    },
    "single-files": PLAIN,
    "gated": PLAIN,
    "renamed": PLAIN | {"transformer": ["transformer/tiny-denoiser.safetensors"]},
    "two-denoisers": PLAIN,
}
LAYOUTS = list(NEEDED)


def sizes(folder, paths):
    """Bytes of each file; an index stands for its shards too."""
    found = {}
    for path in paths:
        found[path] = (folder / path).stat().st_size
        if "safetensors.index" in path:
            shards = set(json.loads((folder / path).read_text())["weight_map"].values())
            assert len(shards) > 1
            found |= {
                f"transformer/{s}": (folder / f"transformer/{s}").stat().st_size for s in shards
            }
    return found


def needed(name, what):
    second = ["transformer_2/config.json"] if name == "two-denoisers" else []
    configs = [*CONFIGS, *second]
    if what == "plan":
        return configs
    if what == "load":
        return [*configs, *NEEDED[name]["transformer"]]
    if second:
        second = ["transformer_2/diffusion_pytorch_model.safetensors"]
    return [*configs, *TOKENIZERS, *NEEDED[name]["transformer"], *second, *NEEDED[name]["rest"]]


def unique(folder: Path, paths) -> int:
    """Return the bytes of files, each content once: a hub's cache keeps it once, too."""
    contents = {(folder / path).read_bytes() for path in paths}
    return sum(map(len, contents))
