"""Which files of a folder are a model's, at each door: the rule itself is in ``files``."""

import json
import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

import quantolab as ql
from quantolab.errors import BrokenModelError

NAME = "diffusion_pytorch_model.safetensors"


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def pipeline(pipeline_folder, tmp_path):
    return shutil.copytree(pipeline_folder, tmp_path / "pipeline")


@pytest.mark.parametrize("other", ["backup.safetensors", "diffusion_pytorch_ema.safetensors"])
def test_a_file_beside_the_weights_is_left_alone(pipeline, other):
    folder = pipeline / "transformer"
    zeros = {name: torch.zeros_like(t) for name, t in load_file(folder / NAME).items()}
    planned_alone = list(ql.plan(pipeline).weight_bytes)
    save_file(zeros, folder / other)
    plain = weights(FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16))
    same(weights(ql.load(folder, "none")), plain)
    same(weights(ql.load(pipeline, "none")), plain)
    same(weights(ql.load_pipeline(pipeline, "none").transformer), plain)
    assert list(ql.plan(pipeline).weight_bytes) == planned_alone
    (folder / NAME).rename(folder / "another.safetensors")  # now nothing says which of the two
    for door in (ql.load, ql.load_pipeline):
        with pytest.raises(BrokenModelError, match=r"holds 2 \.safetensors files and no index"):
            door(pipeline, "int8")


def test_a_pipeline_whose_only_variant_is_fp16(pipeline):
    plain = weights(ql.load_pipeline(pipeline, "int8").transformer)
    for file in pipeline.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    same(weights(ql.load_pipeline(pipeline, "int8").transformer), plain)
    same(weights(ql.load_pipeline(pipeline, "int8", variant="fp16").transformer), plain)


def test_both_denoisers_of_two(pipeline):
    """As Wan 2.2 has them, and Diffusers names them."""
    shutil.copytree(pipeline / "transformer", pipeline / "transformer_2")
    index = json.loads((pipeline / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    one = ql.load(pipeline / "transformer", "int8")
    table = ql.plan(pipeline, ["int8"])
    both = table[(table.recipe == "int8") & table.component.isin(["transformer", "transformer_2"])]
    assert list(both.weight_bytes) == [ql.weight_bytes(one)] * 2
    report = ql.skip_report(pipeline, [])
    assert {*report.component} == {"transformer", "transformer_2"}


def test_sft_is_another_name_of_safetensors(flux_folder, tmp_path):
    folder = shutil.copytree(flux_folder, tmp_path / "model")
    plain = weights(ql.load(folder, "int8"))
    (folder / NAME).rename(folder / "diffusion_pytorch_model.sft")
    same(weights(ql.load(folder, "int8")), plain)
    file = tmp_path / "single.sft"
    shutil.copy(folder / "diffusion_pytorch_model.sft", file)
    same(weights(ql.load_single_file(file, "int8", config=folder)), plain)


def test_parameters_in_float8_are_refused_by_name(flux_folder):
    model = FluxTransformer2DModel.from_pretrained(flux_folder, torch_dtype=torch.bfloat16)
    model.proj_out.to(torch.float8_e4m3fn)
    with pytest.raises(BrokenModelError, match=r"proj_out.*float8_e4m3fn"):
        ql.quantize(model, "int8")
    assert model.norm_out.linear.weight.dtype == torch.bfloat16  # nothing was touched
    assert type(model.norm_out.linear) is torch.nn.Linear
