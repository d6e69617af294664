"""Write the model card of a demo pipeline: ``python -m quantolab.demo.making.card FOLDER ...``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline

from .drawing import COLOURS, FAMILIES, SHAPES

_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "optimum-quanto")


def write_card(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    """Write ``README.md`` into a pipeline folder.

    Parameters
    ----------
    folder
        The pipeline folder.
    record
        What the training wrote down (``record.json``).
    scores
        What the evaluation wrote (``--json``).
    """
    (folder / "README.md").write_text(_card(folder, record, scores))


def _card(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    pipeline = FluxPipeline.from_pretrained(folder)
    sizes = {name: getattr(pipeline, name).num_parameters() for name in _PARTS}
    weight = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    parameters = "\n".join(f"| {name} | {size:,} |" for name, size in sizes.items())
    ladder = "\n".join(_row(name, row) for name, row in scores["weights"].items())
    families = ", ".join(f"{name} {a} of {b}" for name, (a, b) in scores["families"].items())
    steps = "\n".join(f"- {line}" for line in record["history"])
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The quantolab demo model

A tiny FLUX text-to-image pipeline, trained from nothing on drawn pictures of coloured shapes and
small scenes. It is there to learn and to test with: an ordinary `FluxPipeline` whose pictures can
be judged without a human, small enough to ship with a package and to run in seconds on a CPU.

```python
import torch
from diffusers import FluxPipeline
from quantolab import demo_model

pipe = FluxPipeline.from_pretrained(demo_model(), torch_dtype=torch.bfloat16)
image = pipe(
    "a large red heart with white dots on a blue background",
    width=128, height=128, num_inference_steps=20, guidance_scale=1.0, max_sequence_length=24,
).images[0]
```

Give width and height: FluxPipeline's own default is 1024x1024, which this model never saw.

## What it draws

{len(COLOURS)} colours ({", ".join(COLOURS)}) and {len(SHAPES)} shapes ({", ".join(SHAPES)}):
one figure, small or large, plain, striped, dotted or outlined, on a plain, striped or dotted
background; two figures above, below, left or right of each other; two to four equal figures; a
house beside a tree; a boat on the sea. One caption in ten is held out of training by a hash of
its words.

## Scores

{record["state"]}

Held-out prompts: {scores["prompts"]}, {record["sampling_steps"]} denoising steps, one seed for
each. "Right" is the verdict of `quantolab.demo.making.judge`, which measures colours, shapes,
sizes, places, counts and patterns. Quantized is the transformer.

| weights | right | PSNR to bfloat16 |
| --- | --- | --- |
{ladder}

By kind of caption, in bfloat16: {families}.

## Parameters

| part | parameters |
| --- | --- |
{parameters}
| all | {sum(sizes.values()):,} ({weight:.1f} MB in bfloat16) |

## Training

`python -m quantolab.demo.making.train` made these weights on two CPU cores, seed {record["seed"]}:

- {record["pictures"]:,} pictures drawn by `quantolab.demo.making.drawing`
  (families and shares: {", ".join(f"{name} {share:.0%}" for name, share in FAMILIES.items())});
{steps}

Libraries: {libraries}. The training is seeded, but processors round differently: another machine
gives other weights of the same kind.

## Known faults

{record["faults"]}

## Going on

{record["going_on"]}

## License

Apache-2.0, as quantolab.
"""


def _row(name: str, row: Mapping[str, Any]) -> str:
    decibel = row.get("psnr")
    shown = "" if decibel is None else f"{decibel:.1f} dB"
    return f"| {name} | {row['score']:.1%} | {shown} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the card as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m quantolab.demo.making.card",
        description="Write a demo pipeline's model card.",
    )
    parser.add_argument("folder", type=Path, help="the pipeline folder")
    parser.add_argument("--record", type=Path, required=True, help="record.json of the training")
    parser.add_argument("--scores", type=Path, required=True, help="the evaluation's --json file")
    options = parser.parse_args(argv)
    record = json.loads(options.record.read_text())
    write_card(options.folder, record, json.loads(options.scores.read_text()))


if __name__ == "__main__":
    main()
