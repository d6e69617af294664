"""`quantize` and `load` give what Diffusers' QuantoConfig gives, without its faults."""

import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from torch import nn
from uniform import predicted_bytes

import quantolab as ql
from quantolab.backends.quanto import cures, row_wise
from quantolab.backends.quanto import quantizing as quantizing_room
from quantolab.backends.quanto.layers import QuantoLinear, quantize_linear
from quantolab.errors import ArgumentError, BrokenModelError
from quantolab.measure.held_bytes import inner_tensors
from quantolab.models.skeleton import build_skeleton
from quantolab.models.source import find_model
from quantolab.shapes import Layer

QUANTIZED = ("float8", "int8", "int4", "int2")
DTYPES = ("bfloat16", "float16", "float32")


def plain_parts(module):
    """Every plain tensor a module holds, generic int4 form included, by name."""
    parts = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if hasattr(tensor, "weight_qbits_tensor") and "TinyGemm" in type(tensor).__name__:
            tensor = tensor.weight_qbits_tensor()
        parts.update(inner_tensors(getattr(tensor, "data", tensor), name))
    return parts


def assert_same_parts(ours, theirs):
    ours, theirs = plain_parts(ours), plain_parts(theirs)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        # Raw bytes: float8 has no equality, and NaN equals itself here.
        assert torch.equal(
            tensor.contiguous().reshape(-1).view(torch.uint8),
            other.contiguous().reshape(-1).view(torch.uint8),
        ), name


def diffusers_load(folder, weights, dtype, skip=None):
    from diffusers import QuantoConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return FluxTransformer2DModel.from_pretrained(
            folder,
            quantization_config=QuantoConfig(weights, modules_to_not_convert=skip),
            dtype=getattr(torch, dtype),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", QUANTIZED)
def test_load_equals_diffusers_bit_for_bit(flux_folder, weights, dtype):
    ours = ql.load(flux_folder, weights, dtype=dtype, device="cpu")
    assert_same_parts(ours, diffusers_load(flux_folder, weights, dtype))


@pytest.mark.parametrize("weights", QUANTIZED)
def test_leaf_skips_equal_diffusers_bit_for_bit(flux_folder, weights):
    recipe = ql.Recipe(weights, skip=("proj_out", "linear"))
    ours = ql.load(flux_folder, recipe, device="cpu")
    theirs = diffusers_load(flux_folder, weights, "bfloat16", ["proj_out", "linear"])
    assert_same_parts(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", QUANTIZED)
def test_rows_at_a_time_equal_quantos_passes_over_the_whole(weights, dtype, monkeypatch):
    """Shapes whose last rows are fewer, rows of zeros, groups of one value, a cast on the way."""
    monkeypatch.setattr(row_wise, "_VALUES", 1000)
    dtype = getattr(torch, dtype)
    for out_features, in_features in ((2, 16), (7, 33), (130, 256), (256, 128), (48, 288), (9, 1)):
        layer = Layer("layer", in_features, out_features, bias=False)
        weight = torch.randn(out_features, in_features) * 10.0 ** torch.randint(-3, 3, (1,))
        weight[1] = 0
        weight[0, : in_features // 2] = -0.25
        ours = quantize_linear(layer, weights, weight, None, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr(quantizing_room, "quantized_parts", lambda *_: None)
            theirs = quantize_linear(layer, weights, weight, None, dtype=dtype)
        assert ours[1] == theirs[1]
        assert type(ours[0].weight) is type(theirs[0].weight)
        assert_same_parts(ours[0], theirs[0])


@pytest.mark.sweep  # that it stays below plan: planning/test_load_peaks.py
@pytest.mark.skipif(sys.platform != "linux", reason="reads private memory from /proc")
def test_loading_needs_the_quantized_bytes_and_three_layers(tmp_path):
    """Measured as tests/benchmarks/loading.py does, in a fresh process."""
    config = {
        "patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 2,
        "attention_head_dim": 128, "num_attention_heads": 8, "joint_attention_dim": 1024,
        "pooled_projection_dim": 256, "axes_dims_rope": [16, 56, 56],
    }  # fmt: skip
    module = FluxTransformer2DModel(**config).to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    largest = max(parameter.nbytes for parameter in module.parameters())
    benchmark = Path(__file__).parents[1] / "benchmarks" / "loading.py"
    once = [sys.executable, benchmark, "once", "quantize", tmp_path, tmp_path, "int8"]
    done = subprocess.run(once, capture_output=True, text=True, check=True)
    quantized = ql.weight_bytes(ql.quantize(module, "int8")[0])
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.9 * quantized < found["peak"] < quantized + 3 * largest
    # The file's own pages are let go as well; those of libraries, used for the first time, are not.
    assert found["resident"] < found["peak"] + 3 * largest


@pytest.mark.parametrize("weights", QUANTIZED)
def test_what_was_first_quantized_while_inferring_can_be_followed(weights):
    """What is kept from layer to layer must not be one of inference mode's read-only tensors."""
    weight = torch.randn(32, 128).bfloat16()
    layer = Layer("layer", 128, 32, bias=False)

    def both():
        with torch.inference_mode():
            quantize_linear(layer, weights, weight, None, dtype=torch.bfloat16)
        return quantize_linear(layer, weights, weight, None, dtype=torch.bfloat16)[0]

    with ThreadPoolExecutor(1) as new_thread:  # one that has quantized nothing yet
        found = new_thread.submit(both).result()
    assert_same_parts(found, both())


@pytest.mark.parametrize("weights", QUANTIZED)
def test_quantize_in_memory_equals_load(flux_folder, weights):
    module = FluxTransformer2DModel.from_pretrained(flux_folder, dtype=torch.bfloat16).eval()
    quantized, report = ql.quantize(module, weights)
    assert quantized is module
    loaded = ql.load(flux_folder, weights, device="cpu")
    assert_same_parts(quantized, loaded)
    assert report == loaded.quantize_report
    assert report.weight_bytes == ql.weight_bytes(module)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ("none", *QUANTIZED))
def test_predicted_bytes_are_the_real_ones(flux_folder, weights, dtype):
    skeleton = build_skeleton(find_model(flux_folder).component())
    loaded = ql.load(flux_folder, weights, dtype=dtype, device="cpu")
    assert predicted_bytes(skeleton, weights, dtype) == ql.weight_bytes(loaded)


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("weights", ("none", *QUANTIZED))
@pytest.mark.parametrize(
    "shape", [(5, 7), (128, 1), (130, 3), (160, 4), (192, 8), (200, 16), (256, 10), (288, 63)]
)
def test_predicted_bytes_of_odd_shapes(shape, weights, dtype):
    layer = nn.Sequential(nn.Linear(*shape, dtype=getattr(torch, dtype)))
    predicted = predicted_bytes(layer, weights, dtype)
    assert ql.weight_bytes(ql.quantize(layer, weights)[0]) == predicted


def test_weight_bytes_counts_shared_storage_once():
    first = nn.Linear(8, 8)
    second = nn.Linear(8, 8)
    second.weight = first.weight
    assert ql.weight_bytes(nn.ModuleList([first, second])) == 4 * (64 + 8 + 8)


def relative_error(output, reference):
    return ((output.double() - reference.double()).norm() / reference.double().norm()).item()


@pytest.mark.parametrize("tokens", (1, 5, 64))
@pytest.mark.parametrize("out_features", (1, 7, 256))
@pytest.mark.parametrize("in_features", (4, 8, 12, 20, 36, 68, 100, 132, 260, 130, 255, 5))
def test_int8_of_any_width_is_right(in_features, out_features, tokens):
    """The failing case of cures.INT8_PLAIN: plain Quanto crashes, or gives garbage."""
    layer = nn.Sequential(nn.Linear(in_features, out_features, dtype=torch.bfloat16))
    x = torch.randn(tokens, in_features, dtype=torch.bfloat16)
    weight, bias = layer[0].weight.detach().clone(), layer[0].bias.detach().clone()
    quantized, report = ql.quantize(layer, "int8")
    # Against the product with the stored weight: what int8 means, free of rounding it.
    stored = quantized[0].weight.dequantize()
    reference = nn.functional.linear(x.float(), stored.float(), bias.float())
    scale = x.float().norm(dim=1, keepdim=True) * weight.float().norm() + 1e-6
    assert ((quantized(x).float() - reference) / scale).abs().max() < 0.02
    assert bool(report.cures) == (in_features % 4 == 0 and in_features % 16 != 0)


def test_int8_with_a_cure_stores_what_quanto_stores():
    from optimum.quanto import freeze, qint8
    from optimum.quanto import quantize as quanto_quantize

    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(20, 32, dtype=torch.bfloat16))
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(20, 32, dtype=torch.bfloat16))
    quanto_quantize(theirs, weights=qint8)
    freeze(theirs)
    ours, report = ql.quantize(ours, "int8")
    assert report.cures == (("0", cures.INT8_PLAIN),)
    assert_same_parts(ours, theirs)


@pytest.mark.parametrize("out_features", (1, 4, 10, 63))
def test_int4_of_any_height_is_right(out_features):
    """The failing case of cures.INT4_GENERIC: plain Quanto raises while quantizing."""
    layer = nn.Sequential(nn.Linear(256, out_features, dtype=torch.bfloat16))
    x = torch.randn(9, 256, dtype=torch.bfloat16)
    reference = layer(x)
    quantized, report = ql.quantize(layer, "int4")
    assert report.cures == (("0", cures.INT4_GENERIC),)
    assert relative_error(quantized(x), reference) < 0.3


@pytest.mark.parametrize("weights", QUANTIZED)
def test_inputs_need_not_be_contiguous(weights):
    """The failing case of cures.CONTIGUOUS: Sana feeds its layers transposed tensors."""
    layer = nn.Sequential(nn.Linear(256, 32, dtype=torch.bfloat16))
    quantized, _ = ql.quantize(layer, weights)
    x = torch.randn(256, 24, dtype=torch.bfloat16).T
    assert not x.is_contiguous()
    assert torch.equal(quantized(x), quantized(x.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", QUANTIZED)
def test_rows_of_zeros_stay_zero(weights, dtype):
    """The failing case of cures.FLOAT8_ZERO_ROWS: 0/0 would be NaN in every output."""
    layer = nn.Sequential(nn.Linear(64, 32, bias=False, dtype=getattr(torch, dtype)))
    with torch.no_grad():
        layer[0].weight[3:5] = 0
    quantized, report = ql.quantize(layer, weights)
    output = quantized(torch.ones(2, 64, dtype=getattr(torch, dtype)))
    assert torch.isfinite(output).all()
    assert (output[:, 3:5] == 0).all()
    assert (("0", cures.FLOAT8_ZERO_ROWS) in report.cures) == (weights == "float8")


def test_all_zero_module_is_finite_at_every_dtype():
    for weights in QUANTIZED:
        layer = nn.Sequential(nn.Linear(256, 32, dtype=torch.bfloat16))
        nn.init.zeros_(layer[0].weight)
        nn.init.zeros_(layer[0].bias)
        output = ql.quantize(layer, weights)[0](torch.randn(4, 256, dtype=torch.bfloat16))
        assert (output == 0).all(), weights


class Float32Keeper(nn.Module):
    """A model that keeps a container in float32, as Wan keeps its time embedder."""

    _keep_in_fp32_modules = ("time_embedder",)

    def __init__(self):
        super().__init__()
        self.time_embedder = nn.Sequential(nn.Linear(32, 32))
        self.proj = nn.Linear(32, 32, dtype=torch.bfloat16)

    def forward(self, x):
        return self.proj(self.time_embedder(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("weights", QUANTIZED)
def test_modules_meant_for_float32_are_left_out(weights):
    quantized, report = ql.quantize(Float32Keeper(), weights)
    assert report.quantized == ("proj",)
    assert report.kept == (("time_embedder.0", "the model keeps it in float32"),)
    assert quantized.time_embedder[0].weight.dtype == torch.float32
    assert torch.isfinite(quantized(torch.randn(3, 32))).all()


def test_unpack_equals_quantos_packing():
    from optimum.quanto.tensor.packed import pack_weights

    for bits in (2, 4):
        values = torch.randint(0, 2**bits, (16, 24), dtype=torch.uint8)
        assert torch.equal(cures.unpack(pack_weights(values, bits), bits), values)


def test_a_linear_layer_itself_can_be_quantized():
    layer, report = ql.quantize(nn.Linear(64, 64), "int8")
    assert isinstance(layer, QuantoLinear)
    assert report.quantized == ("",)


def test_a_pipeline_is_quantized_and_weighed(pipeline_folder):
    def pipe():
        return DiffusionPipeline.from_pretrained(pipeline_folder, torch_dtype=torch.bfloat16)

    def parts(pipeline):
        modules = (m for m in pipeline.components.values() if isinstance(m, torch.nn.Module))
        return sum(map(ql.weight_bytes, modules))

    plain = pipe()
    assert ql.weight_bytes(plain) == parts(plain) > ql.weight_bytes(plain.transformer)
    before = ql.weight_bytes(plain)
    done, report = ql.quantize(plain, "int8")
    assert done is plain
    assert all(name.startswith("transformer.") for name in report.quantized)
    assert len(report.quantized) == len(ql.quantize(pipe().transformer, "int8")[1].quantized)
    assert ql.weight_bytes(plain) == parts(plain) < before
    both = ql.Recipe("int8", components=("transformer", "text_encoder_2"))
    _, report = ql.quantize(pipe(), both)
    assert {name.partition(".")[0] for name in report.quantized} == {*both.components}
    with pytest.raises(ArgumentError, match="did you mean 'transformer'"):
        ql.quantize(pipe(), ql.Recipe("int8", components=("transfromer",)))


def test_the_mode_of_layers_is_kept():
    module = nn.Sequential(nn.Linear(32, 32))
    assert ql.quantize(module.eval(), "int8")[0][0].training is False


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (("proj_ot",), "did you mean 'proj_out'"),
        (("norm_uot.linear",), "did you mean 'norm_out.linear'"),
        (("to_out",), "did you mean '*.to_out'?"),
        (("nothing*",), "matches none of the 28 Linear layers"),
    ],
)
def test_a_dead_pattern_is_refused_and_the_module_unchanged(flux_folder, skip, message):
    module = FluxTransformer2DModel.from_pretrained(flux_folder)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ArgumentError) as caught:
        ql.quantize(module, ql.Recipe("int8", skip=skip))
    assert message in str(caught.value)
    after = module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
def test_weights_that_are_no_numbers_are_refused(bad):
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        module[1].weight[2, 3] = bad
    with pytest.raises(BrokenModelError, match="layer '1' holds NaN or infinity"):
        ql.quantize(module, "int8")
    assert type(module[0]) is nn.Linear  # nothing was quantized before the check


def test_what_cannot_be_quantized_says_so():
    with pytest.raises(ArgumentError, match="has no Linear layer"):
        ql.quantize(nn.Conv2d(3, 3, 3), "int8")
    quantized, _ = ql.quantize(nn.Sequential(nn.Linear(8, 8)), "int8")
    with pytest.raises(ArgumentError, match="is quantized already"):
        ql.quantize(quantized, "int4")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ArgumentError, match="meta device"):
        ql.quantize(empty, "int8")
    with pytest.raises(ArgumentError, match="keeps all of them"):
        ql.quantize(nn.Sequential(nn.Linear(8, 8)), ql.Recipe("int8", skip="*"))


def test_weights_words_are_quantos():
    from optimum.quanto.tensor import qtypes

    assert {"q" + word for word in QUANTIZED} <= set(qtypes)


def test_no_warning_reaches_the_user(flux_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ql.load(flux_folder, "int8", device="cpu")


def test_weights_that_are_quantized_already_are_refused(flux_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(flux_folder, tmp_path / "model")
    path = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    said = "quantized already: 'proj_out.weight' is stored as int8"
    with pytest.raises(BrokenModelError, match=said):
        ql.load(tmp_path / "model", "int8", device="cpu")


def test_weights_of_another_shape_are_refused(flux_folder, tmp_path):
    import json
    import shutil

    shutil.copytree(flux_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**config, "joint_attention_dim": 128})
    )
    with pytest.raises(BrokenModelError, match=r"'context_embedder.weight' has the shape"):
        ql.load(tmp_path / "model", "int8", device="cpu")


@pytest.mark.parametrize("weights", QUANTIZED)
def test_weights_on_disk_that_are_no_numbers_are_refused(flux_folder, tmp_path, weights):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(flux_folder, tmp_path / "model")
    path = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.weight"][3, 5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BrokenModelError, match="layer 'proj_out' holds NaN or infinity"):
        ql.load(tmp_path / "model", weights, device="cpu")


def test_a_recipe_that_keeps_everything_is_refused_at_every_door(flux_folder, pipeline_folder):
    recipe = ql.Recipe("int8", skip=("**",))
    doors = (
        lambda: ql.load(flux_folder, recipe, device="cpu"),
        lambda: ql.load(pipeline_folder, recipe, "text_encoder_2", device="cpu"),
        lambda: ql.quantize(torch.nn.Sequential(torch.nn.Linear(8, 8)), recipe),
        lambda: ql.load_single_file(
            flux_folder / "diffusion_pytorch_model.safetensors",
            recipe,
            config=flux_folder,
            device="cpu",
        ),
    )
    for door in doors:
        with pytest.raises(ArgumentError, match="nothing to quantize"):
            door()
