"""Pipelines other than FLUX: prompts encoded ahead give the pictures that plain Diffusers makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pipelines import SIZE, pixart_sigma, stable_diffusion_3, stable_diffusion_xl

import quantolab as ql

# More classes, of prompts alone: tests/run/test_encoding.py.
MAKERS = [stable_diffusion_3, *(
    pytest.param(make, marks=pytest.mark.sweep) for make in (pixart_sigma, stable_diffusion_xl)
)]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_reference_pictures_are_plain_diffusers(make, tmp_path):
    from diffusers import DiffusionPipeline

    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "model")
    result = ql.compare(
        tmp_path / "model",
        ["none", "int8"],
        ["a red cat"],
        seeds=(3,),
        steps=3,
        repeats=1,
        dtype="float32",
        guidance=4.0,
        watch=lambda progress: None,
    )
    assert [t.status for t in result.trials] == ["ok", "ok"], result.trials
    width, height = result.workload.size
    assert width == height == (256 if make is pixart_sigma else SIZE)
    table = ql.results_table(result)
    assert (table.weight_bytes == table.predicted_weight_bytes).all()
    assert table["encoded"].tolist() == ["ahead", "ahead"]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    length = {} if make is stable_diffusion_xl else {"max_sequence_length": 20}
    theirs = pipe(
        "a red cat",
        num_inference_steps=3,
        guidance_scale=4.0,
        width=width,
        height=height,
        generator=torch.Generator().manual_seed(3),
        **length,
    ).images[0]
    ours = result.images["none", "a red cat", 3]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
