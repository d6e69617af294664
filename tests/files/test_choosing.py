"""Which files hold the weights: the library's own name, whatever else lies beside it."""

from __future__ import annotations

import json

import pytest

from quantolab.errors import BrokenModelError
from quantolab.files.choosing import weight_files

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


def made(folder, *names, **index):
    for name in names:
        (folder / name).write_bytes(b"")
    for stem, files in index.items():
        values = {"weight_map": {f"t{n}": name for n, name in enumerate(files)}}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(values))
    return folder


def names(folder, library):
    return [path.name for path in weight_files(folder, library).paths]


@pytest.mark.parametrize("other", ["backup", "aaa", "diffusion_pytorch_model_ema", "zzz.fp16"])
@pytest.mark.parametrize(
    ("library", "stem"), [("diffusers", DIFFUSERS), ("transformers", TRANSFORMERS)]
)
def test_the_library_s_own_name_counts(tmp_path, library, stem, other):
    made(tmp_path, f"{stem}.safetensors", f"{other}.safetensors")
    assert names(tmp_path, library) == [f"{stem}.safetensors"]


def test_diffusers_looks_for_its_index_first_and_transformers_for_its_file(tmp_path):
    for library, stem in (("diffusers", DIFFUSERS), ("transformers", TRANSFORMERS)):
        folder = tmp_path / library
        folder.mkdir()
        shard = f"{stem}-00001-of-00001.safetensors"
        made(folder, shard, f"{stem}.safetensors", **{stem: [shard]})
        expected = shard if library == "diffusers" else f"{stem}.safetensors"
        assert names(folder, library) == [expected]


def test_a_single_file_of_another_name_is_taken(tmp_path):
    made(tmp_path, "weights.safetensors", "weights.fp16.safetensors")
    assert names(tmp_path, "diffusers") == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("files", "index", "said"),
    [
        ((), {}, "holds no .safetensors file"),
        (("a.bin",), {}, r"pickles such as a\.bin are never loaded"),
        (("a.safetensors", "b.safetensors"), {}, "2 .safetensors files and no index"),
        ((), {"a": ["x.safetensors"], "b": ["x.safetensors"]}, "2 index files"),
        ((), {"a": ["x.safetensors"]}, "isn't in its folder"),
        ((), {"a": ["../x.safetensors"]}, "allowed are .safetensors files in its own folder"),
        ((), {"a": ["x.bin"]}, "allowed are .safetensors files in its own folder"),
        ((), {"a": []}, "no 'weight_map'"),
    ],
)
def test_nothing_is_guessed(tmp_path, files, index, said):
    with pytest.raises(BrokenModelError, match=said):
        weight_files(made(tmp_path, *files, **index), "diffusers")
