"""Files as quantolab writes and reads them: aligned, exact in size, suspicious of what is read."""

import json
import os
import random
import struct

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn

import quantolab as ql
from quantolab.backends.quanto import tinygemm
from quantolab.errors import ArgumentError, BrokenModelError
from quantolab.files import reading as reading_room
from quantolab.files.layout import ALIGNMENT, FILLER, plan_files, read_layout, specs_of
from quantolab.files.reading import read_tensors
from quantolab.files.writing import write_files
from quantolab.saved.doors import save
from quantolab.saved.pieces import file_bytes, pieces

WEIGHTS = ("none", "float8", "int8", "int4", "int2")


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("weights", WEIGHTS)
def test_tensors_start_on_boundaries_and_the_size_is_foretold(
    flux_folder, tmp_path, weights, dtype
):
    module = ql.load(flux_folder, weights, dtype=dtype, device="cpu")
    folder = save(module, tmp_path / "saved")
    file = folder / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size == file_bytes(module)
    header, start = header_of(file)
    assert header.keys() == set(module.state_dict())
    for name, said in header.items():
        begin, end = said["data_offsets"]
        assert (start + begin) % ALIGNMENT == 0 or end - begin < ALIGNMENT, name
    assert not list(folder.glob("*.index.json"))


def header_of(file):
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    return header, 8 + length


@pytest.mark.parametrize("seed", range(20))
def test_odd_sizes_are_placed_so_that_safetensors_reads_them(tmp_path, seed):
    """Any mixture of sizes and dtypes: boundaries kept, values right, fillers only if needed."""
    draw = random.Random(seed)
    dtypes = (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int64)
    tensors = nn.Module()
    for number in range(draw.randrange(1, 40)):
        size = draw.choice((0, 1, 1, 1, 3, 16, 33, 48, 64, 77, 1000))
        value = torch.randint(0, 100, (size,)).to(draw.choice(dtypes))
        tensors.register_buffer(f"t{number}", value)
    written(tensors, tmp_path)
    header, start = header_of(tmp_path / "weights.safetensors")
    for said in header.values():
        begin, end = said["data_offsets"]
        assert (start + begin) % ALIGNMENT == 0 or end - begin < ALIGNMENT
        if said["dtype"] == "I8" and (end - begin) % 16 == 0:  # a weight that the kernel may read
            assert (start + begin) % 16 == 0
    theirs = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(theirs[n], t) for n, t in tensors.state_dict().items())
    extra = theirs.keys() - tensors.state_dict().keys()
    assert all(name.startswith(FILLER) for name in extra)


def odd_module():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False))


def written(module, folder, **kwargs):
    parts = list(pieces(module))
    layouts = plan_files(specs_of(parts), "weights", **kwargs)
    return layouts, write_files(parts, layouts, folder)


def test_safetensors_reads_what_is_written(tmp_path):
    module = odd_module()
    layouts, digests = written(module, tmp_path)
    path = tmp_path / "weights.safetensors"
    theirs = load_file(path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(theirs[name], tensor)
    assert digests == {path.name: xxhash.xxh3_128(path.read_bytes()).hexdigest()}
    assert set(read_layout(path).entries) == set(layouts[0].entries)
    ours = dict(read_tensors(path, layouts[0], digests[path.name]))
    assert ours.keys() == module.state_dict().keys()
    assert all(torch.equal(ours[n], t) for n, t in module.state_dict().items())
    assert all(t.data_ptr() % 16 == 0 for t in ours.values() if t.numel() > 1)


def test_what_safetensors_writes_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    layout = read_layout(tmp_path / "x.safetensors")
    found = dict(read_tensors(tmp_path / "x.safetensors", layout))
    assert all(torch.equal(found[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("windows", (False, True))
@pytest.mark.parametrize("lasting", (True, False))
def test_blocks_of_any_size_give_the_same_on_boundaries(tmp_path, monkeypatch, lasting, windows):
    """Two files, as safetensors writes them: one value's size before the rest puts all off."""
    if windows:
        monkeypatch.delattr(os, "preadv", raising=False)
    sizes = (1, 3, 0, 64, 77, 1000, 16, 5000)
    tensors = {f"t{i}": torch.randn(size).bfloat16() for i, size in enumerate(sizes)}
    made = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.safetensors"
        save_file({f"{name}.{n}": t for n, t in tensors.items()}, path)
        made.append((path, read_layout(path)))
    digests = {path.name: xxhash.xxh3_128(path.read_bytes()).hexdigest() for path, _ in made}
    for size in (1, 100, 3000, 10**6):
        monkeypatch.setattr(reading_room, "_BLOCK" if lasting else "_SMALL_BLOCK", size)
        with reading_room.Reading(made, digests, lasting=lasting) as reading:
            found = dict(reading)
        assert found.keys() == {f"{name}.{n}" for name in ("one", "two") for n in tensors}
        for name, value in found.items():
            assert torch.equal(value, tensors[name[4:]])
            assert value.data_ptr() % (ALIGNMENT if value.nbytes >= ALIGNMENT else 16) == 0
            assert value.untyped_storage().nbytes() == value.nbytes  # as torch.save would write
        wrong = reading_room.Reading(made, {**digests, "two.safetensors": "0"}, lasting=lasting)
        with pytest.raises(BrokenModelError, match=r"two\.safetensors has changed since"), wrong:
            dict(wrong)


def test_shards_hold_everything_once(tmp_path):
    module = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    layouts, _ = written(module, tmp_path, max_shard_size="20KB")
    names = [f"weights-{n:05d}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert [la.name for la in layouts] == names
    assert sorted(n for la in layouts for n in la.names) == sorted(module.state_dict())
    assert all(la.nbytes == (tmp_path / la.name).stat().st_size for la in layouts)


def test_shared_tensors_come_once():
    module = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    module[1].weight = module[0].weight
    assert [s.name for s in specs_of(pieces(module))] == ["0.weight", "0.bias", "1.bias"]


def test_what_can_not_be_stored_says_so():
    with pytest.raises(ArgumentError, match="complex64, which no file can hold"):
        plan_files(specs_of(pieces(nn.ParameterList([torch.zeros(2, dtype=torch.complex64)]))), "x")
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="meta device"):
        list(pieces(empty))


@pytest.mark.parametrize("rows", (16, 64, 128, 192, 384))
@pytest.mark.parametrize("offset", (0.0, 1.0, -1.0))
def test_int4_for_the_kernel_and_back_is_exact(rows, offset):
    """Weights of one sign are where going back and forth could round."""
    linear = nn.Linear(256, rows, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.mul_(0.2).add_(offset)
    weight = ql.quantize(nn.Sequential(linear), "int4")[0][0].weight.data
    data, scale, shift = tinygemm.generic_parts(weight)
    theirs = weight.weight_qbits_tensor()
    assert torch.equal(data, theirs._data._data)
    theirs._scale, theirs._shift = scale, shift
    for again in (tinygemm.optimized(theirs), theirs.optimize()):
        assert type(again) is type(weight)
        assert torch.equal(again._data._data, weight._data._data)
        assert torch.equal(again._scale_shift, weight._scale_shift)


def test_a_shift_is_found_that_rounds_to_the_kernels():
    half = torch.tensor([[1.0]], dtype=torch.bfloat16)
    middle = torch.tensor([[-256.0]], dtype=torch.bfloat16)
    assert half - (half - middle) != middle  # Quanto's own way back loses it
    assert half - tinygemm._exact_shift(half, middle) == middle


def with_header(path, header, payload=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


def one(dtype="F32", shape=(16,), offsets=(0, 64)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1, 2]", "its header is a JSON list, not an object"),
        (b"{ ", "no JSON that can be read"),
        (b"\xff\xfe", "no JSON that can be read"),
        (b"[" * 100_000, "no JSON that can be read"),
        (b'{"a": 1, "a": 2}', "names a key twice"),
        ({"a": 3}, "isn't described by dtype, shape and data_offsets"),
        ({"a": one(dtype="F3")}, "has dtype 'F3'; known: BF16"),
        ({"a": one(dtype=7)}, "has dtype 7"),
        ({"a": one(shape=(4.0, 4))}, "isn't a list of whole numbers"),
        ({"a": one(shape=(-4, -4))}, "isn't a list of whole numbers"),
        ({"a": one(shape=(True, 16))}, "isn't a list of whole numbers"),
        ({"a": one(offsets=(64, 0))}, "takes -64 bytes, but F32 of shape [16] needs 64"),
        ({"a": one(offsets=(0, 64, 128))}, "aren't two whole numbers"),
        ({"a": one(shape=(2**40, 2**40))}, "takes 64 bytes"),
        ({"a": one(), "b": one()}, "tensors overlap or leave holes"),
        ({"a": one(shape=(8,), offsets=(32, 64))}, "where 0 was expected"),
        ({"a": one(shape=(8,), offsets=(0, 32))}, "with something behind its end"),
        ({"a": one(shape=(32,), offsets=(0, 128))}, "truncated"),
        ({"__metadata__": 3, "a": one()}, "'__metadata__' is no object"),
    ],
)
def test_malformed_headers_are_named(tmp_path, header, message):
    path = with_header(tmp_path / "x.safetensors", header)
    with pytest.raises(BrokenModelError) as caught:
        read_layout(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", (b"", b"abc", struct.pack("<Q", 2**63) + b"{}", b"\xff" * 16))
def test_absurd_lengths_are_named(tmp_path, raw):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(BrokenModelError, match="don't give the length of a header"):
        read_layout(tmp_path / "x.safetensors")


def test_any_damage_to_a_file_is_noticed(tmp_path):
    """Cut or changed anywhere, at random: never a tensor too many, never another exception."""
    layouts, digests = written(odd_module(), tmp_path)
    good = (tmp_path / "weights.safetensors").read_bytes()
    digest = digests["weights.safetensors"]
    path = tmp_path / "damaged.safetensors"
    draw = random.Random(0)
    for number in range(300):
        if number % 3 == 0:
            bad = good[: draw.randrange(len(good))]
        else:
            end = len(good) if number % 3 == 1 else layouts[0].header_bytes
            place = draw.randrange(end)
            bad = bytearray(good)
            bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(BrokenModelError):
            dict(read_tensors(path, read_layout(path), digest))
