"""Weights that others have quantized: every kind, at every door, one sentence, before work."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantolab as ql
from quantolab.errors import BrokenModelError
from quantolab.single_file.facts import single_file_facts
from quantolab.widgets.model_field import ModelField

FILE = "diffusion_pytorch_model.safetensors"
F8, I8, U8, F32 = torch.float8_e4m3fn, torch.int8, torch.uint8, torch.float32

# What others write beside `proj_out.weight`, and as what they store that.
IN_FILES = {
    "scaled float8": (F8, {"proj_out.scale_weight": F32}, "ComfyUI (scaled float8)"),
    "float8 with scales": (F8, {"proj_out.weight_scale": F32}, "has a scale"),
    "int8 with scales": (I8, {"proj_out.scale": F32}, "has a scale"),
    "float8, scales under its name": (F8, {"proj_out.weight.scale": F32}, "has a scale"),
    "float8 and its range": (F8, {"proj_out.weight_amax": F32}, "has a scale"),
    "bitsandbytes nf4": (U8, {"proj_out.weight.absmax": F32}, "bitsandbytes"),
    "bitsandbytes int8": (I8, {"proj_out.SCB": F32}, "bitsandbytes"),
    "SDNQ": (U8, {"proj_out.scale": F32, "proj_out.svd_up": F32}, "SDNQ"),
    "torchao": (I8, {"proj_out._weight_qdata": I8}, "torchao"),
    "modelopt": (F8, {"proj_out.input_quantizer._amax": F32}, "modelopt"),
    "nvfp4": (U8, {"proj_out.weight_scale": F8, "proj_out.weight_scale_2": F32}, "nvfp4"),
    "comfy_quant": (F8, {"proj_out.comfy_quant": U8, "proj_out.weight_scale": F32}, "comfy_quant"),
    "GPTQ": (None, {"proj_out.qweight": torch.int32}, "GPTQ or AWQ"),
    "Nunchaku": (I8, {"proj_out.wscales": F32}, "Nunchaku"),
    "float8 in blocks": (F8, {"proj_out.weight_scale_inv": F32}, "float8 in blocks"),
    "compressed-tensors": (None, {"proj_out.weight_packed": I8}, "compressed-tensors"),
}
IN_CONFIGS = {
    "bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes", "gguf": "GGUF",
    "sdnq": "SDNQ", "torchao": "torchao", "modelopt": "modelopt", "gptq": "GPTQ or AWQ",
    "svdquant": "Nunchaku", "fp8": "float8 in blocks", "no one knows it": "no one knows it",
}  # fmt: skip


@pytest.fixture
def pipeline(pipeline_folder, tmp_path):
    """A pipeline whose transformer may be changed; the rest is never read."""
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    return folder


def sentences(pipeline, tmp_path):
    """Return what each door that reads files says, from where it says why."""
    folder, errors = pipeline / "transformer", []
    doors = {
        "load": lambda: ql.load(pipeline, "int8", device="cpu"),
        "load_single_file": lambda: ql.load_single_file(folder / FILE, "int8", device="cpu"),
        "load_saved": lambda: ql.load_saved(folder, device="cpu"),
        "load_pipeline": lambda: ql.load_pipeline(pipeline, "int8", device="cpu"),
        "plan": lambda: ql.plan(pipeline, ["int8"]),
        "skip_report": lambda: ql.skip_report(pipeline),
        "compare": lambda: ql.compare(pipeline, ["none"], size=(32, 32), out=tmp_path / "out"),
        "model field": lambda: ModelField(pipeline, show_error=errors.append),
        "single-file panel": lambda: errors.append(single_file_facts(folder / FILE).problem),
    }
    said = {}
    for name, door in doors.items():
        errors.clear()
        try:
            door()
        except BrokenModelError as error:
            errors.append(error)
        found = [str(error) for error in errors if isinstance(error, BrokenModelError)]
        said[name] = found[0].partition(" is quantized already")[2] if found else "not refused"
    assert not (tmp_path / "out").exists()
    return said


@pytest.mark.parametrize("kind", IN_FILES)
def test_tensors_that_others_quantized(pipeline, tmp_path, kind):
    dtype, beside, sign = IN_FILES[kind]
    file = pipeline / "transformer" / FILE
    tensors = load_file(file)
    if dtype is not None:
        tensors["proj_out.weight"] = tensors["proj_out.weight"].to(dtype)
    save_file(tensors | {n: torch.ones(1).to(dtype) for n, dtype in beside.items()}, file)
    said = sentences(pipeline, tmp_path)
    assert len(set(said.values())) == 1 and sign in said["load"], said


@pytest.mark.parametrize("method", IN_CONFIGS)
def test_a_method_that_others_have(pipeline, tmp_path, method):
    if method in ("sdnq", "torchao"):  # without it `load_saved` says what to install
        pytest.importorskip(method)
    path = pipeline / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}
    path.write_text(json.dumps(config))
    said = sentences(pipeline, tmp_path)
    assert len(set(said.values())) == 1 and IN_CONFIGS[method] in said["load"], said


def test_whole_numbers_are_no_weights(pipeline, tmp_path):
    file = pipeline / "transformer" / FILE
    tensors = load_file(file)
    for dtype in (torch.bool, torch.uint8, torch.int16):
        changed = tensors["proj_out.weight"].to(dtype)
        save_file(tensors | {"proj_out.weight": changed}, file)
        said = sentences(pipeline, tmp_path)
        said.pop("load_saved")  # which reads such, and says that these aren't
        assert len(set(said.values())) == 1 and "is stored as" in said["load"], said
        with pytest.raises(BrokenModelError, match=f"dtype {dtype}"):
            ql.load_saved(file.parent, device="cpu")


@pytest.mark.parametrize("name", ["__scale__", "scales.proj_out.weight", "ema.proj_out.weight"])
@pytest.mark.parametrize("word", ["none", "int8"])
def test_tensors_that_would_stay_unread(pipeline, name, word):
    file = pipeline / "transformer" / FILE
    tensors = load_file(file)
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(F8)
    save_file(tensors | {name: torch.ones(1)}, file)
    doors = (
        lambda: ql.load(pipeline, word, device="cpu"),
        lambda: ql.load_pipeline(pipeline, word, device="cpu"),
        lambda: ql.load_single_file(file, word, config=file.parent, device="cpu"),
        lambda: ql.load_saved(file.parent, device="cpu"),
    )
    for door in doors:
        with pytest.raises(BrokenModelError, match=name):
            door()


def test_text_encoders_may_lie_in_files_that_hold_more(pipeline):
    file = pipeline / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    layer = next(name for name in tensors if name.endswith(".q.weight"))
    more = {"decoder.final_layer_norm.weight": torch.ones(64), "lm_head.weight": torch.ones(32, 64)}
    save_file(tensors | more, file, {"format": "pt"})
    ql.load(pipeline, "int8", "text_encoder_2", device="cpu")
    tensors[f"{layer}_gain"] = torch.ones(64)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BrokenModelError, match="_gain' for one"):
        ql.load(pipeline, "int8", "text_encoder_2", device="cpu")


def test_gguf_under_its_own_name_and_under_another(pipeline, tmp_path):
    file = pipeline / "transformer" / FILE
    file.write_bytes(b"GGUF" + bytes(100))
    said = sentences(pipeline, tmp_path)
    assert len(set(said.values())) == 1 and "GGUF" in said["load"], said
    file.rename(file.with_suffix(".gguf"))
    for door in (ql.load, ql.plan, ql.load_saved):
        with pytest.raises(BrokenModelError, match="by GGUF"):
            door(pipeline if door is not ql.load_saved else file.parent)


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao", "sdnq", "modelopt", "gptqmodel"])
@pytest.mark.parametrize("part", ["layer", "weight"])
def test_what_another_library_left_in_memory(package, part):
    base = torch.nn.Linear if part == "layer" else torch.nn.Parameter
    cls = type("Small", (base,), {"__module__": f"{package}.some.room"})
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    if part == "layer":
        model[1] = cls(16, 16)
    else:
        model[1].weight = torch.Tensor._make_subclass(cls, torch.zeros(16, 16))
    with pytest.raises(
        BrokenModelError,
        match=f"is quantized already, by .*{package[:4]}.*Small|"
        "is quantized already, by (GPTQ|SDNQ)",
    ):
        ql.quantize(model, "int8")
    assert type(model[0]) is torch.nn.Linear


def test_a_text_encoder_or_vae_in_an_sft_file_is_told_to_be_renamed(pipeline):
    file = next((pipeline / "vae").glob("*.safetensors"))
    file.rename(file.with_suffix(".sft"))
    with pytest.raises(BrokenModelError, match="'vae' doesn't look for: rename it"):
        ql.load_pipeline(pipeline, "int8", device="cpu")
