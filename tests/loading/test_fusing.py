"""A LoRA fused into layers of backends beside Quanto, taken out again, saved."""

import copy
import pickle
import warnings

import pytest
import torch
from saved_models import assert_same_weights, output_of, run_fresh
from torch import nn

import quantolab as ql
from quantolab.backends import is_installed
from quantolab.errors import ArgumentError
from quantolab.weights import weights_of

WORDS = (
    "sdnq:int8", "sdnq:uint4-g128", "sdnq:float8_e4m3fn", "sdnq:uint4-svd8", "torchao:int8",
    "torchao:float8", "bitsandbytes:nf4", "bitsandbytes:int8",
)  # fmt: skip
WIDE = 256
ROUNDED = "rounded to what"


@pytest.fixture(params=WORDS)
def word(request):
    backend = weights_of(request.param).backend
    if not is_installed(backend):
        pytest.skip(f"pip install 'quantolab[{backend}]'")
    return request.param


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def quantized(word, bias=True):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(WIDE, 128, bias), nn.GELU(), nn.Linear(128, 64))
    return ql.quantize(plain.to(torch.bfloat16), word)[0]


def adapted(peft, module, *names, **settings):
    """Put random adapters over a module; the module stays its own."""
    model = None
    for seed, name in enumerate(names):
        torch.manual_seed(10 + seed)
        config = peft.LoraConfig(
            r=4, target_modules=["0", "2"], init_lora_weights=False, **settings
        )
        if model is None:
            model = peft.get_peft_model(module, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.base_model.set_adapter(list(names))
    return model.base_model


def bits(module):
    state = copy.deepcopy(module).state_dict()
    return {
        name: part.contiguous().reshape(-1).view(torch.uint8)
        for name, value in state.items()
        if "lora" not in name
        for part in (parts(value) if hasattr(value, "__tensor_flatten__") else [value])
    }


def parts(value):
    # float32 scales and codes, one behind the other
    inner = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    return [torch.cat([t.contiguous().reshape(-1).view(torch.uint8) for t in inner])]


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def given():
    return torch.randn(6, WIDE, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def far(one, other):
    return ((one - other).float().norm() / other.float().norm()).item()


def test_fused_it_is_the_sum_quantized_and_taken_out_the_very_weights(word, peft):
    module = quantized(word)
    plain = ql.dequantize(copy.deepcopy(module))
    before, x = bits(module), given()
    model = adapted(peft, module, "one")
    with torch.no_grad():
        loaded = model(x)
        with pytest.warns(UserWarning, match=ROUNDED):
            model.merge_adapter()
        fused = model(x)
        for layer, path in ((plain[0], "0"), (plain[2], "2")):
            layer.weight += model.model.get_submodule(path).get_delta_weight("one")
        wanted, _ = ql.quantize(plain, word)
        assert torch.equal(fused, wanted(x))
        assert far(fused, loaded) < 0.15 < 0.3 < far(loaded, quantized(word)(x))
        model.unmerge_adapter()
        assert torch.equal(model(x), loaded)
        module = model.unload()
    assert_same_bits(bits(module), before)


def test_several_are_fused_one_after_the_other_and_all_taken_out(word, peft):
    module = quantized(word)
    before = bits(module)
    model = adapted(peft, module, "one", "two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(["two"])
        model.merge_adapter(["one"])
        assert model.model[0].merged_adapters == ["two", "one"]
        model.unmerge_adapter()
        assert model.model[0].merged_adapters == []
        assert_same_bits(bits(model.unload()), before)


def test_other_scales_than_were_fused_are_taken_out_as_they_are(word, peft):
    module = quantized(word)
    before = bits(module)
    model = adapted(peft, module, "one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
        model.model[0].set_scale("one", 0.5)
        model.unmerge_adapter()
    after, layer = bits(model.unload()), model.model[0]
    assert not torch.equal(after["0.weight"], before["0.weight"])  # half of it is still there
    assert {n: t for n, t in after.items() if n.startswith("2.")}.keys() == {
        n for n in before if n.startswith("2.")
    }
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("2."))
    half = ql.dequantize(nn.Sequential(layer))[0].weight
    whole = ql.dequantize(quantized(word))[0].weight
    assert far(half, whole) > 0.2


def test_a_bias_is_fused_and_taken_out_too(word, peft):
    model = adapted(peft, quantized(word), "one", lora_bias=True)
    layer = model.model[0]
    before = layer.base_layer.bias.clone()
    layer.lora_B["one"].bias.data.fill_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
    assert torch.equal(layer.base_layer.bias, before + 0.5 * layer.scaling["one"])
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.bias, before)


def test_nothing_that_is_not_finite_is_fused(word, peft):
    model = adapted(peft, module := quantized(word), "one")
    layer, x = model.model[0], given()
    with torch.no_grad():
        model.disable_adapter_layers()
        wanted = model(x)
        model.enable_adapter_layers()
        layer.lora_B["one"].weight.data[0, 0] = torch.inf
        with pytest.raises(ArgumentError, match="NaN or infinity"):
            model.merge_adapter()
        model.disable_adapter_layers()
        assert torch.equal(model(x), wanted)
    assert module is model.model


def test_copies_and_pickles_of_a_fused_model_can_be_taken_out_too(word, peft):
    module = quantized(word)
    before = bits(module)
    model = adapted(peft, module, "one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            made.unmerge_adapter()
            assert_same_bits(bits(made.unload()), before)
    assert model.model[0].merged


@pytest.mark.parametrize("word", ["sdnq:uint4-g128", "torchao:float8"])
def test_through_a_diffusers_model_and_saved_when_unloaded(word, peft, flux_folder, tmp_path):
    if not is_installed(weights_of(word).backend):
        pytest.skip(word)
    plain = ql.load(flux_folder, "none", device="cpu")
    torch.manual_seed(3)
    plain.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    adapter = peft.get_peft_model_state_dict(plain)
    model = ql.load(flux_folder, word, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft says that what is done here can't be
        model.load_lora_adapter(adapter, prefix=None)
    with pytest.raises(ArgumentError, match="adapter"):
        ql.save(model, tmp_path / "refused")
    with pytest.warns(UserWarning, match=ROUNDED):
        model.fuse_lora()
    model.unload_lora()
    ql.save(model, tmp_path / "fused")
    again = ql.load_saved(tmp_path / "fused", device="cpu")
    assert_same_weights(again, model)
    assert torch.equal(output_of(again), output_of(model))
    assert not torch.equal(output_of(again), output_of(ql.load(flux_folder, word, device="cpu")))


def test_what_another_library_has_quantized_is_left_to_it(peft):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized("torchao:int8")
    theirs = nn.Sequential(nn.Linear(WIDE, 128), nn.GELU(), nn.Linear(128, 64))
    quantize_(theirs, Int8WeightOnlyConfig())
    with pytest.warns(UserWarning, match="get_apply_tensor_subclass"):
        model = adapted(peft, theirs, "one")
    with pytest.raises(ValueError, match="get_apply_tensor_subclass"):
        model.merge_adapter()


def test_plain_torch_reads_pickles_of_float8(tmp_path):
    pytest.importorskip("torchao")
    module = quantized("torchao:float8")
    path = tmp_path / "layer.pickle"
    view = module[0].weight.qdata[3:, ::2]
    path.write_bytes(pickle.dumps({"weight": module[0].weight.qdata, "view": view}))
    code = """
import pickle, sys, torch
made = pickle.load(open(sys.argv[1], "rb"))
assert "quantolab" not in sys.modules
assert made["view"].data_ptr() == made["weight"].data_ptr() + 3 * made["weight"].shape[1]
print(made["weight"].dtype, made["weight"].float().double().sum().item(), made["view"].stride())
"""
    done = run_fresh(code, path)
    total = module[0].weight.qdata.float().double().sum().item()
    assert done.stdout.strip() == f"torch.float8_e4m3fn {total} {view.stride()}", done.stderr
