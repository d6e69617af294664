"""What loading takes on a CPU, beside what `plan` says: six shapes of denoisers, four dtypes.

``python tests/benchmarks/load_peaks.py`` prints a line each, as CSV. Each load is a process of its
own, whose private memory (RssAnon: tensors, and whatever else the C library holds) is looked at
every millisecond. ``--depth N`` makes the models N times as deep; ``--few`` takes three
shapes, one dtype each. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from pathlib import Path

import torch

SHAPES = {
    "flux": ("FluxTransformer2DModel", {
        "num_layers": 2, "num_single_layers": 8, "attention_head_dim": 128,
        "num_attention_heads": 6, "joint_attention_dim": 768, "pooled_projection_dim": 256,
        "in_channels": 64, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
    }, ("num_layers", "num_single_layers")),
    "sd3": ("SD3Transformer2DModel", {
        "sample_size": 64, "num_layers": 4, "attention_head_dim": 64, "num_attention_heads": 12,
        "joint_attention_dim": 768, "caption_projection_dim": 768, "pooled_projection_dim": 256,
        "pos_embed_max_size": 96,
    }, ("num_layers",)),
    "wan": ("WanTransformer3DModel", {
        "num_attention_heads": 6, "attention_head_dim": 128, "num_layers": 11, "ffn_dim": 3072,
        "text_dim": 768,
    }, ("num_layers",)),
    "qwen": ("QwenImageTransformer2DModel", {
        "num_layers": 4, "attention_head_dim": 128, "num_attention_heads": 6,
        "joint_attention_dim": 768,
    }, ("num_layers",)),
    "pixart": ("PixArtTransformer2DModel", {
        "num_layers": 7, "num_attention_heads": 12, "attention_head_dim": 64,
        "cross_attention_dim": 768, "caption_channels": 768, "sample_size": 64,
    }, ("num_layers",)),
    "unet": ("UNet2DConditionModel", {
        "block_out_channels": [96, 192, 384], "cross_attention_dim": 512,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [3, 6, 12], "transformer_layers_per_block": [1, 2, 4],
    }, ()),
}  # fmt: skip
"""The class, its configuration, and which entries say how deep it is."""

WORDS = ("float8", "int8", "int4", "int2")


def make(name: str, folder: Path, depth: int = 1) -> Path:
    """Write a random model of a shape, in bfloat16; return its folder."""
    import diffusers

    cls, config, deep = SHAPES[name]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = getattr(diffusers, cls)(**config | {key: config[key] * depth for key in deep})
        module.save_pretrained(folder / name)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder / name


def measured(folder: Path, word: str) -> int:
    """Return how far a process's private memory rose while it loaded a model."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, json.dumps(_load(folder, word)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        rose = json.loads(answer.read())
    os.waitpid(pid, 0)
    return rose


def _load(folder: Path, word: str) -> int:
    import quantolab as ql
    from quantolab.loading.placing import release_memory

    release_memory()  # else it would be used again, uncounted
    before = top = _private()
    done = threading.Event()

    def look() -> None:
        nonlocal top
        while not done.wait(0.001):
            top = max(top, _private())

    looking = threading.Thread(target=look)
    looking.start()
    module = ql.load(folder, word, device="cpu")
    done.set()
    looking.join()
    assert module is not None
    return top - before


def _private() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def few() -> dict[str, tuple[str, ...]]:
    """Return for every second shape one word, in turn."""
    return {name: (WORDS[i % len(WORDS)],) for i, name in enumerate([*SHAPES][::2])}


def rows(asked: dict[str, tuple[str, ...]], depth: int = 1):
    """Yield shape, word, what `plan` says that it holds and takes, and what was measured."""
    from quantolab.planning.plan import plan

    torch.set_num_threads(1)  # a process that forks has no other thread
    with tempfile.TemporaryDirectory() as kept:
        for name, words in asked.items():
            folder = make(name, Path(kept), depth)
            table = plan(folder, words).set_index("weights")
            measured(folder, words[0])  # what is imported at the first load
            for word in words:
                row = table.loc[word]
                said, held = int(row.load_peak_bytes), int(row.weight_bytes)
                yield name, word, held, said, measured(folder, word)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    asked = few() if options.few else dict.fromkeys(SHAPES, WORDS)
    print("shape,weights,weight_bytes,load_peak_bytes,measured_bytes,said_over_measured")
    for *row, said, peak in rows(asked, options.depth):
        print(",".join(map(str, (*row, said, peak, round(said / peak, 2)))), flush=True)


if __name__ == "__main__":
    main()
