"""Models of several architectures leave Quanto: plain Diffusers has the same bits without us."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from saved_models import run_fresh

import quantolab as ql
from quantolab.backends import exchange, quantized_layers
from quantolab.errors import UnsupportedError
from quantolab.models.sample_inputs import sample_inputs
from quantolab.weights import QUANTIZED, backends_of

for library in ("sdnq", "torchao"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"pip install 'quantolab[{library}]'", allow_module_level=True)

CASES = [(word, to) for to in ("sdnq", "torchao") for word in QUANTIZED]
MIXED = [
    ("int4 FIRST=int8 SECOND=float8 LAST=none", "sdnq"),
    ("int8 FIRST=float8 LAST=none", "torchao"),
]
ALONE = """
import json, os, sys
os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
import diffusers, torch
cls, inputs, *folders = sys.argv[1:]
given = torch.load(inputs, weights_only=True)
for folder in folders:
    model = getattr(diffusers, cls).from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    with torch.no_grad():
        output = model(**given, return_dict=False)[0]
    torch.save(({**model.state_dict()}, output), folder + ".pt")
assert "quantolab" not in sys.modules
"""


def same(one, other):
    """Whether two tensors hold the same bits; of torchao's, which know no equality, each part."""
    if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if type(one) in (torch.Tensor, torch.nn.Parameter) or not hasattr(one, "__tensor_flatten__"):
        return torch.equal(one, other)
    parts = one.__tensor_flatten__()[0]
    return all(same(getattr(one, part), getattr(other, part)) for part in parts)


def left(source, cls, inputs, cases, place):
    """Convert each case; what plain Diffusers reads of it in one fresh process must be equal.

    Returns
    -------
    dict
        Of each case why it was refused, None where it was converted.
    """
    paths = [*quantized_layers(ql.load(source, "int8", device="cpu"))]
    names = {"FIRST": paths[1], "SECOND": paths[2], "LAST": paths[-1]}
    refused, converted = {}, {}
    for number, (text, to) in enumerate(cases):
        recipe = re.sub("FIRST|SECOND|LAST", lambda found: names[found[0]], text)
        quanto = ql.load(source, recipe, device="cpu")
        ql.save(quanto, place / f"quanto-{number}")
        out = place / f"new-{number}"
        refused[text, to] = None
        try:
            report = ql.convert(place / f"quanto-{number}", out, to=to)
        except UnsupportedError as error:
            refused[text, to] = str(error)
            assert not out.exists()
            continue
        new = converted[out] = ql.load_saved(out, device="cpu")
        words, now = quantized_layers(quanto), quantized_layers(new)
        assert report.weights_difference == 0 and report.layers == len(words)
        assert now.keys() == words.keys() and backends_of(now.values()) == (to,)
        for path in words:
            one, other = (
                exchange(backends_of((w[path],))[0]).values_of(m.get_submodule(path)).dequantized()
                for m, w in ((quanto, words), (new, now))
            )
            assert (one - other).abs().max() == 0, (text, to, path)
    torch.save(inputs, place / "inputs.pt")
    done = run_fresh(ALONE, cls, place / "inputs.pt", *converted)
    assert done.returncode == 0, done.stderr
    for out, new in converted.items():
        state, output = torch.load(f"{out}.pt", weights_only=False)  # written just now, by us
        ours = new.state_dict()
        assert state.keys() == ours.keys()
        assert all(same(value, ours[name]) for name, value in state.items()), out
        with torch.no_grad():
            assert torch.equal(new(**inputs, return_dict=False)[0], output), out
    return refused


@pytest.mark.sweep
def test_sd3_leaves_with_what_it_keeps(tmp_path):
    sd3 = ARCHITECTURES["sd3"]
    sd3.make().save_pretrained(tmp_path / "sd3")
    found = left(tmp_path / "sd3", sd3.cls, sd3.inputs(torch.bfloat16), MIXED, tmp_path)
    assert not any(found.values())


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["demo", *ARCHITECTURES])
def test_every_word_leaves_or_says_which_layer_can_not(name, tmp_path):
    if name == "demo":
        source = Path(ql.demo_model()) / "transformer"
        cls = "FluxTransformer2DModel"
        inputs = sample_inputs(ql.load(source, "none", device="cpu"), torch.bfloat16)
    else:
        source, cls = tmp_path / name, ARCHITECTURES[name].cls
        ARCHITECTURES[name].make().save_pretrained(source)
        inputs = ARCHITECTURES[name].inputs(torch.bfloat16)
    found = left(source, cls, inputs, [*CASES, *MIXED], tmp_path)
    for (word, to), why in found.items():
        print(name, word, to, why or "equal")
        if to == "torchao" and word in ("int4", "int2"):
            assert re.match(rf"layer '[\w.]+' \({word}\) can't be converted to torchao: ", why)
        else:
            assert why is None, why


PIPELINE = """
import os, sys
os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
import sdnq  # without which transformers doesn't know its form
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
picture = pipe(
    "a red cat", height=32, width=32, num_inference_steps=2, output_type="pt",
    generator=torch.Generator().manual_seed(0), max_sequence_length=16,
).images
parts = (pipe.transformer, pipe.text_encoder_2)
torch.save(([{**part.state_dict()} for part in parts], picture), sys.argv[2])
assert "quantolab" not in sys.modules
"""


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("recipe", "to"),
    [("transformer=int4 text_encoder_2=int8", "sdnq"),
     ("transformer=float8 text_encoder_2=int8", "torchao")],
)  # fmt: skip
def test_a_pipeline_leaves_with_its_text_encoder(recipe, to, pipeline_folder, tmp_path):
    ql.save(ql.load_pipeline(pipeline_folder, recipe, device="cpu"), tmp_path / "quanto")
    assert ql.convert(tmp_path / "quanto", tmp_path / "new", to=to).weights_difference == 0
    done = run_fresh(PIPELINE, tmp_path / "new", tmp_path / "theirs.pt")
    assert done.returncode == 0, done.stderr
    states, picture = torch.load(tmp_path / "theirs.pt", weights_only=False)
    pipe = ql.load_saved(tmp_path / "new", device="cpu")
    for state, part in zip(states, (pipe.transformer, pipe.text_encoder_2), strict=True):
        ours = part.state_dict()
        assert state.keys() == ours.keys()
        assert all(same(value, ours[name]) for name, value in state.items())
    ours = pipe(
        "a red cat", height=32, width=32, num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(0), max_sequence_length=16,
    ).images  # fmt: skip
    assert torch.equal(ours, picture)
