"""`load_single_file` gives what `load` gives from the folder, for every layout, offline."""

import json
import pickle
import re
import shutil
import types
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError, UnsupportedError
from quantolab.files.foreign import ForeignModelError
from quantolab.files.lazy_tensors import NotRecordable, Replayed, record
from quantolab.loading.component import load
from quantolab.loading.in_memory import quantize
from quantolab.measure.held_bytes import inner_tensors
from quantolab.models import converters
from quantolab.recipes import Recipe
from quantolab.single_file import names
from quantolab.single_file.reading import load_single_file

WEIGHTS = ("none", "float8", "int8", "int4", "int2")
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PREFIX = "model.diffusion_model."
TRUE_WIDTH = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,  # inner width 3072, as published
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
}

F8 = torch.float8_e4m3fn


def parts(module):
    """Return the raw bytes, dtype and shape of every plain tensor that a module holds."""
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        for inner, plain in inner_tensors(getattr(tensor, "data", tensor), name):
            raw = plain.contiguous().reshape(-1).view(torch.uint8)
            found[inner] = (raw, plain.dtype, plain.shape, type(tensor))
    return found


def assert_equal(ours, theirs):
    ours, theirs = parts(ours), parts(theirs)
    assert ours.keys() == theirs.keys()
    for name, (raw, *rest) in ours.items():
        assert rest == list(theirs[name][1:]), name
        assert torch.equal(raw, theirs[name][0]), name


def swapped(tensor):
    """Return the two halves of a tensor in the other order, as the final modulation lies."""
    return torch.cat(tensor.chunk(2)[::-1])


SINGLE_NAMES = {
    "time_in": "time_text_embed.timestep_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
}
RENAMED = {"txt_in": "context_embedder", "img_in": "x_embedder", "final_layer.linear": "proj_out"}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "norm_q",
    "img_attn.norm.key_norm": "norm_k",
    "txt_attn.norm.query_norm": "norm_added_q",
    "txt_attn.norm.key_norm": "norm_added_k",
}


def as_published(state, prefix=""):
    """Return FLUX tensors of Diffusers' names by the names and in the shape of its makers."""
    out = {}

    def joined(names, kind):
        return torch.cat([state[f"{name}.{kind}"] for name in names])

    for kind in ("weight", "bias"):
        for theirs, ours in SINGLE_NAMES.items():
            if f"{ours}.linear_1.{kind}" in state:
                out[f"{theirs}.in_layer.{kind}"] = state[f"{ours}.linear_1.{kind}"]
                out[f"{theirs}.out_layer.{kind}"] = state[f"{ours}.linear_2.{kind}"]
        for theirs, ours in RENAMED.items():
            out[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
        out[f"final_layer.adaLN_modulation.1.{kind}"] = swapped(state[f"norm_out.linear.{kind}"])
        ours, theirs = "transformer_blocks.0", "double_blocks.0"
        for there, here in DOUBLE.items():
            out[f"{theirs}.{there}.{kind}"] = state[f"{ours}.{here}.{kind}"]
        image = [f"{ours}.attn.to_{x}" for x in "qkv"]
        text = [f"{ours}.attn.add_{x}_proj" for x in "qkv"]
        out[f"{theirs}.img_attn.qkv.{kind}"] = joined(image, kind)
        out[f"{theirs}.txt_attn.qkv.{kind}"] = joined(text, kind)
        ours, theirs = "single_transformer_blocks.0", "single_blocks.0"
        names = [f"{ours}.attn.to_{x}" for x in "qkv"] + [f"{ours}.proj_mlp"]
        out[f"{theirs}.linear1.{kind}"] = joined(names, kind)
        out[f"{theirs}.linear2.{kind}"] = state[f"{ours}.proj_out.{kind}"]
        out[f"{theirs}.modulation.lin.{kind}"] = state[f"{ours}.norm.linear.{kind}"]
    for there, here in DOUBLE_NORMS.items():
        out[f"double_blocks.0.{there}.scale"] = state[f"transformer_blocks.0.attn.{here}.weight"]
    for there, here in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
        out[f"single_blocks.0.norm.{there}.scale"] = state[
            f"single_transformer_blocks.0.attn.{here}.weight"
        ]
    return {prefix + name: tensor.contiguous() for name, tensor in out.items()}


@pytest.fixture(scope="module")
def state(flux_folder):
    return load_file(flux_folder / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """The same tiny FLUX as one file in each layout, none beside a configuration."""
    folder = tmp_path_factory.mktemp("files")
    layouts = {
        "diffusers": state,
        "prefixed": {PREFIX + name: tensor for name, tensor in state.items()},
        "published": as_published(state),
        "comfy": as_published(state, PREFIX),
        "checkpoint": {
            **as_published(state, PREFIX),
            "vae.encoder.weight": torch.zeros(3),
            "text_encoders.t5xxl.shared.weight": torch.zeros(3),
        },
    }
    for name, tensors in layouts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in layouts}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes tensors to a file and returns its path."""

    def write(tensors, name="model.safetensors"):
        path = tmp_path / name
        save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
        return path

    return write


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        *((layout, weights) for layout in ("diffusers", "published") for weights in WEIGHTS),
        *((layout, "int8") for layout in ("prefixed", "comfy", "checkpoint")),
    ],
)
def test_equal_to_the_folder_bit_for_bit(files, flux_folder, layout, weights):
    ours = load_single_file(files[layout], weights, config=flux_folder, device="cpu")
    theirs = load(flux_folder, weights, device="cpu")
    assert_equal(ours, theirs)
    assert ours.quantize_report == theirs.quantize_report
    assert not ours.training


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("layout", ("diffusers", "published"))
def test_every_compute_dtype(files, flux_folder, layout, dtype):
    recipe = Recipe("int4", skip=("proj_out", "transformer_blocks.0.attn"))
    ours = load_single_file(files[layout], recipe, config=flux_folder, dtype=dtype, device="cpu")
    assert_equal(ours, load(flux_folder, recipe, dtype=dtype, device="cpu"))


def test_output_is_the_same(files, flux_folder):
    inputs = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 4, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
    }
    ours = load_single_file(
        files["published"], "int2", config=flux_folder, dtype="float32", device="cpu"
    )
    theirs = load(flux_folder, "int2", dtype="float32", device="cpu")
    assert torch.equal(ours(**inputs).sample, theirs(**inputs).sample)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """FLUX of the published width, one block of each kind: (configuration, file, tensors)."""
    folder = tmp_path_factory.mktemp("wide")
    with torch.device("meta"):
        module = FluxTransformer2DModel(**TRUE_WIDTH).to(torch.bfloat16)
    module.save_config(folder)
    torch.manual_seed(0)
    # A random row times a random column: fast to make, and no two rows or halves are alike.
    state = {
        name: torch.randn(t.shape[0], *[1] * (t.ndim - 1), dtype=t.dtype)
        * torch.randn(t.shape[1:], dtype=t.dtype)
        for name, t in module.state_dict().items()
    }
    published = folder / "flux1.safetensors"
    save_file(as_published(state), published)
    yield folder, published, state
    shutil.rmtree(folder)  # a gigabyte


@pytest.mark.sweep
def test_published_flux_of_true_width(wide):
    folder, published, state = wide
    ours = load_single_file(published, "int8", config=folder, device="cpu")
    with torch.device("meta"):
        theirs = FluxTransformer2DModel(**TRUE_WIDTH).eval()
    theirs.load_state_dict(state, assign=True)
    assert_equal(ours, quantize(theirs, "int8")[0])


@pytest.mark.sweep
def test_true_width_is_converted_as_diffusers_converts(wide):
    folder, published, _ = wide
    ours = load_single_file(published, "none", config=folder, device="cpu")
    theirs = FluxTransformer2DModel.from_single_file(
        str(published), config=str(folder), torch_dtype=torch.bfloat16
    )
    assert_equal(ours, theirs)


@pytest.mark.parametrize("prefix", ("", PREFIX))
def test_another_original_layout(architectures, tmp_path, written, prefix):
    """LTX-Video's names are half Diffusers' own; Diffusers renames the rest."""
    architectures["ltx"].make().save_pretrained(tmp_path / "ltx")
    renamed = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}
    renamed |= {"norm_q": "q_norm", "norm_k": "k_norm"}
    original = {}
    for name, tensor in load_file(tmp_path / "ltx" / WEIGHTS_FILE).items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        original[prefix + name] = tensor
    ours = load_single_file(written(original), "int4", config=tmp_path / "ltx", device="cpu")
    assert_equal(ours, load(tmp_path / "ltx", "int4", device="cpu"))


SD3_NAMES = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def sd3_as_published(state):
    """Return SD3 tensors of Diffusers' names by the names and in the shape of its makers."""
    state, out = dict(state), {}
    blocks = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("transformer_blocks."))
    swaps = ("norm_out.linear", f"transformer_blocks.{blocks - 1}.norm1_context.linear")
    for i in range(blocks):
        for theirs, ours in SD3_JOINED.items():
            names = [f"transformer_blocks.{i}.{leaf}" for leaf in ours]
            for kind in ("weight", "bias"):
                if f"{names[0]}.{kind}" in state:
                    joined = torch.cat([state.pop(f"{name}.{kind}") for name in names])
                    out[f"joint_blocks.{i}.{theirs}.{kind}"] = joined
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if name in SD3_NAMES:
            out[SD3_NAMES[name]] = tensor
            continue
        tensor = swapped(tensor) if owner in swaps else tensor
        if owner in SD3_NAMES:
            out[f"{SD3_NAMES[owner]}.{kind}"] = tensor
        else:
            _, number, leaf = owner.split(".", 2)
            out[f"joint_blocks.{number}.{SD3_BLOCK[leaf]}.{kind}"] = tensor
    return out


UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def sdxl_as_published(state, layers=1, attention_ups=(0,)):
    """Return the tensors of SDXL's U-Net by the names of its makers; `layers` a block."""
    out = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if owner in UNET_NAMES:
            out[f"{UNET_NAMES[owner]}.{kind}"] = tensor
            continue
        if owner.startswith("mid_block."):
            _, part, number, leaf = owner.split(".", 3)
            place = f"middle_block.{2 * int(number) if part == 'resnets' else 1}"
        else:
            side, block, part, number, leaf = owner.split(".", 4)
            down, first = side == "down_blocks", int(block) * (layers + 1)
            if part == "downsamplers":
                place, leaf = f"input_blocks.{first + layers + 1}.0", "op"
            elif part == "upsamplers":
                place = f"output_blocks.{first + layers}.{2 if int(block) in attention_ups else 1}"
            else:
                index = first + int(number) + (1 if down else 0)
                kinds = "input_blocks" if down else "output_blocks"
                place = f"{kinds}.{index}.{int(part == 'attentions')}"
        leaf = UNET_RESNET.get(leaf, leaf) if part == "resnets" else leaf
        out[f"{place}.{leaf}.{kind}"] = tensor
    return out


STABILITY = {"sd3": sd3_as_published, "sd3.5": sd3_as_published, "sdxl": sdxl_as_published}


@pytest.fixture(scope="module")
def stability(architectures, tmp_path_factory):
    """Tiny models of Stability's families by name: (folder in Diffusers' layout, tensors)."""
    sd35 = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    models = {
        "sd3": architectures["sd3"],
        "sd3.5": replace(architectures["sd3"], config=architectures["sd3"].config | sd35),
        "sdxl": architectures["sdxl"],
    }
    found = {}
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name)
        model.make().save_pretrained(folder)
        state = load_file(folder / WEIGHTS_FILE)
        published = STABILITY[name](state)
        assert sum(t.numel() for t in published.values()) == sum(t.numel() for t in state.values())
        found[name] = folder, published
    return found


@pytest.mark.parametrize("weights", ("int8", "int4"))
@pytest.mark.parametrize("name", STABILITY)
def test_layouts_of_stability(stability, written, name, weights):
    """A whole checkpoint, as they are published, and the denoiser's tensors alone."""
    folder, published = stability[name]
    theirs = load(folder, weights, device="cpu")
    whole = {PREFIX + tensor_name: tensor for tensor_name, tensor in published.items()}
    whole |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(3)}
    for tensors in (whole, published):
        ours = load_single_file(written(tensors), weights, config=folder, device="cpu")
        assert_equal(ours, theirs)
        assert ours.quantize_report == theirs.quantize_report


@pytest.mark.parametrize("name", STABILITY)
def test_they_are_converted_as_diffusers_converts(stability, written, name):
    import diffusers

    folder, published = stability[name]
    path = written({PREFIX + tensor_name: tensor for tensor_name, tensor in published.items()})
    ours = load_single_file(path, "none", config=folder, dtype="float32", device="cpu")
    theirs = getattr(diffusers, type(ours).__name__).from_single_file(str(path), config=str(folder))
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "lost", "says"),
    (
        ("sd3", "joint_blocks.0.x_block.mlp.fc1.bias", "can't convert it (KeyError"),
        ("sdxl", "input_blocks.2.0.op.bias", "lacks the tensor 'down_blocks.0.downsamplers"),
        ("sdxl", "middle_block.1.norm.bias", "lacks the tensor 'mid_block.attentions.0.norm.bias'"),
        ("sdxl", "label_emb.0.0.weight", "can't convert it (KeyError"),
    ),
)
def test_a_tensor_that_their_layouts_lack_is_named(refused, stability, written, name, lost, says):
    folder, published = stability[name]
    tensors = {PREFIX + n: t for n, t in published.items() if n != lost}
    assert len(tensors) == len(published) - 1
    assert says in refused(written(tensors), config=folder)
    extra = {PREFIX + n: t for n, t in published.items()} | {PREFIX + "lora.up": torch.zeros(2)}
    assert "holds the tensor 'model.diffusion_model.lora.up' that" in refused(
        written(extra), config=folder
    )


def test_configuration_of_a_pipeline(files, pipeline_folder, flux_folder):
    ours = load_single_file(
        files["published"], "int8", config=pipeline_folder, component="transformer", device="cpu"
    )
    assert_equal(ours, load(flux_folder, "int8", device="cpu"))
    assert_equal(
        load_single_file(files["published"], "int8", config=str(pipeline_folder), device="cpu"),
        ours,
    )
    beside = load_single_file(
        files["diffusers"], "int8", config=flux_folder / "config.json", device="cpu"
    )
    assert_equal(beside, ours)


def test_a_file_beside_its_configuration_needs_none(flux_folder):
    ours = load_single_file(flux_folder / WEIGHTS_FILE, "int8", device="cpu")
    assert_equal(ours, load(flux_folder, "int8", device="cpu"))


def test_no_configuration_is_never_guessed(files):
    with pytest.raises(ArgumentError, match=r"config is needed: nothing beside .* pass config="):
        load_single_file(files["diffusers"], "int8", device="cpu")


def test_no_name_is_resolved(files, flux_folder, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    load_single_file(files["published"], "int8", config=flux_folder, device="cpu")


def test_no_warning_reaches_the_user(files, flux_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_single_file(files["published"], "int8", config=flux_folder, device="cpu")


# -- files that aren't what they should be


@pytest.fixture
def refused(flux_folder):
    """Return a function that loads a file, expects an error of a kind, and returns its text."""

    def refuse(path, kind=BrokenModelError, **options):
        options = {"config": flux_folder, "device": "cpu", **options}
        with pytest.raises(kind) as caught:
            load_single_file(path, "int8", **options)
        assert type(caught.value) in (kind, ForeignModelError)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def test_a_missing_tensor_is_named(refused, written, state):
    rest = {k: v for k, v in state.items() if k != "proj_out.bias"}
    assert "it lacks the tensor 'proj_out.bias'" in refused(written(rest))


def test_an_extra_tensor_is_named(refused, written, state):
    text = refused(written({**state, "extra": torch.zeros(1)}))
    assert "it has the tensor 'extra' too many" in text


def test_both_are_counted(refused, written, state):
    rest = {k: v for k, v in state.items() if "single" not in k}
    text = refused(written({**rest, "x": torch.zeros(1), "y": torch.zeros(1)}))
    assert "lacks" in text and "has 2 tensors ('x' for one) too many" in text


def test_published_layouts_are_checked_as_strictly(refused, written, state):
    tensors = as_published(state)
    text = refused(written({**tensors, "double_blocks.0.lora": torch.zeros(1)}))
    assert "holds the tensor 'double_blocks.0.lora' that FluxTransformer2DModel" in text
    del tensors["final_layer.linear.bias"]
    assert "can't convert it (KeyError: 'final_layer.linear.bias')" in refused(written(tensors))


def test_a_file_of_another_model(refused, written):
    text = refused(written({"a.weight": torch.zeros(2, 2)}))
    assert "isn't the FluxTransformer2DModel that" in text


@pytest.mark.sweep
def test_a_file_of_the_true_width(refused, wide):
    assert "split" in refused(wide[1])  # 3072 into the configuration's 256


def test_a_file_of_another_width(refused, written, state):
    other = {**state, "proj_out.weight": torch.zeros(16, 128)}
    assert "'proj_out.weight' has the shape (16, 128), not (16, 256)" in refused(written(other))


def test_dev_weights_for_a_configuration_without_guidance(refused, written, state, tmp_path):
    guided = {**as_published(state)}
    for layer, shape in (("in_layer", (256, 256)), ("out_layer", (256, 256))):
        guided[f"guidance_in.{layer}.weight"] = torch.zeros(shape)
        guided[f"guidance_in.{layer}.bias"] = torch.zeros(256)
    assert "has 4 tensors ('time_text_embed.guidance_embedder" in refused(written(guided))


@pytest.mark.parametrize("keep", (0, 4, 100, -1))
def test_a_truncated_file(refused, files, tmp_path, keep):
    path = tmp_path / "short.safetensors"
    path.write_bytes(files["diffusers"].read_bytes()[:keep])
    assert "can't be read as safetensors" in refused(path)


def test_a_file_that_is_no_safetensors(refused, tmp_path):
    path = tmp_path / "page.safetensors"
    path.write_text("<html>404</html>" * 20)
    assert "can't be read as safetensors" in refused(path)


def test_a_folder_instead_of_a_file(refused, flux_folder):
    assert "is a folder; one .safetensors file was expected" in refused(flux_folder, ArgumentError)


def test_a_misspelt_file_suggests(refused, files):
    path = files["published"].with_name("publisht.safetensors")
    text = refused(path, ModelNotFoundError)
    assert "isn't there; did you mean" in text and "published.safetensors" in text
    assert "isn't there" in refused(files["published"].parent / "no" / "x.pt", ModelNotFoundError)


def test_one_shard_of_several_is_refused(refused, written, state):
    path = written(state, "diffusion_pytorch_model-00001-of-00003.safetensors")
    assert "is one of several files that hold a model together" in refused(path, ArgumentError)


def test_another_ending_is_refused(refused, tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    assert "ends in '.onnx'; allowed: .safetensors, .sft" in refused(path, ArgumentError)


@pytest.mark.parametrize("weights", ("int8", "int4"))
def test_a_quantized_file_points_to_load_saved(refused, written, flux_folder, weights):
    quantized = load(flux_folder, weights, device="cpu")
    tensors = {name: tensor.contiguous() for name, tensor in quantized.state_dict().items()}
    text = refused(written(tensors))
    assert "is quantized by Quanto already" in text and "load_saved" in text


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("proj_out.weight.absmax", torch.float32, "by bitsandbytes"),
        ("proj_out.weight.quant_state.bitsandbytes__nf4", torch.uint8, "by bitsandbytes"),
        ("proj_out.qzeros", torch.int32, "by GPTQ or AWQ"),
        ("proj_out.weight_scale_2", torch.float32, "by modelopt"),
        ("proj_out.scale_weight", torch.float32, "by ComfyUI (scaled float8)"),
        ("proj_out.comfy_quant", torch.uint8, "by ComfyUI (comfy_quant)"),
    ],
)
def test_files_quantized_by_others(
    refused, written, state, flux_folder, tmp_path, name, dtype, said
):
    tensors = {**state, name: torch.zeros(3, dtype=dtype)}
    path = written(tensors)
    assert said in refused(path) and name in refused(path)
    _in_a_folder(path, flux_folder, tmp_path / "m")
    with pytest.raises(BrokenModelError, match=re.escape(said)):
        load(tmp_path / "m", "int8", device="cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("leaf", ["scale", "weight_scale", "input_scale", "scales"])
def test_small_weights_with_a_scale_are_refused_at_both_doors(
    refused, written, state, flux_folder, tmp_path, dtype, leaf
):
    tensors = dict(state)
    tensors["proj_out.weight"] = state["proj_out.weight"].to(dtype)
    tensors[f"proj_out.{leaf}"] = torch.ones(1)
    path = written(tensors)
    assert f"has a scale ('proj_out.{leaf}')" in refused(path)
    _in_a_folder(path, flux_folder, tmp_path / "m")
    with pytest.raises(BrokenModelError, match="has a scale"):
        load(tmp_path / "m", "int8", device="cpu")


def _in_a_folder(path, like, folder):
    folder.mkdir()
    shutil.copy(path, folder / WEIGHTS_FILE)
    shutil.copy(like / "config.json", folder)


@pytest.mark.parametrize("layout", (dict, as_published))
def test_plain_float8_is_cast_as_diffusers_casts(written, state, flux_folder, tmp_path, layout):
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    ours = load_single_file(written(layout(small)), "int8", config=flux_folder, device="cpu")
    folder = tmp_path / "cast"
    folder.mkdir()
    shutil.copy(flux_folder / "config.json", folder)
    save_file({k: v.to(torch.bfloat16) for k, v in small.items()}, folder / WEIGHTS_FILE)
    assert_equal(ours, load(folder, "int8", device="cpu"))


def test_scaled_float8_is_refused(refused, written, state):
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in as_published(state).items()}
    tensors["double_blocks.0.img_attn.qkv.scale_weight"] = torch.ones(1)
    text = refused(written(tensors))
    assert "by ComfyUI (scaled float8) ('double_blocks.0.img_attn.qkv.scale_weight')" in text


@pytest.mark.parametrize(
    "others",
    [
        {"text_encoders.t5xxl.a.weight": F8, "text_encoders.t5xxl.a.scale_weight": torch.float32},
        {"text_encoders.t5xxl.a.weight": F8, "text_encoders.t5xxl.a.weight_scale": torch.float32},
        {"text_encoders.t5xxl.scaled_fp8": F8},
        {"text_encoders.t5xxl.a.comfy_quant": torch.uint8},
        {"text_encoders.clip_l.a.weight.absmax": torch.float32},
        {"vae.a.weight._data": torch.int8, "vae.a.weight._scale": torch.bfloat16},
    ],
)
def test_what_other_parts_of_a_checkpoint_are_quantized_by_does_not_matter(
    written, state, files, flux_folder, others
):
    tensors = as_published(state, PREFIX) | {n: torch.ones(3).to(d) for n, d in others.items()}
    ours = load_single_file(written(tensors), "int8", config=flux_folder, device="cpu")
    theirs = load_single_file(files["published"], "int8", config=flux_folder, device="cpu")
    assert_equal(ours, theirs)


def test_a_dead_pattern_is_refused(files, flux_folder):
    with pytest.raises(ArgumentError, match="did you mean 'proj_out'"):
        load_single_file(
            files["published"], Recipe("int8", skip="proj_ot"), config=flux_folder, device="cpu"
        )


def test_classes_that_diffusers_cannot_convert(refused, written, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "PixArtTransformer2DModel", "num_layers": 1})
    )
    text = refused(written({"a": torch.zeros(1)}), UnsupportedError, config=tmp_path)
    assert "Diffusers converts no original layout of PixArtTransformer2DModel" in text


def test_text_encoders_are_not_read_from_files(refused, files, pipeline_folder):
    text = refused(
        files["diffusers"], UnsupportedError, config=pipeline_folder, component="text_encoder_2"
    )
    assert "'text_encoder_2' is a T5EncoderModel of transformers" in text


def test_a_configuration_that_is_not_there(refused, files, tmp_path):
    refused(files["diffusers"], ModelNotFoundError, config=tmp_path / "nowhere")


def test_nothing_is_left_open(written, state, flux_folder, tmp_path):
    path = written(state)
    load_single_file(path, "int8", config=flux_folder, device="cpu")
    from pathlib import Path

    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


# -- pickles


class Hostile:
    """Unpickled by plain pickle, this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("ending", (".ckpt", ".pt", ".pth", ".bin"))
def test_pickles_need_permission(refused, written, state, ending, flux_folder):
    path = written({"state_dict": state, "epoch": 3}, "model" + ending)
    assert "which can hold code; allowed: .safetensors" in refused(path, ArgumentError)
    ours = load_single_file(path, "int8", config=flux_folder, device="cpu", allow_pickle=True)
    assert_equal(ours, load(flux_folder, "int8", device="cpu"))


def test_a_hostile_pickle_does_not_run(refused, tmp_path, state):
    path, proof = tmp_path / "model.ckpt", tmp_path / "proof"
    torch.save({**state, "x": Hostile(proof)}, path)
    assert "nothing in it was run" in refused(path, allow_pickle=True)
    path.write_bytes(pickle.dumps(Hostile(proof), protocol=2))
    refused(path, allow_pickle=True)
    assert not proof.exists()
    pickle.loads(path.read_bytes()).close()
    assert proof.exists()  # so it would have run


def test_a_pickle_named_safetensors_is_not_unpickled(refused, tmp_path):
    path, proof = tmp_path / "model.safetensors", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Hostile(proof), protocol=2))
    assert "can't be read as safetensors" in refused(path, allow_pickle=True)
    assert not proof.exists()


def test_pickles_without_tensors(refused, written, tmp_path):
    assert "holds no dictionary of tensors" in refused(written([1], "a.pt"), allow_pickle=True)
    assert "holds no dictionary of tensors" in refused(written({"a": 1}, "b.pt"), allow_pickle=True)
    path = tmp_path / "c.pt"
    path.write_bytes(b"PK nonsense")
    refused(path, allow_pickle=True)


# -- recorded tensors


def test_recorded_tensors_compute_when_asked():
    real = {"a": torch.arange(12.0).reshape(6, 2), "b": torch.ones(2, 2)}
    asked = []

    class Watched(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    recorded = record(Watched(real), {k: v.to("meta") for k, v in real.items()})
    first, _, last = torch.chunk(recorded["a"], 3)
    made = {"x": torch.cat([last, first]), "y": recorded["b"][0].float() + 1}
    assert asked == []
    assert made["x"].shape == (4, 2) and made["x"].sources == {"a"}
    replayed = Replayed(made)
    assert torch.equal(replayed["x"], real["a"][[4, 5, 0, 1]])
    assert torch.equal(replayed["y"], torch.full((2,), 2.0))
    assert asked == ["a", "a", "b"]


@pytest.mark.parametrize(
    "change",
    (
        lambda t: t.add_(1),
        lambda t: t.__iadd__(1),
        lambda t: t.__setitem__(0, 1),
        lambda t: t.item(),
        lambda t: bool(t > 0),
    ),
)
def test_what_cannot_be_recorded_says_so(change):
    recorded = record({"a": torch.zeros(1)}, {"a": torch.zeros(1, device="meta")})
    with pytest.raises(NotRecordable):
        change(recorded["a"])


@pytest.mark.parametrize("name", converters._FIXED_WIDTH_CLASSES)
def test_no_literal_width_is_left_in_a_converter(name):
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    def numbers(code):
        for value in code.co_consts:
            yield from numbers(value) if isinstance(value, types.CodeType) else (value,)

    converter = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"]
    before = set(numbers(converter.__code__))
    after = set(numbers(converters.with_width(converter, 256).__code__))
    assert 3072 not in after
    assert (3072 in before) == (256 in after)
    assert set(numbers(converter.__code__)) == before  # Diffusers' own is as it was


def test_converters_that_need_values_get_real_tensors(files, flux_folder, state, monkeypatch):
    """Whatever a converter does to its tensors, the result is the same, only read at once."""
    from diffusers.loaders import single_file_model as theirs

    entry = theirs.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    convert = entry["checkpoint_mapping_fn"]

    def looks_at_values(checkpoint, **options):
        assert float(checkpoint["img_in.bias"].abs().max()) > 0
        return convert(checkpoint, **options)

    monkeypatch.setattr(names, "_converter", lambda part, module: looks_at_values)
    with pytest.raises(BrokenModelError, match="split"):  # the literal width, in both ways
        load_single_file(files["published"], "int8", config=flux_folder, device="cpu")
    narrow = converters.with_width(convert, 256)
    monkeypatch.setattr(
        names,
        "_converter",
        lambda part, module: (
            lambda checkpoint, **options: (
                checkpoint["img_in.bias"].sum().item(),
                narrow(checkpoint, **options),
            )[1]
        ),
    )
    ours = load_single_file(files["published"], "int8", config=flux_folder, device="cpu")
    assert_equal(ours, load(flux_folder, "int8", device="cpu"))
