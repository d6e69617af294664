"""The path matrix: cheap cells for real, the rest of its machinery on made-up outcomes."""

from __future__ import annotations

import shutil
import signal

import pandas as pd
import pytest
from zygote import servers

from quantolab.cli import main
from quantolab.doctor import cells, path_matrix
from quantolab.doctor.jobs import PhaseJob, Place
from quantolab.doctor.judging import difference
from quantolab.doctor.kinds import MAKE, PHASE
from quantolab.doctor.matrix import PATHS, VIA, Cell, _Ward, all_work, totals
from quantolab.doctor.tables import markdown_matrix, matrix_notes, text_matrix
from quantolab.errors import ArgumentError, QuantolabError, UnsupportedError
from quantolab.processes.children import Children
from quantolab.processes.jobs import Desk, find_job
from quantolab.weights import QUANTIZED

COLUMNS = ["path", "weights", "via", "outcome", "reason", "seconds", "device", "dtype"]
RUN = ("load", "skip by path", "single file", "save and reload in a fresh process")


@pytest.fixture(scope="module")
def matrix():
    told = []
    frame = path_matrix(
        RUN, weights="int8", device="cpu", watch=lambda cell, n, of: told.append((n, of))
    )
    assert told == [(n, len(frame)) for n in range(1, len(frame) + 1)]
    return frame


def cell_of(matrix, path, via):
    return matrix[(matrix["path"] == path) & (matrix["via"] == via)].iloc[0]


def made_up(**outcomes):
    """A matrix of two paths and two dtypes in which everything works, but for what is said."""
    rows = []
    for path in ("load", "single file"):
        for weights in ("int8", "int4"):
            for via in VIA:
                bad = outcomes.get(f"{via}_{path.split()[0]}")
                rows.append(
                    {
                        "path": path,
                        "weights": weights,
                        "via": via,
                        "outcome": bad[0] if bad else "works",
                        "reason": bad[1] if bad else "",
                        "seconds": 1.0,
                        "device": "cpu",
                        "dtype": "bfloat16",
                        "torch": "1",
                        "diffusers": "2",
                        "transformers": "3",
                        "quanto": "4",
                    }
                )
    return pd.DataFrame(rows)


def test_one_row_a_cell(matrix):
    assert list(matrix.columns[: len(COLUMNS)]) == COLUMNS
    assert list(zip(matrix["path"], matrix["via"], strict=True)) == [
        (path, via) for path in RUN for via in VIA
    ]
    assert matrix["reason"].str.len().min() > 0
    assert matrix.attrs["seconds"] > 0


@pytest.mark.parametrize("path", RUN)
def test_quantolab_works(matrix, path):
    cell = cell_of(matrix, path, "quantolab")
    assert cell.outcome == "works", cell.reason


def test_what_plain_diffusers_does(matrix):
    assert cell_of(matrix, "load", "diffusers").outcome == "works"
    by_path = cell_of(matrix, "skip by path", "diffusers")
    assert by_path.outcome == "misleads"
    assert "'transformer_blocks.0.attn.to_q'" in by_path.reason


def test_paths_of_other_backends():
    words = ("sdnq:uint4-g128", "torchao:int8")
    for word in words:
        pytest.importorskip(word.partition(":")[0], reason="an extra that isn't installed")
    with pytest.raises(ArgumentError, match="is Quanto's alone, and weights names none of its"):
        path_matrix("Quanto-direct checkpoint", weights=words)
    frame = path_matrix("skip by path", weights=words, device="cpu", watch=lambda *_: None)
    assert list(frame["backend"].unique()) == ["sdnq", "torchao"]
    assert frame.groupby("via")["outcome"].unique().map(list).to_dict() == {
        "diffusers": ["misleads"], "quantolab": ["works"],
    }  # fmt: skip
    text = markdown_matrix(frame)
    assert "optimum-quanto" not in text and "sdnq 0." in text and "torchao 0." in text
    assert "SDNQ's own lists of layers to keep were off" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--via", "sdnq"], "--via names whose paths to run, so it needs --paths"),
        (["--paths", "--via", "sdnq,hqq"], "--via 'hqq' is not known; allowed: quanto, torchao"),
    ],
)
def test_backends_whose_paths_cannot_be_run_are_refused_at_once(arguments, said, capsys):
    assert main(["doctor", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the tiny pipeline is made, and children that can be struck."""
    folder = tmp_path_factory.mktemp("ward")
    ward = _Ward(folder, "cpu", "bfloat16", lambda *_: None, 300)
    with Striking() as children:
        ward._children = children
        ward._job(MAKE, ward._place, "lab")
        yield folder, children


@pytest.fixture
def ward(made, tmp_path):
    """A ward whose tiny pipeline is there, to be spoiled."""
    folder, children = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ward = _Ward(tmp_path, "cpu", "bfloat16", lambda *_: None, 300)
    ward._children, children.signal = children, None
    return ward


class Striking(Children):
    """Children of which one gets a signal as soon as it says that it runs."""

    signal = None

    def run(self, kind, asked, *, watch, **more):
        def hear(event):
            watch(event)
            if event.kind == "stage" and self.signal:
                # One that another test left waiting has no job.
                for server in servers():
                    for job in server.children():
                        job.send_signal(self.signal)

        return super().run(kind, asked, watch=hear, **more)


def test_a_failure_carries_its_real_message(ward, tmp_path):
    """Plain Diffusers' own words, whatever version it is."""
    (tmp_path / "pipeline" / "transformer" / "config.json").unlink()
    cell = ward._run_cell(Cell("load", "int8", "diffusers"))
    assert cell.outcome == "fails"
    assert cell.reason.startswith("while loading: OSError: ")
    assert "config.json" in cell.reason


def test_a_crash_is_an_outcome(ward):
    ward._children.signal = signal.SIGSEGV
    cell = ward._run_cell(Cell("load", "int8", "quantolab"))
    assert (cell.outcome, cell.reason) == (
        "fails",
        "while running: the process crashed (segmentation fault)",
    )


def test_a_mistake_of_the_doctor_itself_is_no_outcome(ward):
    with pytest.raises(QuantolabError, match="KeyError: 'no such path'"):
        ward._run_cell(Cell("no such path", "int8", "quantolab"))


class InvalidCxxCompiler(RuntimeError):
    """As torch calls it."""


class BackendCompilerFailed(RuntimeError):
    """As torch wraps it."""

    inner_exception = InvalidCxxCompiler("No working C++ compiler found")


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (ValueError("one\ntwo"), "fails", "ValueError: one"),
        (NotImplementedError(), "fails", "NotImplementedError"),
        (UnsupportedError("no such class"), "unsupported", "UnsupportedError: no such class"),
        (BackendCompilerFailed("x"), "unsupported",
         "torch.compile on a CPU needs a C++ compiler (BackendCompilerFailed: x)"),
    ],
)  # fmt: skip
def test_errors_become_outcomes(error, outcome, reason):
    assert cells._outcome(error) == (outcome, reason)


@pytest.mark.parametrize("ours", (True, False))
def test_a_mistake_of_the_doctor_is_no_outcome(tmp_path, monkeypatch, ours):
    def phase(bench):
        return difference(None, None) if ours else pd.DataFrame(no_such_argument=1)

    monkeypatch.setitem(cells.PHASES["quantolab"], "load", (phase,))
    asked = PhaseJob(Place(tmp_path, "cpu", "bfloat16"), "load", "int8", "quantolab", 0)
    if ours:
        with pytest.raises(AttributeError):
            cells.run_phase(asked, Desk(tmp_path))
    else:
        assert cells.run_phase(asked, Desk(tmp_path)).outcome == "fails"


def test_totals_and_verdict(matrix):
    count = {via: (matrix[matrix["via"] == via]["outcome"] == "works").sum() for via in VIA}
    assert totals(matrix) == {via: (count[via], len(RUN)) for via in VIA}
    assert all_work(matrix)
    assert all_work(made_up(quantolab_single=("unsupported", "no compiler")))
    assert not all_work(made_up(quantolab_single=("misleads", "nothing said")))
    assert all_work(made_up(diffusers_single=("fails", "no")))


def test_csv_round_trip(matrix, tmp_path):
    matrix.to_csv(tmp_path / "paths.csv", index=False)
    back = pd.read_csv(tmp_path / "paths.csv")
    pd.testing.assert_frame_equal(back, matrix, check_dtype=False)
    back.attrs = matrix.attrs
    assert markdown_matrix(back) == markdown_matrix(matrix)


def test_markdown():
    frame = made_up(
        diffusers_single=("fails", "while loading: ValueError: no `mapping`"),
        quantolab_load=("unsupported", "no compiler"),
    )
    text = markdown_matrix(frame)
    legend = next(line for line in text.splitlines() if line.startswith("*works*"))
    assert text.replace(f"{legend}\n\n", "") == (
        "| plain Diffusers / quantolab | int8 | int4 |\n"
        "|---|---|---|\n"
        "| load | works / unsupported<sup>1</sup> | works / unsupported<sup>1</sup> |\n"
        "| single file | fails<sup>2</sup> / works | fails<sup>2</sup> / works |\n"
        "\n"
        "Works: plain Diffusers 2 of 4, quantolab 2 of 4 (bfloat16 on cpu, torch 1, diffusers 2, "
        "transformers 3, optimum-quanto 4).\n"
        "\n"
        "1. load, int8, int4, quantolab: unsupported: no compiler\n"
        "2. single file, int8, int4, plain Diffusers: fails while loading: "
        "`` ValueError: no `mapping` ``\n"
    )


def test_text_fits_a_terminal():
    reason = "while loading: ValueError: " + "many words " * 40
    text = text_matrix(made_up(diffusers_single=("fails", reason)))
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[:5] == [
        "path         int8       int4",
        "load         works      works      plain Diffusers",
        "             works      works      quantolab",
        "single file  fails (1)  fails (1)  plain Diffusers",
        "             works      works      quantolab",
    ]
    assert " ".join(text.split()).endswith(
        "Works: plain Diffusers 2 of 4, quantolab 4 of 4 (bfloat16 on cpu, torch 1, diffusers 2, "
        "transformers 3, optimum-quanto 4)."
    )


def test_equal_reasons_are_told_once():
    notes = matrix_notes(made_up(diffusers_single=("fails", "no"), diffusers_load=("fails", "no")))
    assert [(n["path"], n["weights"]) for n in notes] == [
        ("load", ["int8", "int4"]),
        ("single file", ["int8", "int4"]),
    ]


def test_every_path_has_its_phases():
    for via in VIA:
        assert tuple(cells.PHASES[via]) == PATHS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": "skip by lead"}, "did you mean 'skip by leaf'"),
        ({"weights": "int3"}, "allowed: float8, int8, int4, int2"),
        ({"via": "quanto"}, "allowed: diffusers, quantolab"),
        ({"dtype": "bf16"}, "allowed: bfloat16, float16, float32"),
        ({"weights": "sdnq:int9"}, "allowed for sdnq: words such as"),
        ({"weights": "bitsandbytes:nf4"}, "whose paths Diffusers has with a GPU only"),
    ],
)
def test_unknown_words_are_refused_at_once(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        path_matrix(**arguments)


def test_jobs_are_found_inside_quantolab_only():
    assert find_job(PHASE.does) == (cells.run_phase, PhaseJob)
    for kind in ("nonsense", "os:system", "quantolab_other:main", "quantolab.cli:_parser"):
        with pytest.raises(ArgumentError, match="is not known"):
            find_job(kind)


def test_weights_are_the_library_s():
    assert QUANTIZED == ("float8", "int8", "int4", "int2")
