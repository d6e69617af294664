"""Files that mean harm, or are merely broken: refused in time, at every door, by one line."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest

import quantolab as ql
from quantolab.errors import QuantolabError

FILE = "diffusion_pytorch_model.safetensors"
DOORS = {
    "load": lambda folder: ql.load(folder, "int8", device="cpu"),
    "load_single_file": lambda folder: ql.load_single_file(folder / FILE, "int8", device="cpu"),
    "load_saved": lambda folder: ql.load_saved(folder, device="cpu"),
    "plan": lambda folder: ql.plan(folder, ["int8"]),
    "skip_report": ql.skip_report,
}
READERS = ("load", "load_single_file", "load_saved")
HEADERS = {
    "negative": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
    "beyond": {"a": {"dtype": "F32", "shape": [2**61, 2**61], "data_offsets": [0, 8]}},
    "overlapping": {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    },
    "with a hole": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
    "backwards": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [8, 4]}},
    "not whole": {"a": {"dtype": "U8", "shape": [8.0], "data_offsets": [0, 8]}},
}


@pytest.fixture
def folder(flux_folder, tmp_path):
    return shutil.copytree(flux_folder, tmp_path / "model")


def refused(door, folder):
    with pytest.raises(QuantolabError) as caught:
        DOORS[door](folder)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "name", ["num_layers", "num_single_layers", "attention_head_dim", "joint_attention_dim"]
)
def test_numbers_beyond_all_models(folder, door, name):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 10**9}))
    if door in READERS or "layers" in name:
        refused(door, folder)
        return
    try:
        DOORS[door](folder)  # shapes alone take no memory: some are only foretold
    except QuantolabError as error:
        assert "doesn't build" in str(error)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\0", "", "[]"])
def test_json_beyond_all_measure(folder, door, text):
    (folder / "config.json").write_text(text)
    refused(door, folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["config.json", FILE])
def test_a_pipe_is_not_waited_for(folder, door, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    if door in READERS or name == "config.json":
        refused(door, folder)
    else:
        DOORS[door](folder)


@pytest.mark.parametrize("door", READERS)
@pytest.mark.parametrize("header", HEADERS)
def test_sizes_that_cannot_be(folder, door, header):
    text = json.dumps(HEADERS[header]).encode()
    (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "can't be read as safetensors" in refused(door, folder)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "x/" * 3000])
@pytest.mark.parametrize("door", DOORS)
def test_names_that_no_file_has(tmp_path, door, name):
    calls = {"load_single_file": lambda: ql.load_single_file(name, "int8", config=tmp_path)}
    call = calls.get(door, lambda: DOORS[door](name))
    with pytest.raises(QuantolabError):
        call()


@pytest.mark.parametrize("prompt", ["\ud800", "\0 a cat \udfff"])
def test_prompts_that_are_no_unicode(tmp_path, prompt):
    with pytest.raises(QuantolabError, match="prompt"):
        ql.compare("demo", ["none"], [prompt], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_an_out_that_no_folder_can_be(tmp_path, name):
    with pytest.raises(QuantolabError):
        ql.compare("demo", ["none"], out=tmp_path / name)
    assert list(tmp_path.iterdir()) == []
