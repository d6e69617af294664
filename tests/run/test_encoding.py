"""Prompts encoded ahead: whatever the class, pictures to the bit; or else not ahead at all."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_pipelines
import torch

from quantolab.loading.pipelines import assemble
from quantolab.models.source import find_model
from quantolab.records import Workload
from quantolab.run.encoding import (
    PromptReplay,
    call_arguments,
    encode_ahead,
    joined,
    load_encoded,
    save_encoded,
)

PROMPTS = ("a red cat", "blue dog")
MAKERS = (
    "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "chroma", "lumina_2",
    "qwen_image",
)  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / request.param
    pipe = getattr(tiny_pipelines, request.param)()
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return find_model(folder)


def workload(guidance=3.0):
    return Workload("x", PROMPTS, (0,), 2, guidance, (32, 32), "float32", "cpu", 1)


def whole(source, *, encoders=True):
    pipe = assemble(
        source.folder, source.pipeline, {}, dtype="float32", device="cpu", encoders=encoders
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe, prompt, asked):
    noise = [torch.Generator().manual_seed(0) for _ in prompt]
    one = isinstance(prompt, str)
    arguments = call_arguments(pipe, asked)
    return pipe(prompt=prompt, generator=noise[0] if one else noise, **arguments).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_are_those_of_the_whole_pipeline(model, tmp_path, guidance):
    asked = workload(guidance)
    encoded = encode_ahead(model, asked, device="cpu")
    assert encoded is not None
    save_encoded(encoded, tmp_path / "prompts.safetensors")
    encoded = load_encoded(tmp_path / "prompts.safetensors", "cpu")
    plain, without = whole(model), whole(model, encoders=False)
    assert getattr(without, "text_encoder", None) is None
    replay = PromptReplay(without)
    theirs = []
    for prompt in PROMPTS:
        theirs.append(picture(plain, prompt, asked)[0])
        replay.says(encoded[prompt])
        assert np.array_equal(picture(without, prompt, asked)[0], theirs[-1])
        assert replay.used
    both = joined(list(encoded.values()))
    if both is not None:
        replay.says(both)
        assert np.allclose(picture(without, list(PROMPTS), asked), theirs, atol=1e-5)


def test_prompts_of_different_lengths_make_no_batch(tmp_path):
    tiny_pipelines.qwen_image().save_pretrained(tmp_path)
    asked = Workload("x", ("a", "a red cat"), (0,), 2, 3.0, (32, 32), "float32", "cpu", 1)
    encoded = encode_ahead(find_model(tmp_path), asked, device="cpu")
    assert joined(list(encoded.values())) is None


def test_a_class_that_needs_its_text_encoder_later_is_not_encoded_ahead(tmp_path, monkeypatch):
    import diffusers

    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path)

    class AsksAgain(diffusers.StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            assert self.text_encoder.dtype  # there is none
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr(diffusers, "StableDiffusionPipeline", AsksAgain)
    assert encode_ahead(find_model(tmp_path), workload(), device="cpu") is None


def test_what_a_pipeline_changes_in_place_is_its_own(tmp_path):
    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path)
    encoded = encode_ahead(find_model(tmp_path), workload(), device="cpu")
    text = encoded[PROMPTS[0]]
    before = {name: value.clone() for name, value in text.tensors.items()}
    for value in text.calls()[0]:
        value.zero_()
    assert all(torch.equal(text.tensors[name], value) for name, value in before.items())
