"""Damaged model and saved folders: read, or refused with a sentence, in time, nothing touched.

A sample always; 300 with ``pytest -m sweep tests/saved/test_mutations.py``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

import quantolab as ql
from quantolab.errors import QuantolabError

SECONDS = 30
ODD = (
    None, True, -1, 0, 10**9, 2**70, 1e308, float("nan"), "", "x" * 300, "\0", "../..",
    [], {}, [[]],
)  # fmt: skip


def json_files(folder):
    return sorted(folder.rglob("*.json"))


def weights_files(folder):
    return sorted(folder.rglob("*.safetensors"))


def change_value(folder, dice):
    path = dice.choice(json_files(folder))
    values = json.loads(path.read_text())
    if isinstance(values, dict) and values:
        values[dice.choice(sorted(values))] = dice.choice(ODD)
    path.write_text(json.dumps(values))


def lose_value(folder, dice):
    path = dice.choice(json_files(folder))
    values = json.loads(path.read_text())
    if isinstance(values, dict) and values:
        del values[dice.choice(sorted(values))]
    path.write_text(json.dumps(values))


def change_bytes(folder, dice):
    path = dice.choice(json_files(folder))
    raw = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 4)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    path.write_bytes(raw)


def nest_deeply(folder, dice):
    dice.choice(json_files(folder)).write_text(dice.choice(['{"a":', "["]) * 100_000)


def truncate(folder, dice):
    path = dice.choice(json_files(folder) + weights_files(folder))
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def change_header(folder, dice):
    path = dice.choice(weights_files(folder))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header[dice.choice(sorted(header.keys() - {"__metadata__"}))]
    entry[dice.choice(sorted(entry))] = dice.choice((*ODD, [-1, 2], [2**62, 2**62], [0, 0], "F4"))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def change_length(folder, dice):
    path = dice.choice(weights_files(folder))
    raw = path.read_bytes()
    path.write_bytes(dice.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + raw[8:])


def rename(folder, dice):
    path = dice.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    path.rename(path.with_name(dice.choice(("other.json", "b.safetensors", "x" * 200, "a.gguf"))))


def make_pipe(folder, dice):
    path = dice.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    path.unlink()
    os.mkfifo(path)


def make_link(folder, dice):
    path = dice.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    path.unlink()
    path.symlink_to(dice.choice(("/dev/zero", "/etc/passwd", path.name, "../../outside", ".")))


MUTATIONS = (
    change_value, lose_value, change_bytes, nest_deeply, truncate, change_header, change_length,
    rename, make_pipe, make_link,
)  # fmt: skip


@pytest.fixture(scope="module")
def models(flux_folder, pipeline_folder, tmp_path_factory):
    saved = ql.save(ql.load(flux_folder, "int8", device="cpu"), tmp_path_factory.mktemp("s") / "m")
    return {"component": flux_folder, "pipeline": pipeline_folder, "saved": saved}


def doors(kind, folder):
    if kind == "saved":
        return [lambda: ql.load_saved(folder, device="cpu")]
    found = [lambda: ql.plan(folder, ["int8"]), lambda: ql.load(folder, "int8", device="cpu")]
    if kind == "pipeline":
        found.append(lambda: ql.load_pipeline(folder, "int8", device="cpu"))
    return found


def _seeds():
    return [pytest.param(n, marks=() if n < 20 else pytest.mark.sweep) for n in range(300)]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm clock here")
@pytest.mark.parametrize("seed", _seeds())
def test_a_damaged_folder_is_read_or_refused(models, tmp_path, seed):
    dice = random.Random(seed)
    kind = ("component", "pipeline", "saved")[seed % 3]
    folder = tmp_path / "inside" / "model"
    shutil.copytree(models[kind], folder)
    (tmp_path / "outside").write_text("as it was")
    mutate = MUTATIONS[seed // 3 % len(MUTATIONS)]
    mutate(folder, dice)
    before = _state(tmp_path)
    for door in doors(kind, folder):
        _in_time(door)
    assert _state(tmp_path) == before


def _in_time(door):
    def ring(*_):
        raise TimeoutError(f"not done after {SECONDS} seconds")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        door()
    except QuantolabError as error:
        assert str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _state(place: Path):
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*")
    }
