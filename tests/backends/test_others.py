"""Words of other backends: what they mean, hold, keep, save and say; each where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from saved_models import assert_same_weights, output_of
from zygote import run_code

import quantolab as ql
from quantolab import weights
from quantolab.backends import exchange, layer_bytes, quantized_layers, unsupported
from quantolab.errors import ArgumentError, BrokenModelError, UnsupportedError
from quantolab.models.layers import linear_layers
from quantolab.shapes import Layer

SAVED = (
    "torchao:int8", "torchao:float8", "torchao:int8-g32",
    "sdnq:int8", "sdnq:float8_e4m3fn", "sdnq:uint4-g128", "sdnq:int4", "sdnq:uint4-svd32",
)  # fmt: skip
RUN_ONLY = ("bitsandbytes:int8", "bitsandbytes:nf4", "bitsandbytes:fp4")
MORE = (
    "sdnq:int8-row", "sdnq:uint8", "sdnq:int7", "sdnq:uint6", "sdnq:int5", "sdnq:uint4",
    "sdnq:uint4-row", "sdnq:uint3", "sdnq:int2", "sdnq:uint2", "sdnq:uint2-g64-svd8",
    "sdnq:float8_e5m2", "sdnq:float6_e3m2fn", "sdnq:float4_e2m1fn", "torchao:int8-g64",
)  # fmt: skip


def needed(word):
    """Skip where a word's library isn't installed, with what to install."""
    backend = weights.weights_of(word).backend
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"pip install 'quantolab[{backend}]'")
    return word


def everything_held(module):
    """Count bytes of all that hangs on a module, attributes included, shared storage once."""
    storages, seen = {}, set()
    waiting = [part.__dict__ for part in module.modules()]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            wraps = type(value) not in (torch.Tensor, torch.nn.Parameter)
            if wraps and hasattr(value, "__tensor_flatten__"):
                waiting += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
            else:
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        waiting += _inside(value)
    return sum(storages.values())


def _inside(value):
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set)):
        return list(value)
    theirs = type(value).__module__.split(".")[0] in ("bitsandbytes", "sdnq", "torchao")
    held = isinstance(value, torch.Tensor) or theirs
    return [value.__dict__] if held and hasattr(value, "__dict__") else []


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*SAVED, *RUN_ONLY, *MORE, "torchao:int4"])
def test_a_word_is_read_and_written_back(word):
    recipe = ql.Recipe(word, skip=("proj_out",))
    assert ql.Recipe.parse(str(recipe)) == recipe and recipe.words == (word,)
    row = weights.weights_of(word)
    assert row.word == word and word.startswith(f"{row.backend}:{row.name}")
    assert weights.weights_of(word) is row


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sdnq:uint4-g0", "words such as sdnq:float8_e4m3fn"),
        ("sdnq:uint4-svd32-g128", "did you mean"),
        ("sdnq:int9", "is not known; allowed for sdnq"),
        ("sdnq:uint4 ", "is not known"),
        ("torchao:float8-g32", "allowed for torchao"),
        ("torchao:int8-row", "allowed for torchao"),
        ("bitsandbytes:nf4-g64", "allowed for bitsandbytes"),
        ("sdqn:int8", "did you mean 'sdnq'"),
        ("quanto:int8", "names no backend"),
        ("uint4", "it is written 'sdnq:uint4'"),
        ("NF4", "it is written 'bitsandbytes:nf4'"),
    ],
)
def test_a_word_that_is_none_is_told_what_there_is(word, said):
    with pytest.raises(ArgumentError, match=said):
        ql.Recipe({"transformer": word})


def test_words_of_others_are_never_meant_by_themselves():
    assert all(":" not in word for word in weights.WORDS)
    assert weights.in_order(["int2", "sdnq:uint4", "int4", "none", "torchao:int8", "int8"]) == (
        "none", "int8", "torchao:int8", "int4", "sdnq:uint4", "int2",
    )  # fmt: skip


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*SAVED, *RUN_ONLY, *MORE])
def test_bytes_are_predicted_whatever_the_shape(word):
    needed(word)
    dice = random.Random(word)
    for dtype in ("bfloat16", "float32"):
        for _ in range(4):
            columns = dice.choice([32, 48, 64, 96, 100, 128, 160, 192, 256, 384])
            rows = dice.choice([1, 3, 16, 33, 64, 128])
            layer = Layer("0", columns, rows, dice.random() < 0.5)
            plain = torch.nn.Linear(columns, rows, layer.bias, dtype=getattr(torch, dtype))
            module = torch.nn.Sequential(plain)
            reason = unsupported(layer, word, dtype, "cpu")
            if reason:
                with pytest.raises(UnsupportedError, match="layer '0' can't be"):
                    ql.quantize(module, word)
                assert module[0] is plain
                continue
            ql.quantize(module, word)
            bias = rows * weights.COMPUTE_BYTES[dtype] if layer.bias else 0
            predicted = layer_bytes(layer, word, dtype) + bias
            assert predicted == ql.weight_bytes(module) == everything_held(module), (layer, dtype)
            x = torch.randn(2, columns, dtype=getattr(torch, dtype))
            assert torch.isfinite(module(x)).all()
            assert predicted == everything_held(module), "held after a forward"


@pytest.mark.parametrize("word", [SAVED[0], SAVED[1], SAVED[4], SAVED[5], SAVED[7], *RUN_ONLY[:2]])
def test_a_model_is_planned_to_the_byte(word, flux_folder):
    needed(word)
    module = ql.load(flux_folder, word, device="cpu")
    table = ql.plan(flux_folder, [word])
    row = table[table.weights == word].iloc[0]
    assert row.weight_bytes == ql.weight_bytes(module) == everything_held(module)
    assert row.quantized_layers == len(linear_layers(module)) == len(quantized_layers(module))
    report = ql.skip_report(flux_folder, recipe=word)
    assert report.attrs["bytes"] == report[f"bytes_{word}"].sum() < report.bytes_none.sum()


# --- which layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdnq:int8", "torchao:int8", "sdnq:uint4-g64"])
def test_the_layers_kept_are_those_asked_for(backend, flux_folder, tmp_path):
    needed(backend)
    kept_as_asked(backend, flux_folder, tmp_path, lists=4)


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["sdnq:int8", "torchao:int8"])
def test_the_layers_kept_are_those_asked_for_50_times(backend, flux_folder, tmp_path):
    needed(backend)
    kept_as_asked(backend, flux_folder, tmp_path, lists=50)


def kept_as_asked(word, folder, tmp_path, lists):
    """Keep random layers: in memory, in the file, and when plain Diffusers reads that."""
    from diffusers import FluxTransformer2DModel

    paths = [la.path for la in linear_layers(ql.load(folder, "none", device="cpu"))]
    dice = random.Random(word)
    for _ in range(lists):
        asked = set(dice.sample(paths, dice.randrange(1, len(paths))))
        recipe = ql.Recipe(word, skip=tuple(f"[{p[0]}]{p[1:]}" for p in asked))
        module = ql.load(folder, recipe, device="cpu")
        assert set(paths) - set(quantized_layers(module)) == asked
        saved = ql.save(module, tmp_path / "saved")
        again = ql.load_saved(saved, device="cpu")
        assert set(paths) - set(quantized_layers(again)) == asked
        plain = FluxTransformer2DModel.from_pretrained(saved, torch_dtype=torch.bfloat16)
        assert set(paths) - set(quantized_layers(plain)) == asked


@pytest.mark.parametrize("recipe", ["sdnq:int8 *.attn.*=torchao:int8", "int8 proj_out=sdnq:int8"])
def test_a_component_has_one_backend(recipe):
    with pytest.raises(UnsupportedError, match="a component is quantized by one backend"):
        ql.plan("demo", [recipe])


@pytest.mark.parametrize("word", ["sdnq:float8_e4m3fn", "sdnq:int8", "bitsandbytes:nf4"])
def test_a_model_says_what_it_computes_in(word, flux_folder):
    needed(word)
    module = ql.load(flux_folder, word, device="cpu")
    assert module.dtype == torch.bfloat16
    assert ql.load(flux_folder, "none", device="cpu", dtype="float32").dtype == torch.float32
    wide = ql.load(flux_folder, word, device="cpu", dtype="float32")
    assert wide.dtype == torch.float32
    assert ql.dequantize(module).dtype == torch.bfloat16


# --- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", SAVED)
def test_what_is_saved_comes_back(word, flux_folder, tmp_path):
    needed(word)
    module = ql.load(flux_folder, f"{word} proj_out=none x_embedder=none", device="cpu")
    before = output_of(module)
    folder = ql.save(module, tmp_path / "saved")
    again = ql.load_saved(folder, device="cpu")
    assert_same_weights(module, again)
    assert torch.equal(output_of(again), before)
    assert everything_held(again) == everything_held(module) == ql.weight_bytes(again)
    assert str(again.quantize_report.recipe) == f"{word} proj_out=none x_embedder=none"
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == weights.weights_of(word).backend


def saved_by_diffusers(folder, config, out):
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(
        folder, quantization_config=config, torch_dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    return ql.load_saved(out, device="cpu")


def test_scales_that_diffusers_saved_come_back_whole(flux_folder, tmp_path):
    needed("sdnq:int8")
    ours = ql.load(flux_folder, "sdnq:uint4-g64 [p]roj_out=none", device="cpu")
    from diffusers import SDNQConfig

    config = SDNQConfig(
        weights_dtype="uint4",
        group_size=64,
        add_skip_keys=False,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
        modules_to_not_convert=["proj_out.weight"],
    )
    theirs = saved_by_diffusers(flux_folder, config, tmp_path / "theirs")
    assert_same_weights(theirs, ours)
    assert quantized_layers(theirs) == quantized_layers(ours)


@pytest.mark.parametrize("word", ["torchao:int8", "torchao:float8"])
def test_what_diffusers_saved_with_torchao_comes_back(word, flux_folder, tmp_path):
    needed(word)
    from diffusers import TorchAoConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Int8WeightOnlyConfig() if word.endswith("int8") else Float8WeightOnlyConfig()
    theirs = saved_by_diffusers(flux_folder, TorchAoConfig(kind), tmp_path / "theirs")
    assert_same_weights(theirs, ql.load(flux_folder, word, device="cpu"))


@pytest.mark.parametrize("word", SAVED[:2] + SAVED[3:5])
def test_a_form_that_no_word_means_is_refused(word, flux_folder, tmp_path):
    needed(word)
    folder = ql.save(ql.load(flux_folder, word, device="cpu"), tmp_path / "saved")
    (folder / "quantolab.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    said = config["quantization_config"]
    if word.startswith("sdnq"):
        said["use_hadamard"] = True
    else:
        named = said["quant_type"]["default"]["_data"]["fqn_to_config"]
        named["proj_out"]["_type"] = "Int8DynamicActivationInt8WeightConfig"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenModelError, match=r"is quantized already, by (SDNQ|torchao)"):
        ql.load_saved(folder, device="cpu")


@pytest.mark.parametrize("word", ["sdnq:uint4-svd32", "torchao:int8"])
def test_another_compute_dtype(word, flux_folder, tmp_path):
    needed(word)
    folder = ql.save(ql.load(flux_folder, word, device="cpu"), tmp_path / "saved")
    wide = ql.load_saved(folder, device="cpu", dtype="float32")
    output = output_of(wide, "float32")
    narrow = output_of(ql.load_saved(folder, device="cpu"))
    assert output.dtype == torch.float32
    assert (output - narrow.float()).norm() < 0.02 * output.norm()
    ours = {n: t for n, t in wide.named_parameters() if n.endswith(("scale", "zero_point"))}
    assert all(t.dtype == torch.float32 for t in ours.values())


@pytest.mark.parametrize("word", RUN_ONLY[:2])
def test_bitsandbytes_is_run_and_never_saved(word, flux_folder, tmp_path):
    needed(word)
    module = ql.load(flux_folder, word, device="cpu")
    assert torch.isfinite(output_of(module)).all()
    with pytest.raises(UnsupportedError, match="with a GPU only"):
        ql.save(module, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("word", [SAVED[0], SAVED[5], SAVED[7], RUN_ONLY[1]])
def test_dequantize_gives_what_the_layers_stand_for(word, flux_folder):
    needed(word)
    module = ql.load(flux_folder, word, device="cpu")
    quantized = output_of(module)
    plain = output_of(ql.dequantize(module))
    assert not quantized_layers(module)
    assert (plain.float() - quantized.float()).norm() < 0.03 * plain.float().norm()


@pytest.mark.parametrize("word", ["sdnq:uint4-g64", "sdnq:float8_e4m3fn", *RUN_ONLY[1:2]])
def test_the_t5_of_a_pipeline_runs(word, pipeline_folder, tmp_path):
    """It casts activations to the dtype of a weight's bytes, unless it sees none."""
    needed(word)
    tokens = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        t5 = ql.load(pipeline_folder, word, "text_encoder_2", device="cpu")
        assert t5.encoder.block[0].layer[1].DenseReluDense.wo.weight.element_size() == 1
        output = t5(tokens)[0]
        if word.startswith("sdnq"):
            ql.save(t5, tmp_path / "saved")
            assert torch.equal(ql.load_saved(tmp_path / "saved", device="cpu")(tokens)[0], output)
            note = json.loads((tmp_path / "saved" / "quantolab.json").read_text())
            assert "none for *.wo runs there too" in note["plain_diffusers"]["reason"]
        plain = ql.dequantize(t5)(tokens)[0]
    assert (output - plain).norm() < 0.02 * plain.norm()


SCRIPTS = (
    "sdnq:uint4-g128 *.attn.*=sdnq:int8-row *proj_out=none",
    "torchao:int8 *.attn.*=torchao:float8 *proj_out=none",
)


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_the_plain_script_makes_the_same_weights(recipe, flux_folder):
    word = needed(recipe.partition(" ")[0])
    made = {}
    exec(ql.diffusers_code(recipe, flux_folder, device="cpu"), made)
    ours, theirs = ql.load(flux_folder, recipe, device="cpu"), made["transformer"]
    words = quantized_layers(ours)
    assert (
        quantized_layers(theirs).keys()
        == words.keys()
        < {layer.path for layer in linear_layers(theirs)}
    )
    values = exchange(weights.weights_of(word).backend).values_of
    for path in words:
        one, other = (values(m.get_submodule(path)).dequantized() for m in (ours, theirs))
        assert torch.equal(one, other), path


def test_scripts_of_pipelines_name_each_class_once():
    text = ql.diffusers_code("transformer=torchao:int8 text_encoder_2=torchao:float8", "demo")
    assert "TransformersTorchAoConfig(" in text and "Float8WeightOnlyConfig" in text
    text = ql.diffusers_code("transformer=sdnq:int8 text_encoder_2=int4", "demo")
    assert text.index('os.environ["SDNQ') < text.index("import torch\n") < text.index("sdnq import")
    assert "accelerate optimum-quanto sdnq" in text and "freeze(text_encoder_2)" in text
    with pytest.raises(UnsupportedError, match="bitsandbytes with a GPU only"):
        ql.diffusers_code("bitsandbytes:nf4", "demo")


def test_what_is_for_quanto_alone_says_so(flux_folder, tmp_path):
    needed("torchao:int8")
    ql.save(ql.load(flux_folder, "torchao:int8", device="cpu"), tmp_path / "saved")
    with pytest.raises(UnsupportedError, match="quantized by torchao"):
        ql.to_quanto(tmp_path / "saved", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- installing ---------------------------------------------------------------------------------

WITHOUT = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sdnq", "torchao", "bitsandbytes"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name in ("sdnq", "torchao", "bitsandbytes") else found(name, package)
importlib.util.find_spec = find_spec
"""


def test_without_its_library_one_sentence_says_what_to_install(tmp_path):
    code = (
        WITHOUT
        + """
import quantolab as ql
from quantolab.cli import main
from quantolab.errors import UnsupportedError
for word in ("sdnq:int8", "torchao:int8", "bitsandbytes:nf4"):
    print(main(["compare", "--weights", word, "--out", sys.argv[1]]))
    print(ql.plan("demo", [word]).weight_bytes.min() > 0)
    try:
        ql.load("demo", word)
    except UnsupportedError as error:
        print(error)
"""
    )
    done = run_code(code, tmp_path / "out")
    said = done.stderr.strip().splitlines()
    assert done.stdout.count("2\nTrue\nthe weights word") == len(said) == 3, done.stderr
    for backend, line in zip(("sdnq", "torchao", "bitsandbytes"), said, strict=True):
        assert line.endswith(f"isn't installed: pip install 'quantolab[{backend}]'"), line
    assert not (tmp_path / "out").exists()


QUIET = """
import sys
import torch._dynamo as dynamo
before = dynamo.config.recompile_limit
import quantolab as ql
ql.load("demo", "int8", device="cpu")
ours = ("quantolab.backends.sdnq.l", "quantolab.backends.bitsandbytes.l", "sdnq")
assert not [name for name in sys.modules if name.startswith(ours)]
for word in sys.argv[1:]:
    ql.load("demo", word, device="cpu")
import os
assert "SDNQ_USE_TORCH_COMPILE" not in os.environ and dynamo.config.recompile_limit == before < 100
"""


def test_what_is_installed_is_imported_for_its_words_alone_and_has_nothing_to_say():
    words = [word for word in (SAVED[0], SAVED[3], RUN_ONLY[1]) if needed(word)]
    environment = {n: v for n, v in os.environ.items() if n != "SDNQ_USE_TORCH_COMPILE"}
    command = [sys.executable, "-c", QUIET, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr.strip() and not done.stdout, done.stderr
