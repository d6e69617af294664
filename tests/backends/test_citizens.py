"""A write, cast, copy or move of a quantized weight takes effect or is refused, never neither."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.utils.dlpack
from torch import nn

import quantolab as ql
from quantolab.backends.quanto.layers import QuantoLinear
from quantolab.backends.quanto.writes import leaves

WORDS = ("float8", "int8", "int4", "int2")
ALWAYS = (("float8", torch.bfloat16), ("int8", torch.float32), ("int4", torch.bfloat16))
CASES = [  # each weight class always, the rest with -m sweep
    pytest.param(word, dtype, marks=() if (word, dtype) in ALWAYS else pytest.mark.sweep)
    for word in WORDS
    for dtype in (torch.bfloat16, torch.float32)
]
FEW = [pytest.param(w, marks=() if w in ("int8", "int4") else pytest.mark.sweep) for w in WORDS]
ONE = [pytest.param(w, marks=() if w == "int4" else pytest.mark.sweep) for w in WORDS]
pytestmark = pytest.mark.filterwarnings("ignore:a quantized weight was written to")


def made(word, dtype=torch.bfloat16, seed=0):
    """A model with a kept first layer, and a TinyGemm layer where int4 has one."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 64)).to(dtype).eval()
    return ql.quantize(module, ql.Recipe(word, skip=("0",)))[0]


def run(module, dtype=torch.bfloat16):
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        return module(values)


def state_of(weight):
    return [t.contiguous().view(torch.uint8).clone() for t in leaves(weight)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- writes -----------------------------------------------------------------------------------


def in_place_operations():
    """Each operation of aten that writes its first argument, found by its schema."""
    found = {}
    # Not by `dir`, which knows only what was used before.
    names = {
        n[6:].partition(".")[0] for n in torch._C._dispatch_get_all_op_names() if n[:6] == "aten::"
    }
    for name in sorted(names - {"set_data"}):  # torch's inside of ``.data =``, dispatched to nobody
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            op = getattr(packet, overload)
            arguments = op._schema.arguments
            if arguments and arguments[0].alias_info and arguments[0].alias_info.is_write:
                found[str(op)] = op
    return found


def arguments_for(op, weight, dense):
    """Arguments that suit a schema: tensors like the weight, small numbers; None if none do."""
    values = []
    for argument in op._schema.arguments[1:]:
        if argument.has_default_value() or argument.kwarg_only:
            continue
        kind = str(argument.type)
        if kind == "Tensor":
            mask = argument.name in ("mask", "condition")
            values.append(dense > 0 if mask else dense)
        elif kind in ("number", "float"):
            values.append(0.5)
        elif kind in ("int", "SymInt"):
            values.append(0)
        elif kind == "bool":
            values.append(False)
        else:
            return None
    return values


@pytest.mark.parametrize("word", ONE)
def test_each_in_place_operation_takes_effect_or_raises(word):
    operations = in_place_operations()
    assert len(operations) > 300
    changed = refused = 0
    first = made(word)[1].weight
    for name, op in operations.items():
        weight = copy.deepcopy(first)
        dense = weight.dequantize()
        arguments = arguments_for(op, weight, dense * 0.5)
        if arguments is None or str(op._schema.arguments[0].type) != "Tensor":
            continue
        plain, before = dense.clone(), state_of(weight)
        torch.manual_seed(3)
        try:
            op(plain, *arguments)
        except Exception:
            plain = None
        torch.manual_seed(3)
        try:
            op(weight, *arguments)
        except Exception:
            assert same(state_of(weight), before), f"{name} raised, and wrote"
            refused += 1
            continue
        if name.startswith("aten.record_stream"):
            continue
        assert plain is not None, f"{name} is an error on a tensor, and nothing was said"
        now = weight.dequantize()
        if torch.equal(plain, dense):
            assert torch.equal(now, dense), name
            continue
        wanted, _ = ql.quantize(nn.Sequential(linear_of(plain)), word)
        assert same(state_of(weight), state_of(wanted[0].weight)), f"{name}: other than asked"
        changed += 1
    assert changed > 60 and refused > 5


def linear_of(weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


WRITES = {
    "data": lambda w, x: setattr(w, "data", x),
    "copy_": lambda w, x: w.copy_(x),
    "data.copy_": lambda w, x: w.data.copy_(x),
    "set item": lambda w, x: w.__setitem__(slice(None), x),
    "out": lambda w, x: torch.mul(x, 1, out=w),
    "foreach": lambda w, x: torch._foreach_copy_([w], [x]),
    "lerp": lambda w, x: w.data.lerp_(x, 1.0),
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_writes_give_what_quantizing_gives(word, dtype, how):
    module = made(word, dtype)
    value = torch.randn(64, 256, generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.no_grad():
        WRITES[how](module[1].weight, value)
    wanted, _ = ql.quantize(nn.Sequential(linear_of(value)), word)
    assert same(state_of(module[1].weight), state_of(wanted[0].weight))


@pytest.mark.parametrize("word", WORDS)
def test_writes_that_do_not_fit_are_refused_and_nothing_is_written(word):
    module = made(word)
    weight = module[1].weight
    before, output = state_of(weight), run(module)
    dense = weight.dequantize()
    with torch.no_grad():
        for value in (dense[:3], dense.float(), dense * float("nan"), dense.to("meta")):
            with pytest.raises(ql.QuantolabError):
                weight.data = value
        with pytest.raises(ql.QuantolabError, match="shape"):
            weight.t_()
        with pytest.raises(ql.QuantolabError, match="NaN"):
            weight.div_(0)
    assert same(state_of(weight), before)
    assert torch.equal(run(module), output)


@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_what_was_added_last_is_taken_away_to_the_bit(word, dtype):
    module = made(word, dtype)
    weight, before = module[1].weight, state_of(module[1].weight)
    torch.manual_seed(2)
    one, other = (torch.randn(64, 256).to(dtype) * 0.01 for _ in range(2))
    with pytest.warns(UserWarning, match="quantized again"):
        weight.data += one
    between = state_of(weight)
    weight.data += other
    assert not same(state_of(weight), between) and not same(between, before)
    weight.data -= other
    assert same(state_of(weight), between)
    weight.data -= one
    assert same(state_of(weight), before)


@pytest.mark.parametrize("word", WORDS)
def test_quantized_weights_are_copied_to_the_bit(word):
    ways = (WRITES["copy_"], WRITES["set item"], WRITES["out"], WRITES["foreach"], WRITES["data"])
    other = made(word, seed=1)[1].weight
    for write in ways:
        weight = made(word)[1].weight
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")  # nothing is quantized again
            write(weight, other)
        assert same(state_of(weight), state_of(other))
        weight.data.zero_()
        assert other.dequantize().any()


@pytest.mark.parametrize("word", WORDS)
def test_layers_draw_new_values_and_write_nothing_to_the_meta_device(word):
    module = made(word)
    states, before = copy.deepcopy(module.state_dict()), state_of(module[1].weight)
    module[1].reset_parameters()
    assert not same(state_of(module[1].weight), before)
    module.to("meta")
    with pytest.raises(RuntimeError, match="assign=True"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the rest
        module.load_state_dict(states)
    module.load_state_dict(states, assign=True)
    assert same(state_of(module[1].weight), before)


def test_weights_of_others_behave_as_quanto_ships_them():
    from optimum.quanto import QLinear, freeze, qint8

    theirs = QLinear.from_module(nn.Linear(64, 64), weights=qint8)
    freeze(theirs)
    before = state_of(theirs.weight)
    theirs.weight.data.add_(1)
    assert same(state_of(theirs.weight), before)
    with pytest.raises(ValueError, match="The dtype of a weights Tensor cannot be changed"):
        theirs.half()


# --- views ------------------------------------------------------------------------------------


def view_operations():
    """Each operation of aten whose schema says that its result is a view of its argument."""
    found = {}
    # Not by `dir`, which knows only what was used before.
    names = {
        n[6:].partition(".")[0] for n in torch._C._dispatch_get_all_op_names() if n[:6] == "aten::"
    }
    for name in sorted(names - {"set_data"}):  # torch's inside of ``.data =``, dispatched to nobody
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            op = getattr(packet, overload)
            aliases = [r.alias_info for r in op._schema.returns]
            if any(a is not None and not a.is_write for a in aliases):
                found[str(op)] = op
    return found


SUITED = {
    **{name: [64, 256] for name in ("size", "shape")},
    **dict.fromkeys(("dim", "dim0", "axis", "axis0", "start", "start_dim", "dimension"), 0),
    **dict.fromkeys(("source", "offset"), 0),
    **dict.fromkeys(("dim1", "axis1", "end_dim", "destination", "step", "index"), 1),
    **dict.fromkeys(("length", "chunks", "sections", "indices_or_sections"), 2),
    **{"stride": [256, 1], "dims": [1, 0], "sizes": [4, 16], "split_sizes": [16, 48]},
    **{"split_size": 16, "indices": [1, 3], "end": 8, "dtype": torch.int16},
    "tensor_indices_or_sections": torch.tensor(2),
}


def suited(op, dense):
    """Arguments by their names; None if one isn't known."""
    values = []
    for argument in op._schema.arguments[1:]:
        if argument.has_default_value() or argument.kwarg_only:
            continue
        if str(argument.type) == "Tensor" and argument.name not in SUITED:
            values.append(dense)
        elif argument.name in SUITED:
            value = SUITED[argument.name]
            values.append([value] if "List" in str(argument.type) and value == 0 else value)
        else:
            return None
    return values


@pytest.mark.parametrize("word", ONE)
def test_writes_through_each_view_operation_reach_the_weight(word):
    first = made(word)[1].weight
    reached = set()
    for name, op in view_operations().items():
        weight = copy.deepcopy(first)
        plain = weight.dequantize()
        arguments = suited(op, plain)
        try:
            views = op(plain, *arguments)
        except Exception:
            continue  # no operation on a matrix of floats, or other arguments than these
        try:
            mine = op(weight, *arguments)
        except ql.QuantolabError:  # casts
            assert same(state_of(weight), state_of(first)), name
            continue
        ours, theirs = ((v if isinstance(v, (list, tuple)) else [v])[0] for v in (mine, views))
        if not isinstance(theirs, torch.Tensor):
            continue
        dense = ours.dequantize() if hasattr(ours, "dequantize") else ours
        assert dense.shape == theirs.shape, name
        before = plain.clone()
        theirs.zero_()
        ours.zero_()
        if torch.equal(plain, before):
            assert torch.equal(weight.dequantize(), before), name
            continue
        wanted, _ = ql.quantize(nn.Sequential(linear_of(plain)), word)
        assert same(state_of(weight), state_of(wanted[0].weight)), f"{name}: other than asked"
        reached.add(name)
    assert len(reached) > 30, sorted(reached)
    assert {
        "aten.select.int",
        "aten.view.default",
        "aten.t.default",
        "aten.detach.default",
    } <= reached


def _add_one(weight):
    weight[0] += 1


THROUGH = {
    "index": lambda w: w[0].zero_(),
    "in steps": lambda w: w.view(4, -1)[1][3:5].fill_(0.25),
    "augmented": _add_one,
    "transposed": lambda w: w.T.mul_(2),
    "chunk": lambda w: w.chunk(2)[0].copy_(w[32:]),
    "detached": lambda w: w.detach().zero_(),
    "data": lambda w: w.data.__setitem__(0, 0.5),
    "out": lambda w: torch.mul(w[0], 2, out=w[1]),
    "foreach": lambda w: torch._foreach_mul_(list(w.unbind()), 0.5),
    "strided": lambda w: w.as_strided((3,), (300,)).fill_(0.1),
    "bits": lambda w: w.view(torch.int16 if w.itemsize == 2 else torch.int32)[2].zero_(),
}


@pytest.mark.parametrize("how", THROUGH)
@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_writes_through_views_reach_the_weight(word, dtype, how):
    for guard in (torch.no_grad, torch.inference_mode):
        weight = made(word, dtype)[1].weight
        plain = weight.dequantize()
        with guard():
            THROUGH[how](plain)
            THROUGH[how](weight)
        wanted, _ = ql.quantize(nn.Sequential(linear_of(plain)), word)
        assert same(state_of(weight), state_of(wanted[0].weight))


def test_writes_through_views_that_do_not_fit_are_refused():
    weight = made("int8")[1].weight
    before, view = state_of(weight), weight[1]
    values = view.clone()
    for write in (
        lambda: view.div_(0),
        lambda: weight.t().t_(),
        lambda: view.set_(torch.zeros(3, dtype=view.dtype)),
        lambda: torch._foreach_zero_([weight, view]),
    ):
        with pytest.raises(ql.QuantolabError):
            write()
        assert same(state_of(weight), before) and torch.equal(view, values)


def test_views_follow_their_weight_and_are_else_plain_tensors():
    weight = made("int8", torch.float32)[1].weight
    view, plain = weight[1], weight.dequantize()[1]
    assert type(view + 1) is torch.Tensor and torch.equal(view + 1, plain + 1)
    assert repr(view) == repr(plain) and view.tolist() == plain.tolist()
    assert type(copy.deepcopy(view)) is type(pickle.loads(pickle.dumps(view))) is torch.Tensor
    for array in (view.numpy(), weight.detach().numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    weight.data.mul_(2)
    assert torch.equal(view, weight.dequantize()[1]) and not torch.equal(view, plain)
    weight.data.zero_()
    assert not any(view.tolist()) and not view.numpy().any()


BY_PYTHON = {
    "apply_": lambda x: x.apply_(lambda value: value * 2 + 1),
    "map2_": lambda x: x.map2_(torch.ones(x.shape), torch.ones(x.shape), lambda a, b, c: a + b + c),
}
HANDS_ON = {
    "from_dlpack": torch.from_dlpack,
    "to_dlpack": torch.to_dlpack,
    "utils.to_dlpack": torch.utils.dlpack.to_dlpack,
    "numpy.from_dlpack": np.from_dlpack,
    "storage": lambda x: x.storage(),
    "set_": lambda x: torch.empty(0).set_(x),
}


@pytest.mark.parametrize("word", WORDS)
def test_what_goes_past_all_operations_takes_effect_or_is_refused(word):
    for how in BY_PYTHON.values():
        for part in (lambda x: x, lambda x: x[3]):
            weight = made(word, torch.float32)[1].weight.data
            plain = weight.dequantize()
            how(part(plain)), how(part(weight))
            wanted, _ = ql.quantize(nn.Sequential(linear_of(plain)), word)
            assert same(state_of(weight), state_of(wanted[0].weight))
    weight = made(word, torch.float32)[1].weight.data
    view = weight[3]
    for how in HANDS_ON.values():
        for value in (weight, view):
            with pytest.raises(ql.QuantolabError, match="no plain values"):
                how(value)
    for method in (view.untyped_storage, view.share_memory_):
        with pytest.raises(ql.QuantolabError, match="no plain values"):
            method()
    assert torch.equal(torch.from_dlpack(torch.ones(3)), torch.ones(3))  # others' as ever


def test_writes_inside_a_compiled_graph_are_refused():
    weight = made("int8")[1].weight.data
    before = state_of(weight)
    with pytest.raises(Exception, match="inside a compiled graph"):
        torch.compile(lambda x: x.mul_(0), backend="aot_eager")(weight)
    assert same(state_of(weight), before)


def test_products_make_no_views(monkeypatch):
    from quantolab.backends.quanto import plain_product, views

    monkeypatch.setattr(plain_product, "made_plain", lambda weight: None)  # as on accelerators
    monkeypatch.setattr(views.WeightView, "into", None)
    for word in WORDS:
        run(made(word))


# --- copies -----------------------------------------------------------------------------------


def saved_by_torch(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_by_torch,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_copies_are_equal_and_apart(word, dtype, how):
    module = made(word, dtype)
    output, before = run(module, dtype), state_of(module[1].weight)
    other = COPIES[how](module)
    assert type(other[1].weight) is type(module[1].weight)
    assert isinstance(other[1].weight, nn.Parameter)
    assert same(state_of(other[1].weight), before) and torch.equal(run(other, dtype), output)
    other[1].weight.data.zero_()
    assert not other[1].weight.dequantize().any()
    assert same(state_of(module[1].weight), before)


@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_sharing_memory(word, dtype):
    module = made(word, dtype)
    output = run(module, dtype)
    module.share_memory()
    assert all(leaf.is_shared() for leaf in leaves(module[1].weight))
    assert torch.equal(run(module, dtype), output)


def _double(module, done):
    with torch.no_grad():
        module[1].weight.mul_(2)
    done.put(run(module).float().sum().item())


@pytest.mark.parametrize("word", [pytest.param("float8", marks=pytest.mark.sweep), "int4"])
def test_another_process_writes_what_is_shared(word):
    module = made(word)
    module.share_memory()
    before = module[1].weight.dequantize()
    context = torch.multiprocessing.get_context("fork" if word == "int4" else "spawn")
    done = context.SimpleQueue()
    process = context.Process(target=_double, args=(module, done))
    process.start()
    theirs = done.get()
    process.join()
    assert torch.equal(module[1].weight.dequantize(), before * 2)
    assert run(module).float().sum().item() == theirs


# --- state dicts --------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_unquantized_states_are_quantized(word, dtype, assign):
    torch.manual_seed(9)
    plain = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 64)).to(dtype)
    module = made(word, dtype)
    module.load_state_dict(copy.deepcopy(plain.state_dict()), assign=assign)
    wanted, _ = ql.quantize(plain, ql.Recipe(word, skip=("0",)))
    assert same(state_of(module[1].weight), state_of(wanted[1].weight))
    assert torch.equal(run(module, dtype), run(wanted, dtype))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_quantized_states_are_loaded(word, dtype, assign):
    module, other = made(word, dtype), made(word, dtype, seed=1)
    assert not torch.equal(run(module, dtype), run(other, dtype))
    module.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(run(module, dtype), run(other, dtype))


def test_states_of_another_kind_are_refused():
    for word in WORDS:
        for other in WORDS:
            if other != word:
                with pytest.raises(RuntimeError, match="weight"):
                    made(word).load_state_dict(made(other, seed=1).state_dict())


# --- casts --------------------------------------------------------------------------------------

CASTS = {
    "half": lambda m: m.half(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "to": lambda m: m.to(torch.float16),
    "to both": lambda m: m.to("cpu", torch.float16),
    "type": lambda m: m.type(torch.float16),
    "inside another": lambda m: nn.ModuleList([nn.Linear(2, 2).bfloat16(), m]).half(),
}


@pytest.mark.parametrize("how", CASTS)
@pytest.mark.parametrize("word", FEW)
def test_casts_are_refused_before_anything_is_cast(word, how):
    module = made(word)
    output = run(module)
    cure = "turn it back" if how == "double" else r"load_saved\(folder, dtype="
    with pytest.raises(ql.QuantolabError, match=cure):
        CASTS[how](module)
    assert module[0].weight.dtype == torch.bfloat16
    assert torch.equal(run(module), output)
    assert torch.equal(run(module.bfloat16().to("cpu").cpu()), output)


@pytest.mark.parametrize("asked", [torch.float64, torch.float8_e4m3fn])
def test_no_cast_is_advised_that_no_model_can_be_loaded_in(asked):
    with pytest.raises(ql.QuantolabError, match=r"cast to float(64|8).*: turn it back") as caught:
        made("int8").to(asked)
    assert "load_saved" not in str(caught.value)


PIPELINE_CASTS = {
    "one": lambda p: p.to(torch.float16),
    "two": lambda p: p.to("cpu", torch.float32),
    "named": lambda p: p.to(dtype=torch.float32),
}


def test_pipelines_refuse_a_cast_before_a_part_is_cast(pipeline_folder):
    recipes = ("transformer=int8", "text_encoder_2=int4")
    for recipe in recipes:
        pipe = ql.load_pipeline(pipeline_folder, recipe, device="cpu")
        before = {n: t.dtype for c in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
                  for n, t in c.named_parameters()}  # fmt: skip
        for cast in PIPELINE_CASTS.values():
            with pytest.raises(ql.QuantolabError, match="can't be cast"):
                cast(pipe)
        after = {n: t.dtype for c in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
                 for n, t in c.named_parameters()}  # fmt: skip
        assert after == before
        assert pipe.to("cpu", torch.bfloat16) is pipe


PUT_IN = {
    "parameter": lambda m, w: setattr(m[1], "weight", nn.Parameter(w, requires_grad=False)),
    "swapped": lambda m, w: torch.utils.swap_tensors(m[1].weight, nn.Parameter(w)),
    "call": None,
}


@pytest.mark.parametrize("how", PUT_IN)
@pytest.mark.parametrize("word", WORDS)
def test_an_unquantized_weight_that_is_put_in_is_quantized_on_the_way(word, how):
    """Rows of zeros too, of which Quanto's own way makes NaN in float8."""
    dense = torch.randn(64, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    dense[3], dense[40, :128] = 0, 0
    module = made(word)
    wanted = copy.deepcopy(module)
    wanted[1].weight.data.copy_(dense)
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        if how == "call":
            output = torch.func.functional_call(module, {"1.weight": dense}, (x,))
        else:
            PUT_IN[how](module, dense)
            output = module(x)
    assert torch.isfinite(output).all()
    assert (output - run(wanted)).norm() / output.norm() < 0.01


# --- the way back, and signatures -----------------------------------------------------------------


@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_dequantize_is_the_way_back(word, dtype):
    module = made(word, dtype)
    values, output = module[1].weight.dequantize(), run(module, dtype)
    back = ql.dequantize(module)
    assert back is module and type(module[1]) is nn.Linear
    near = (run(module, dtype) - output).norm() / output.norm()
    assert near < 0.02 and (module[1].weight - values).abs().max() < 0.01
    module.float()
    assert ql.quantize(module, word)[1].quantized
    with pytest.raises(ql.QuantolabError, match="nothing in this"):
        ql.dequantize(nn.Linear(2, 2))


@pytest.mark.parametrize("way", ["", "dequantize"])
def test_dequantized_models_of_diffusers_forget_that_they_were_quantized(tmp_path, way):
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, cross_attention_dim=32,
        caption_channels=32, sample_size=8, use_additional_conditions=False,
    ).bfloat16()  # fmt: skip
    ql.quantize(model, "int8")
    assert "quantization_config" in model.config
    assert getattr(model, way)() is model if way else ql.dequantize(model)
    assert "quantization_config" not in model.config and not hasattr(model, "quantize_report")
    with pytest.raises(ValueError, match="first quantize"):
        model.dequantize()
    model.save_pretrained(tmp_path)
    again = PixArtTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_overrides_keep_the_signature_of_what_they_override():
    found = 0
    for name, ours in vars(QuantoLinear).items():
        if not inspect.isfunction(ours):
            continue
        for base in (nn.Linear, nn.Module):
            theirs = getattr(base, name, None)
            if theirs is not None and name != "__init__":
                assert list(inspect.signature(ours).parameters) == list(
                    inspect.signature(theirs).parameters
                ), name
                found += 1
                break
    assert found >= 3


def test_layers_are_called_by_keyword():
    module = made("int8")[1]
    values = torch.ones(1, 256, dtype=torch.bfloat16)
    assert torch.equal(module(input=values), module(values))


def test_nothing_is_said_where_nothing_is_written():
    module = made("int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.to("cpu")
        copy.deepcopy(module).state_dict()
        run(module)


@pytest.mark.parametrize("word", FEW)
def test_models_of_every_door_are_alike(word, tmp_path):
    from quantolab.backends.quanto.writes import owned

    loaded = ql.load("demo", word)
    saved = ql.load_saved(ql.save(loaded, tmp_path / "saved"))
    piped = ql.load_pipeline("demo", word).transformer
    folder = ql.demo_model() / "transformer"
    file = ql.load_single_file(next(folder.glob("*.safetensors")), word, config=folder)
    for model in (loaded, saved, piped, file):
        layers = [part for part in model.modules() if isinstance(part, QuantoLinear)]
        assert layers and all(owned(part.weight) for part in layers)
        with pytest.raises(ql.QuantolabError, match="load_saved"):
            model.float()
        other = copy.deepcopy(model)
        with torch.no_grad():
            weight = next(p for p in other.modules() if isinstance(p, QuantoLinear)).weight
            weight.zero_()
        assert not weight.dequantize().any() and layers[0].weight.dequantize().any()


# --- offloading and adapters ----------------------------------------------------------------------


@pytest.mark.parametrize(("word", "dtype"), CASES)
def test_offloading_keeps_the_output(word, dtype, tmp_path):
    import accelerate
    from diffusers.hooks import apply_group_offloading

    cpu, output = torch.device("cpu"), run(made(word, dtype), dtype)
    ways = (
        lambda m: accelerate.cpu_offload(m, cpu),
        lambda m: accelerate.disk_offload(m, tmp_path, cpu),
        lambda m: accelerate.cpu_offload_with_hook(m, cpu),
        lambda m: apply_group_offloading(m, cpu, cpu, offload_type="leaf_level"),
    )
    for offload in ways:
        module = made(word, dtype)
        offload(module)
        for _ in range(2):
            assert torch.equal(run(module, dtype), output)
    module = made(word, dtype)
    with pytest.raises(ql.QuantolabError, match="offload_to_disk_path"):
        apply_group_offloading(
            module, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "g")
        )
    assert torch.equal(run(module, dtype), output)


@pytest.mark.parametrize("word", FEW)
def test_adapters_are_loaded_fused_and_taken_out_through_a_pipeline(word):
    peft = pytest.importorskip("peft")
    plain = ql.load("demo", "none")
    torch.manual_seed(3)
    plain.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    adapter = {f"transformer.{n}": t for n, t in peft.get_peft_model_state_dict(plain).items()}
    pipe = ql.load_pipeline("demo", word)
    layer = next(m for n, m in pipe.transformer.named_modules() if n.endswith("attn.to_q"))
    before = state_of(layer.weight)
    pipe.load_lora_weights(adapter)
    assert pipe.get_active_adapters() == ["default_0"]
    pipe.fuse_lora()
    assert not same(state_of(layer.weight), before)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert same(state_of(layer.weight), before)


def test_adapters_of_which_nothing_would_be_loaded_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import save_file

    plain = ql.load("demo", "none")
    plain.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    adapter = peft.get_peft_model_state_dict(plain)
    pipe = ql.load_pipeline("demo", "int8")
    model = pipe.transformer
    for prefix, said in (("", "prefix=None"), ("base_model.model.", "prefix='base_model.model'")):
        named = {prefix + n: t for n, t in adapter.items()}
        for load in (model.load_lora_adapter, pipe.load_lora_weights)[: 1 if prefix else 2]:
            with pytest.raises(ql.QuantolabError, match=said):
                load(named)
    with pytest.raises(ql.QuantolabError, match="no layer of this"):
        pipe.load_lora_weights({"nowhere.lora_A.weight": torch.ones(2, 2)})
    save_file(adapter, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ql.QuantolabError, match="prefix=None"):
        model.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    assert not hasattr(model, "peft_config")
    model.load_lora_adapter({f"text_encoder.{n}": t for n, t in adapter.items()})  # another's
    assert not hasattr(model, "peft_config")
    with pytest.warns(UserWarning, match="aren't loaded"):
        mixed = {f"transformer.{n}": t for n, t in adapter.items()}
        model.load_lora_adapter({**mixed, "x.lora_A.weight": torch.ones(2, 2)})
    assert list(model.peft_config) == ["default_0"]
    model.delete_adapters("default_0")
    model.load_lora_adapter(adapter, prefix=None)
