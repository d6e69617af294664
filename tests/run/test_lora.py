"""A LoRA that every recipe's pipeline carries: as plain Diffusers loads it, or refused."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import quantolab as ql
from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError, UnsupportedError
from quantolab.files import adapters
from quantolab.loading.lora import lora_bytes
from quantolab.models.source import find_model
from quantolab.run.carrying import file_and_weight, find_lora

peft = pytest.importorskip("peft")

FAST = {"prompts": "a red cat", "steps": 1, "repeats": 1, "size": (64, 64), "dtype": "float32"}
NAME = "style.safetensors"


def quietly(progress):
    """Watch nothing."""


@pytest.fixture(scope="module")
def lora(pipeline_folder, tmp_path_factory):
    """A small LoRA of the tiny pipeline, as Diffusers itself saves one."""
    from diffusers import FluxPipeline

    module = ql.load(pipeline_folder, "none")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["to_q", "proj_mlp"], init_lora_weights=False
    )
    module.add_adapter(config)
    folder = tmp_path_factory.mktemp("lora")
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=peft.get_peft_model_state_dict(module),
        transformer_lora_adapter_metadata=module.peft_config["default"].to_dict(),
        weight_name=NAME,
    )
    return folder / NAME


def with_plain_diffusers(folder, recipe, lora, weight):
    """Return the picture that Diffusers makes with the same LoRA, and nothing of `compare`."""
    pipe = ql.load_pipeline(folder, recipe, device="cpu", dtype="float32")
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="style")
    pipe.set_adapters("style", weight)
    made = pipe(
        FAST["prompts"], num_inference_steps=1, width=64, height=64, output_type="np",
        max_sequence_length=pipe.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return (made.images[0] * 255).round().astype("uint8")


def changed_copy(lora, folder, change):
    """Write the LoRA's tensors, changed, to a file beside nothing else."""
    path = folder / "other.safetensors"
    save_file(change(load_file(lora)), path)
    return path


def test_pictures_are_those_of_plain_diffusers_and_a_run_is_only_gone_on_with_the_same(
    pipeline_folder, lora, tmp_path
):
    recipes, out = ["none", "int8", "int4"], tmp_path / "run"
    options = {**FAST, "watch": quietly, "out": out}
    done = ql.compare(pipeline_folder, recipes, lora=f"{lora}=0.5", **options)
    plain = ql.compare(pipeline_folder, "none", watch=quietly, **FAST)
    assert [(t.status, t.reason) for t in done.trials] == [("ok", None)] * 3
    for trial in done.trials:
        ours = np.asarray(done.images[trial.label, "a red cat", 0])
        assert (ours == with_plain_diffusers(pipeline_folder, trial.recipe, lora, 0.5)).all()
        assert trial.weight_bytes == trial.predicted_weight_bytes
    tensors = load_file(lora).values()
    extra = 4 * sum(t.numel() for t in tensors)  # bytes in float32
    assert done.trials[0].weight_bytes - plain.trials[0].weight_bytes == extra
    assert done.trials[0].file_bytes == plain.trials[0].file_bytes
    assert done.images["none", "a red cat", 0] != plain.images["none", "a red cat", 0]

    kept = json.loads((out / "run.json").read_text())["workload"]["lora"]
    assert (kept["file"], kept["weight"], len(kept["digest"])) == (str(lora), 0.5, 32)
    assert ql.results_table(done)["lora"].unique().tolist() == [f"{lora}=0.5"]
    origin = ql.picture_origin(next((out / "images" / "int8").glob("*.png")))
    assert origin.lora == f"{NAME}=0.5"

    again = {**options, "resume": True}
    for asked in (None, lora, f"{lora}=0.6"):
        with pytest.raises(ArgumentError, match=r"lora was .*style.safetensors=0.5' .content"):
            ql.compare(pipeline_folder, recipes, lora=asked, **again)
    other = changed_copy(lora, tmp_path, lambda found: {n: 2 * t for n, t in found.items()})
    with pytest.raises(ArgumentError, match="lora was"):
        ql.compare(pipeline_folder, recipes, lora=(other, 0.5), **again)
    moved = shutil.copy(lora, tmp_path / "moved.safetensors")
    assert len(ql.compare(pipeline_folder, recipes, lora=(moved, 0.5), **again).trials) == 3

    ql.save_comparison(plain, tmp_path / "plain")
    with pytest.raises(ArgumentError, match=r"can't be merged, their workloads differ: .*lora was"):
        ql.merge([out, tmp_path / "plain"], tmp_path / "both")
    assert "lora" not in json.loads((tmp_path / "plain" / "run.json").read_text())["workload"]


def test_a_lora_of_a_text_encoder_changes_what_prompts_become(pipeline_folder, lora, tmp_path):
    def also_encoder(tensors):
        encoder = ql.load(pipeline_folder, "none", component="text_encoder")
        path, layer = next(
            (n, m) for n, m in encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj")
        )
        start = f"text_encoder.{path}"
        return tensors | {
            f"{start}.lora_A.weight": torch.full((2, layer.in_features), 0.5),
            f"{start}.lora_B.weight": torch.full((layer.out_features, 2), 0.5),
        }

    both = changed_copy(lora, tmp_path, also_encoder)
    alone = changed_copy(both, tmp_path / "..", lambda found: {
        n: t for n, t in found.items() if n.startswith("text_encoder.")
    })  # fmt: skip
    for path in (both, alone):
        done = ql.compare(pipeline_folder, "none", lora=path, watch=quietly, **FAST)
        trial = done.trials[0]
        assert trial.reason is None
        assert trial.encoded == "trial"
        ours = np.asarray(done.images["none", "a red cat", 0])
        assert (ours == with_plain_diffusers(pipeline_folder, "none", path, 1.0)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: {n.replace("transformer.", "nowhere."): t for n, t in found.items()},
         "tensors, 'nowhere.*' for one, belong to no layer of transformer or text_encoder"),
        (lambda found: {**found, "transformer.deep.to_q.lora_A.weight": torch.ones(4, 8)},
         "1 of its .* tensors, 'deep.to_q.lora_A.weight' for one, belong to no layer of transf"),
        (lambda found: {n: t[:, :3].contiguous() for n, t in found.items()},
         "doesn't fit transformer of .*: size mismatch"),
        (lambda found: {n: t for n, t in found.items() if "lora_B" not in n}, "doesn't fit"),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_the_model_is_told(pipeline_folder, lora, tmp_path, change, said):
    path = changed_copy(lora, tmp_path, change)
    with pytest.raises(ArgumentError, match=said):
        lora_bytes(find_model(pipeline_folder), path, "bfloat16")


def test_one_that_does_not_fit_is_refused_before_anything_is_written(
    pipeline_folder, lora, tmp_path
):
    path = changed_copy(
        lora, tmp_path, lambda found: {n: t[:, :3].contiguous() for n, t in found.items()}
    )
    with pytest.raises(ArgumentError, match="doesn't fit transformer of"):
        ql.compare(pipeline_folder, "none", lora=path, out=tmp_path / "run", watch=quietly, **FAST)
    assert not (tmp_path / "run").exists()


def test_a_pipeline_into_which_diffusers_loads_none_says_so(pipeline_folder, lora, tmp_path):
    model = shutil.copytree(pipeline_folder, tmp_path / "model")
    index = model / "model_index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps({**said, "_class_name": "ShapEPipeline"}))
    with pytest.raises(UnsupportedError, match="is a ShapEPipeline, into which Diffusers loads no"):
        ql.compare(model, "none", lora=lora, watch=quietly, **FAST)


def test_what_is_no_lora_is_refused_by_its_header(lora, tmp_path, monkeypatch):
    plain, doubtful = tmp_path / "plain.safetensors", tmp_path / "dora.safetensors"
    save_file({"x.weight": torch.ones(2)}, plain)
    save_file({"x.lora_A.weight": torch.ones(2), "x.dora_scale": torch.ones(2)}, doubtful)
    old, new = tmp_path / "a.bin", tmp_path / "b.safetensors"
    old.write_bytes(pickle.dumps({"x.lora_A.weight": "y" * 300}, protocol=2))
    torch.save({"x.lora_A.weight": torch.ones(2)}, new)
    renamed = shutil.copy(lora, tmp_path / "style.sft")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x05\0\0\0\0\0\0\0hello, world")
    shutil.copy(lora, tmp_path / adapters.USUAL_NAME)
    for path, error, said in (
        (tmp_path / "not.safetensors", ModelNotFoundError, "isn't there"),
        (tmp_path, ArgumentError, "is a folder.*pytorch_lora_weights.safetensors' may be meant"),
        (old, ArgumentError, "is a pickle"),
        (new, ArgumentError, "is a pickle"),
        (renamed, ArgumentError, "whose name ends in .safetensors"),
        (broken, BrokenModelError, "can't be read as safetensors"),
        (plain, ArgumentError, "is no LoRA: none of its 1 tensors, 'x.weight' for one"),
        (doubtful, ArgumentError, "is a DoRA"),
    ):
        with pytest.raises(error, match=said):
            find_lora(path)
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'quantolab\[lora\]'"):
        find_lora(lora)


def test_weights_are_told_from_names(lora, tmp_path):
    named = shutil.copy(lora, tmp_path / "a=0.5.safetensors")
    assert file_and_weight(str(named)) == (str(named), 1.0)
    assert file_and_weight(f"{named}=-0.5") == (str(named), -0.5)
    assert file_and_weight(("style.safetensors", 2)) == ("style.safetensors", 2.0)
    for text in ("x.safetensors=much", "x.safetensors=", "x.safetensors=inf"):
        with pytest.raises(ArgumentError, match=r"weight of the LoRA 'x.safetensors' must be a"):
            file_and_weight(text)
    found, path = find_lora(f"{lora}=0.5")
    assert (found.weight, path) == (0.5, lora)
    assert found == find_lora((shutil.copy(lora, tmp_path / "c.safetensors"), 0.5))[0]
