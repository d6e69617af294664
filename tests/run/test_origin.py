"""Pictures say what they were made with, and what they say is read as a stranger's."""

import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import quantolab as ql
from quantolab.records import Conditions, Workload
from quantolab.run.origin import Origin, common_text, origin_of, write_picture

ORIGIN = Origin(
    'a "red", fox: one\ntwo \U0001f98a', 2**63, "int4 *.attn.*=int8 proj_out=none", "o/n@v1", None,
    20, 3.5, (128, 96), "bfloat16", False, {"quantolab": "9", "torch": "2.0"},
)  # fmt: skip


def workload(model):
    return Workload(model, ("a fox",), (7,), 20, None, (16, 8), "bfloat16", "cpu", 1)


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_what_is_written_is_read_and_pixels_stay(tmp_path, picture):
    path = tmp_path / "a.png"
    write_picture(picture, path, ORIGIN)
    assert ql.picture_origin(path) == ORIGIN
    assert ql.picture_origin(path.read_bytes()) == ORIGIN
    with Image.open(path) as again:
        assert again.tobytes() == picture.tobytes()
        assert again.info["parameters"] == common_text(ORIGIN)


def test_the_size_is_that_of_the_picture(tmp_path, picture):
    path = tmp_path / "a.png"
    write_picture(picture, path, dataclasses.replace(ORIGIN, size=(64, 64)))
    assert ql.picture_origin(path).size == (128, 96)


def test_the_beginning_of_a_file_is_enough(tmp_path, picture):
    path = tmp_path / "a.png"
    write_picture(picture, path, ORIGIN)
    assert ql.picture_origin(path.read_bytes()[:3000]) == ORIGIN


@pytest.mark.parametrize(
    "model, named",
    [
        ("demo", "demo"),
        ("/home/somebody/secret/models/flux", "flux"),
        ("owner/name", "owner/name"),
        ("owner/name@v2", "owner/name@v2"),
    ],
)
def test_where_a_folder_lies_stays_private(model, named):
    conditions = Conditions("cpu", 1, "Linux-host", "3.11", "2.0", "0.42", "5", "0.2")
    made = origin_of(workload(model), ql.Recipe("int8"), ("a fox", 7), conditions)
    assert made.model == named
    assert "somebody" not in repr(made) and "host" not in repr(made)
    assert made.versions["torch"] == "2.0"


def chunk(picture, tmp_path, **texts):
    path, words = tmp_path / "given.png", PngInfo()
    for name, text in texts.items():
        words.add_itxt(name, text)
    picture.save(path, pnginfo=words)
    return path


def test_a1111_pictures_are_understood(tmp_path, picture):
    said = (
        "a fox, (sharp:1.2)\nin snow\nNegative prompt: blurry, ugly\nSteps: 25, Sampler: "
        'DPM++ 2M, CFG scale: 6.5, Seed: 1234, Size: 512x768, Model: v1-5, Lora hashes: "a: 1, b"'
    )
    origin = ql.picture_origin(chunk(picture, tmp_path, parameters=said))
    assert (origin.prompt, origin.seed) == ("a fox, (sharp:1.2)\nin snow", 1234)
    assert (origin.steps, origin.guidance, origin.size) == (25, 6.5, (512, 768))
    assert origin.recipe is None and origin.model is None


@pytest.mark.parametrize(
    "own",
    [
        "", "[]", "{", "null", "[" * 100_000, '{"prompt": "a"}', '{"prompt": 1, "seed": 0}',
        '{"prompt": "a", "seed": 1e400}', '{"prompt": "a", "seed": 0, "recipe": "no such word"}',
        '{"prompt": "a", "seed": 0, "size": [1, 2, 3]}', '{"prompt": "a", "seed": NaN}',
        json.dumps({"prompt": "a" * (2 << 20), "seed": 0}),
    ],
)  # fmt: skip
def test_senseless_origins_are_refused(tmp_path, picture, own):
    with pytest.raises(ql.QuantolabError):
        ql.picture_origin(chunk(picture, tmp_path, quantolab=own))


@pytest.mark.parametrize("said", ["", "a fox", "a\nSteps: x, Seed: 1", "a\nSeed: 99999999999999e9"])
def test_senseless_parameters_are_refused(tmp_path, picture, said):
    with pytest.raises(ql.QuantolabError):
        ql.picture_origin(chunk(picture, tmp_path, parameters=said))


def bomb():
    """Return a PNG whose text unpacks to 100 million letters."""
    text = b"quantolab\0\0" + zlib.compress(b"a" * 100_000_000)

    def part(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"zTXt", text) + part(b"IEND", b"")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", bomb()])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ql.QuantolabError):
        ql.picture_origin(data)


def test_plain_pictures_files_and_folders(tmp_path, picture):
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "other.webp")
    for given in (tmp_path / "plain.png", tmp_path / "other.webp", tmp_path, tmp_path / "none.png"):
        with pytest.raises(ql.QuantolabError):
            ql.picture_origin(given)
