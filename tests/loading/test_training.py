"""Weights that are trained while they compute as if quantized, and adapters over frozen ones."""

import copy
import io

import pytest
import torch
from torch import nn

import quantolab as ql
from quantolab.backends import is_installed, trainable_layers
from quantolab.errors import ArgumentError, BrokenModelError, UnsupportedError
from quantolab.measure.held_bytes import inner_tensors

WORDS = ("float8", "int8", "int4", "int2")
DTYPES = (torch.float32, torch.bfloat16)
# Groups and none, kernels of the CPU and none, a single row, widths that no group divides.
SHAPES = ((256, 128), (256, 24), (20, 8), (130, 16), (160, 1))
WIDE = 256


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, 128)).to(dtype)


def bits(module):
    """Every plain tensor that a module holds, as bytes, by name."""
    found = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        found.update(inner_tensors(getattr(value, "data", value), name))
    return {n: t.detach().contiguous().reshape(-1).view(torch.uint8) for n, t in found.items()}


def assert_same_bits(one, other):
    one, other = bits(one), bits(other)
    assert one.keys() == other.keys()
    assert [n for n in one if not torch.equal(one[n], other[n])] == []


def given(features, dtype, rows=6):
    # Not contiguous, as FLUX's tensors aren't after their heads are put together.
    values = torch.randn(features, 2, rows, generator=torch.Generator().manual_seed(1))
    return values.permute(1, 2, 0).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("wide", "high"), SHAPES)
def test_gradients_pass_rounding_over(word, dtype, wide, high):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(wide, high)).to(dtype)
    frozen, _ = ql.quantize(copy.deepcopy(module), word)
    module, _ = ql.quantize(module, word, trainable=True)
    x = given(wide, dtype).requires_grad_(True)
    out = module(x)
    assert torch.equal(out, frozen(x.detach()))  # it computes what it will once frozen
    pull = torch.randn_like(out).transpose(0, 1).contiguous().transpose(0, 1)
    out.backward(pull)

    exact = {n: t.detach().double() for n, t in (("x", x), ("pull", pull))}
    values = ql.dequantize(frozen)[0].weight.double()
    rows = exact["pull"].reshape(-1, high)
    wanted = {
        "x": (rows @ values).reshape(x.shape),
        "weight": rows.t() @ exact["x"].reshape(-1, wide),
        "bias": rows.sum(0),
    }
    found = {"x": x.grad, "weight": module[0].weight.grad, "bias": module[0].bias.grad}
    most = 1e-5 if dtype == torch.float32 else 1e-2
    for name, value in wanted.items():
        assert found[name].dtype == dtype
        assert (found[name].double() - value).norm() <= most * value.norm(), name


@pytest.mark.parametrize("word", WORDS)
def test_gradients_are_those_of_quantos_own_unfrozen_layers(word):
    from optimum.quanto import QLinear, qtypes

    from quantolab.weights import weights_of

    module = layers()[:1]
    theirs = QLinear.from_module(copy.deepcopy(module[0]), qtypes[weights_of(word).name])
    ours, _ = ql.quantize(module, word, trainable=True)
    x = given(WIDE, torch.float32).contiguous()
    grads = []
    for layer in (theirs, ours[0]):
        value = x.clone().requires_grad_(True)
        layer(value).square().sum().backward()
        grads.append((value.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("word", WORDS)
def test_frozen_it_is_what_quantizing_the_trained_weights_anew_gives(word, dtype):
    module, said = ql.quantize(layers(dtype), ql.Recipe(word, skip=("0",)), trainable=True)
    assert trainable_layers(module) == {"2": word} and "freeze" in said.notes()[0]
    assert said.weight_bytes == ql.weight_bytes(layers(dtype))  # nothing is saved in training
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    before = copy.deepcopy(module.state_dict())
    module(given(WIDE, dtype)).float().square().mean().backward()
    optimizer.step()
    trained = module.state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in trained.items())
    anew = layers(dtype)
    anew.load_state_dict(trained)  # the names and shapes of an unquantized module
    anew, wanted = ql.quantize(anew, ql.Recipe(word, skip=("0",)))
    with torch.no_grad():
        computed = module(given(WIDE, dtype))
        report = ql.freeze(module)
        assert torch.equal(module(given(WIDE, dtype)), computed)
    assert_same_bits(module, anew)
    assert report == wanted == module.quantize_report
    assert report.weight_bytes == ql.weight_bytes(module) < said.weight_bytes
    with pytest.raises(ArgumentError, match="frozen already"):
        ql.freeze(module)


def test_training_lowers_the_error_and_can_be_stopped_and_gone_on_with():
    plain = layers()
    x = given(WIDE, torch.float32, rows=32)
    with torch.no_grad():
        wanted = plain(x)

    def trained(module, steps, kept=None):
        optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
        if kept is not None:
            kept.seek(0)
            module_state, state = torch.load(kept)
            module.load_state_dict(module_state)
            optimizer.load_state_dict(state)
        losses = []
        for _ in range(steps):
            loss = nn.functional.mse_loss(module(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        kept = io.BytesIO()
        torch.save((module.state_dict(), optimizer.state_dict()), kept)
        return losses, kept

    def fresh():
        return ql.quantize(layers(), "int2", trainable=True)[0]

    whole, _ = trained(fresh(), 20)
    assert whole[-1] < 0.6 * whole[0]
    first, kept = trained(fresh(), 5)
    assert first + trained(fresh(), 15, kept)[0] == whole


def test_an_optimizer_made_before_and_copies_fit():
    module = layers()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.requires_grad_(False)
    module, _ = ql.quantize(module, "int4 0=int2", trainable=True)
    twin = copy.deepcopy(module)
    module(given(WIDE, torch.float32)).sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight, twin[0].weight)
    assert torch.equal(twin[0].weight, layers()[0].weight)
    twin.to(torch.bfloat16)  # weights are ordinary ones until they are frozen
    assert ql.freeze(twin).words == ("int2", "int4")
    assert_same_bits(twin, ql.quantize(layers(torch.bfloat16), "int4 0=int2")[0])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = module(given(WIDE, torch.float32))
        assert out.dtype == torch.bfloat16
    ql.freeze(module.to(torch.bfloat16))
    with torch.no_grad():
        torch.testing.assert_close(module(given(WIDE, torch.bfloat16)), out)


def test_saved_and_loaded_after_freezing(flux_folder, tmp_path):
    module, _ = ql.quantize(flux(flux_folder), "int2 proj_out=none", trainable=True)
    with pytest.raises(ArgumentError, match=r"still in training.*freeze"):
        ql.save(module, tmp_path / "early")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    plain = dict(module.state_dict())
    ql.freeze(module)
    folder = ql.save(module, tmp_path / "trained")
    assert_same_bits(ql.load_saved(folder), module)
    anew = flux(flux_folder)
    anew.load_state_dict(plain)
    assert_same_bits(ql.quantize(anew, "int2 proj_out=none")[0], module)
    assert module.config.quantization_config is not None


def flux(folder, dtype="float32"):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def test_parts_of_a_pipeline(pipeline_folder):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    recipe = "transformer=int4 text_encoder_2=int8"
    _, said = ql.quantize(pipe, recipe, trainable=True)
    with pytest.raises(ArgumentError, match="in training already"):
        ql.quantize(pipe, recipe)
    report = ql.freeze(pipe)
    assert report.quantized == said.quantized and report.words == said.words
    assert report.weight_bytes == ql.weight_bytes(pipe)
    other = FluxPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    ql.quantize(other, recipe)
    for name in ("transformer", "text_encoder_2"):
        assert_same_bits(getattr(pipe, name), getattr(other, name))
    with pytest.raises(ArgumentError, match="FluxPipeline is frozen already"):
        ql.freeze(pipe)


def test_what_cannot_be_trained_or_frozen_is_refused_by_a_sentence():
    with pytest.raises(ArgumentError, match="Sequential has no layer in training"):
        ql.freeze(layers())
    with pytest.raises(ArgumentError, match="frozen already"):
        ql.freeze(ql.quantize(layers(), "int8")[0])
    with pytest.raises(ArgumentError, match="put it into a torch"):
        ql.quantize(nn.Linear(64, 32), "int8", trainable=True)
    with pytest.raises(ArgumentError, match="quantizes nothing that could be trained"):
        ql.quantize(layers(), "none", trainable=True)
    module, _ = ql.quantize(layers(), "int8", trainable=True)
    for again in (True, False):
        with pytest.raises(ArgumentError, match="in training already"):
            ql.quantize(module, "int8", trainable=again)
    for word in ("sdnq:uint4-g128", "torchao:int8", "bitsandbytes:nf4"):
        if not is_installed(word.partition(":")[0]):
            continue
        untouched = layers()
        with pytest.raises(UnsupportedError, match=f"layer '0' can't be trained as {word}"):
            ql.quantize(untouched, word, trainable=True)
        assert type(untouched[0]) is nn.Linear


def test_a_diverged_training_is_told_and_nothing_is_frozen():
    module, _ = ql.quantize(layers(), "int8", trainable=True)
    with torch.no_grad():
        module[2].weight[3, 4] = float("nan")
    with pytest.raises(BrokenModelError, match="layer '2' holds NaN"):
        module(given(WIDE, torch.float32))
    with pytest.raises(BrokenModelError, match="layer '2' holds NaN"):
        ql.freeze(module)
    assert set(trainable_layers(module)) == {"0", "2"}


def test_dequantized_it_has_the_values_that_it_computed_with():
    module, _ = ql.quantize(layers(), "int2", trainable=True)
    frozen, _ = ql.quantize(layers(), "int2")
    assert_same_bits(ql.dequantize(module), ql.dequantize(frozen))


# --- adapters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "dtype"), [*((word, "float32") for word in WORDS), ("int4", "bfloat16")]
)
def test_gradients_of_an_adapter_over_frozen_weights(flux_folder, word, dtype):
    peft = pytest.importorskip("peft")
    from quantolab.models.sample_inputs import sample_inputs

    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0", "proj_mlp", "linear_1"])
    grads, outs = [], []
    for plain in (False, True):
        module = ql.quantize(flux(flux_folder, dtype), word)[0]
        if plain:
            module = ql.dequantize(module)
        torch.manual_seed(0)
        module.requires_grad_(False)
        module.add_adapter(config)
        adapter = {n: p for n, p in module.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in adapter.items():  # or half of all gradients would be 0
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        out = module(**sample_inputs(module, getattr(torch, dtype)))[0]
        out.float().square().sum().backward()
        grads.append({name: p.grad.double() for name, p in adapter.items()})
        outs.append(out.detach().double())
    found, wanted = grads
    assert len(found) == len(wanted) > 8
    most = 2e-5 if dtype == "float32" else 0.1  # kernels of bfloat16 round at other places
    assert (outs[0] - outs[1]).norm() <= most * outs[1].norm()
    for name, value in wanted.items():
        assert value.norm() > 0, name
        assert (found[name] - value).norm() <= most * value.norm(), name
