"""``quantolab doctor --card``: what a card promises, in a table that says nothing of its owner."""

from __future__ import annotations

import getpass
import os
import platform
import re
from pathlib import Path

import pandas as pd
import pytest

from quantolab import cli
from quantolab.doctor import card as doctor_card
from quantolab.doctor.card import Identity, broken_promises, nameless
from quantolab.errors import JobFailed
from quantolab.experiments.full_size import full_size_table
from quantolab.planning.needs import CONTEXT_BYTES

SIZE = 2_000_000_000


@pytest.fixture(scope="module")
def sent(test_card, tmp_path_factory):
    """What comes out of the command: text, the file's text and its table; of quick pictures."""
    csv = tmp_path_factory.mktemp("sent") / "card.csv"
    words = ("--weights", "none,int4", "--offload", "none,group", "--csv", str(csv))
    said = test_card(SIZE, context=300_000_000).run(
        f"""
from quantolab import cli
from quantolab.doctor import card as doctor_card
doctor_card.STEPS, doctor_card.ROUNDS, doctor_card.SIZE = 1, 1, (32, 32)
raise SystemExit(cli.main(["doctor", "--card", *{words!r}]))
"""
    )
    return said, csv.read_text(), pd.read_csv(csv, keep_default_na=False, na_values=[""])


def test_a_row_a_recipe_and_way(sent):
    _, _, table = sent
    rows = table[["recipe", "offload", "status", "fits"]].values.tolist()
    assert rows == [
        ["none", "none", "ok", True], ["int4", "none", "ok", True],
        ["none", "group", "ok", True], ["int4", "group", "ok", True],
    ]  # fmt: skip
    assert (table.seconds > 0).all()
    assert table.kernel[1] == "dequantize, then matmul"  # of so old a card
    assert table.kernel[[0, 2, 3]].isna().all()  # unquantized, or not there when it was looked at
    assert (table.psnr_db[[1, 3]] > 15).all()


def test_peaks_stand_beside_what_was_predicted(sent):
    _, _, table = sent
    beside = table.predicted_bytes - CONTEXT_BYTES
    assert (table.context_bytes == CONTEXT_BYTES).all()
    for row, predicted in zip(table.to_dict("records"), beside, strict=True):
        assert 0.3 * predicted < row["peak_bytes"] < 1.5 * predicted
        assert row["peak_bytes"] <= row["reserved_bytes"]
        assert row["load_peak_bytes"] > 0 or row["offload"] == "group"
        assert row["weight_bytes"] == row["predicted_weight_bytes"]
    assert beside[2] < beside[0]
    assert table.peak_bytes[2] < table.peak_bytes[0]


def test_what_the_card_is_stands_in_each_row(sent):
    text, _, table = sent
    assert set(table.card) == {"test card"}
    assert set(table.capability) == {"compute capability 7.5"}
    assert set(table.memory_bytes) == {SIZE}
    assert set(table.system) == {f"{platform.system()} {platform.machine()}"}
    assert "test card (cuda): " in text
    assert "All that fits by the plan ended well." in text


def test_nothing_says_whose_it_is(sent):
    _, written, _ = sent
    for name in (platform.node(), getpass.getuser(), Path.home().name, str(Path.cwd())):
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", written), name
    assert not re.search(r"(?<!\w)[\\/]\w", written)
    assert os.sep not in written


@pytest.mark.sweep  # how it is told, always: test_what_fits_and_fails_is_a_broken_promise
def test_a_promise_that_does_not_hold_is_told(test_card, tmp_path):
    """A context larger than the plan takes it to be: the recipe fits, and runs out of memory."""
    done = test_card(520_000_000, context=515_000_000).command(
        "doctor", "--card", "--weights", "none", "--offload", "none", "--csv", str(tmp_path / "c")
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = r"none by --offload none fits by the plan \(51\d MB\), yet it is failed: out of memory"
    assert re.search(told, done.stdout)
    assert pd.read_csv(tmp_path / "c").status.tolist() == ["failed"]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("no /home/ann/a b/x.so, ask Ann", "no … b/x.so, ask …"),
        ("no '/home/bob/a b/x.so'", "no …"),
        (r"no C:\Users\Ann\x.dll: gone", "no …: gone"),
        ("/srv/my place/x is full", "… is full"),
        ("box.example.org and BOX, not boxes", "… and …, not boxes"),
        ("12 bytes/second of 3/4, see https://a.b/c", "12 bytes/second of 3/4, see https:…"),
        ("~/x and ./y/z", "… and ./y/z"),
    ],
)
def test_paths_and_names_are_left_out(said, left):
    identity = Identity(("box.example.org", "ann", "box"), ("/srv/my place",))
    assert nameless(said, identity) == left


def test_what_fits_and_fails_is_a_broken_promise():
    rows = [
        {"fits": True, "status": "ok"}, {"fits": True, "status": "failed"},
        {"fits": False, "status": "failed"}, {"fits": None, "status": "failed"},
    ]  # fmt: skip
    table = pd.DataFrame(
        [{"recipe": f"r{n}", "offload": "none", "predicted_bytes": 10**9, "reason": "so", **row}
         for n, row in enumerate(rows)], dtype=object,
    )  # fmt: skip
    assert broken_promises(table) == [
        "r1 by --offload none fits by the plan (1.00 GB), yet it is failed: so"
    ]


def test_what_comes_before_the_recipes_and_fails_is_a_row_each(monkeypatch):
    def fails(*args, **kwargs):
        raise JobFailed("encoding failed in /tmp/x")

    monkeypatch.setattr("quantolab.experiments.comparing.compare", fails)
    monkeypatch.setattr(doctor_card, "_look", lambda asked: facts())
    table = doctor_card.card_table(["none", "int8"], ["none", "model"])
    assert table.status.tolist() == ["failed"] * 4
    assert set(table.reason) == {"encoding failed in …"}
    assert table.offload.tolist() == ["none", "none", "model", "model"]


@pytest.mark.parametrize("device", [[], ["--device", "cuda"]])
def test_without_an_accelerator_it_is_one_sentence(capsys, device):
    assert cli.main(["doctor", "--card", *device]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "finds" in said.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--device", "cuda"], "needs --card"),
        (["--full-size"], "--full-size says how --card examines"),
        (["--card", "--paths"], "one at a time"),
        (["--card", "--offload", "modle"], "did you mean 'model'"),
        (["--card", "--weights", "int9"], "did you mean"),
        (["--card", "--device", "gpu"], "did you mean 'cuda'"),
    ],
)
def test_what_it_does_not_take(capsys, words, why):
    assert cli.main(["doctor", *words]) == 2
    assert why in capsys.readouterr().err


def test_steps_at_full_size_have_their_rows(shallow_pipeline, monkeypatch):
    made = []

    def small(model, recipes, **how):
        made.append(full_size_table(
            str(shallow_pipeline / "transformer"), recipes, size=(64, 64), tokens=8, repeats=2,
            **how,
        ))  # fmt: skip
        return made[0]

    monkeypatch.setattr("quantolab.experiments.full_size.full_size_table", small)
    monkeypatch.setattr(doctor_card, "_look", lambda asked: facts("cpu"))
    table = doctor_card.card_table(["int4"], [], full_size=True)
    row, found = table.loc[0], made[0].loc[0]
    assert (row.model, row.unit, row.status) == ("FLUX.1-dev", "step", "ok")
    assert row.weight_bytes == row.predicted_weight_bytes == found.weight_bytes
    assert row.seconds == found.step_seconds
    assert row.load_peak_bytes == found.fill_and_quantize_peak_bytes
    assert "Weight" in row.kernel
    assert "int4, FLUX.1-dev" in doctor_card.text_card(table)


def facts(device="cuda"):
    return doctor_card.CardFacts(
        device, "a card", 10**9, 10**9, "", "", None, "1", "2", "3", "4", {}
    )
