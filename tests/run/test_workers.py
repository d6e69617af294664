"""Comparisons on workers: what one place gives, whoever dies; and who is let in."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
import time

import dask
import psutil
import pytest

import quantolab as ql
from quantolab.errors import ArgumentError, Cancelled, WorkersLost
from quantolab.run import crew, spread
from quantolab.run.crew import check_workers, least_taken
from quantolab.run.spread import slices

FAST = {"steps": 2, "repeats": 2, "device": "cpu", "dtype": "float32"}
PROMPTS = ("a red cat", "a blue dog")
RECIPES = ("none", "int8", "int4")
SAME = (
    "recipe",
    "status",
    "weight_bytes",
    "psnr_db",
    "ssim",
    "floor_multiple",
    "identical_pictures",
)


def quietly(progress):
    """Watch nothing."""


def pixels(comparison):
    return {key: picture.tobytes() for key, picture in comparison.images.items()}


def same_rows(one, other):
    ours, theirs = (ql.results_table(c)[list(SAME)] for c in (one, other))
    return ours.equals(theirs)


def below():
    """Every process that this one started, the engine's included."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and _runs(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def one_place(pipeline_folder):
    return ql.compare(pipeline_folder, RECIPES, PROMPTS, watch=quietly, **FAST)


def test_two_workers_give_what_one_place_does(pipeline_folder, one_place, tmp_path):
    before, events = below(), []
    two = ql.compare(
        pipeline_folder, RECIPES, PROMPTS, workers=2, out=tmp_path / "out", watch=events.append,
        **FAST,
    )  # fmt: skip
    assert pixels(two) == pixels(one_place)
    assert same_rows(two, one_place)
    assert (ql.results_table(two).repeats == 2).all()
    assert set(ql.results_table(two).timed) == {"rounds"}
    assert ql.load_comparison(tmp_path / "out").trials == two.trials
    assert len({worker for e in events for worker, _ in e.doing}) == 2
    assert max(len(e.doing) for e in events) == 2  # at once
    assert {e.picture.place for e in events if e.picture} == set(two.images)
    done = [e.done for e in events]
    assert done == sorted(done)
    assert (events[-1].done, events[-1].total) == (3 * 4, 3 * 4)
    assert gone(below() - before)


def kill_one_worker(before, choose=max):
    """Kill one of the processes that the engine started for its workers; return whether."""
    workers = []
    for nanny in psutil.Process().children():
        if nanny.pid not in before:
            workers += [w.pid for w in nanny.children() if "spawn" in " ".join(w.cmdline())]
    if workers:
        psutil.Process(choose(workers)).kill()
    return bool(workers)


def run_with_a_death(folder, out, is_time, choose=max):
    """Return a comparison during which a worker was killed, and the labels that it told ended."""
    before, struck, ended = below(), [], []

    def strike(progress):
        if progress.trial is not None:
            ended.append(progress.trial.label)
        if not struck and is_time(progress) and kill_one_worker(before, choose):
            struck.append(progress.says)

    result = ql.compare(folder, RECIPES, PROMPTS, workers=2, out=out, watch=strike, **FAST)
    assert struck
    print("killed at:", struck[0])
    return result, ended


def nothing_lost_and_nothing_twice(result, ended, one_place, out):
    assert sorted(ended) == sorted(RECIPES)
    assert pixels(result) == pixels(one_place)
    assert same_rows(result, one_place)
    assert (ql.results_table(result).repeats == 2).all()
    assert len(list((out / "images").rglob("*.png"))) == len(RECIPES) * len(PROMPTS)


def test_a_worker_that_dies_loses_nothing(pipeline_folder, one_place, tmp_path, monkeypatch):
    """And slices of a recipe's pictures, made by two workers, are the same."""
    monkeypatch.setattr(spread, "LEAST_SLICE", 1)
    result, ended = run_with_a_death(
        pipeline_folder, tmp_path / "out", lambda progress: progress.done and progress.doing
    )
    nothing_lost_and_nothing_twice(result, ended, one_place, tmp_path / "out")


@pytest.mark.kills
@pytest.mark.parametrize("number", range(10))
def test_workers_killed_at_ten_random_moments(
    pipeline_folder, one_place, tmp_path, monkeypatch, number
):
    """From their coming to the last round; which moments, the test's number decides."""
    if number % 2:
        monkeypatch.setattr(spread, "LEAST_SLICE", 1)
    drawn, told = random.Random(number), []
    moment = drawn.randrange(40)  # a run tells some 45 things

    def is_time(progress):
        told.append(progress)
        return len(told) > moment and progress.total > progress.done

    result, ended = run_with_a_death(pipeline_folder, tmp_path / "out", is_time, drawn.choice)
    print("told:", len(told))
    nothing_lost_and_nothing_twice(result, ended, one_place, tmp_path / "out")


@pytest.mark.kills
def test_a_trial_that_two_workers_die_with_is_a_failed_row(pipeline_folder, one_place):
    before, deaths, armed = below(), [], [True]

    def strike(progress):
        doing = any(what.startswith("int8: ") for _, what in progress.doing)
        if doing and armed[0] and kill_one_worker(before):
            deaths.append(progress.says)
        armed[0] = not doing

    result = ql.compare(pipeline_folder, RECIPES, PROMPTS, workers=1, watch=strike, **FAST)
    assert len(deaths) == 2
    assert [trial.status for trial in result.trials] == ["ok", "failed", "ok"]
    assert "2 workers" in result.trials[1].reason
    others = {key: value for key, value in pixels(one_place).items() if key[0] != "int8"}
    assert pixels(result) == others
    assert (ql.results_table(result).repeats.dropna() == 2).all()


def test_cancel_answers_within_a_second_and_leaves_nothing(pipeline_folder, tmp_path):
    before, cancel, asked = below(), threading.Event(), []

    def stop(progress):
        if progress.done and progress.doing and not asked:
            asked.append(time.monotonic())
            cancel.set()

    with pytest.raises(Cancelled):
        ql.compare(
            pipeline_folder, RECIPES, PROMPTS, workers=2, cancel=cancel, watch=stop,
            out=tmp_path / "out", **{**FAST, "steps": 60},
        )  # fmt: skip
    assert time.monotonic() - asked[0] < 5  # a loaded machine's second
    assert gone(below() - before)


# --- another's scheduler ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Temporary certificates as the engine makes them, and the settings that name them."""
    from distributed.security import Security

    folder = tmp_path_factory.mktemp("tls")
    made = Security.temporary()
    (folder / "ca.pem").write_text(made.tls_ca_file)
    (folder / "cert.pem").write_text(made.tls_client_cert)
    (folder / "key.pem").write_text(made.tls_client_key)
    return folder


def command(role, certificates, *arguments):
    tls = [f"--tls-{n}={certificates / p}" for n, p in
           (("ca-file", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))]  # fmt: skip
    return [sys.executable, "-P", "-m", f"distributed.cli.dask_{role}", *arguments, *tls]


@pytest.fixture
def over_tls(certificates, tmp_path):
    """Return (address, scheduler process, client); two workers, each in its own folder."""
    import socket

    from distributed import Client
    from distributed.security import Security

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tls://127.0.0.1:{port}"
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        command("scheduler", certificates, "--host=127.0.0.1", f"--port={port}", "--protocol=tls",
                "--no-dashboard"), cwd=tmp_path, **options,
    )  # fmt: skip
    workers = []
    for number in range(2):
        (tmp_path / f"w{number}").mkdir()
        workers.append(subprocess.Popen(
            command("worker", certificates, address, "--host=127.0.0.1", "--nthreads=1",
                    "--memory-limit=0", "--no-dashboard", "--death-timeout=20", "--no-nanny"),
            cwd=tmp_path / f"w{number}", **options,
        ))  # fmt: skip
    security = Security(
        tls_ca_file=str(certificates / "ca.pem"), require_encryption=True,
        tls_client_cert=str(certificates / "cert.pem"),
        tls_client_key=str(certificates / "key.pem"),
    )  # fmt: skip
    client = Client(address, security=security, set_as_default=False, timeout=60)
    client.wait_for_workers(2, timeout=60)
    yield scheduler, client
    for process in (*workers, scheduler):
        for child in (
            psutil.Process(process.pid).children(recursive=True) if _runs(process.pid) else ()
        ):
            child.kill()
        process.kill()
        process.wait()
    client.close(timeout=1)


def test_over_tls_and_then_the_scheduler_dies(
    over_tls, certificates, pipeline_folder, one_place, tmp_path
):
    scheduler, client = over_tls

    def strike(progress):
        if progress.trial is not None and scheduler.poll() is None:
            scheduler.kill()

    files = {"ca-file": "ca.pem", "client.cert": "cert.pem", "client.key": "key.pem"}
    named = {f"distributed.comm.tls.{n}": str(certificates / p) for n, p in files.items()}
    with dask.config.set(named), pytest.raises(WorkersLost, match="--resume"):
        ql.compare(
            pipeline_folder, RECIPES, PROMPTS, workers=client.scheduler.address,
            out=tmp_path / "cut", watch=strike, **FAST,
        )  # fmt: skip
    kept = ql.load_comparison(tmp_path / "cut")
    assert 1 <= len(kept.trials) < 3
    resumed = ql.compare(
        pipeline_folder, RECIPES, PROMPTS, out=tmp_path / "cut", resume=True, watch=quietly, **FAST
    )
    assert pixels(resumed) == pixels(one_place)
    assert same_rows(resumed, one_place)
    assert pixels(ql.load_comparison(tmp_path / "cut")) == pixels(one_place)


@pytest.mark.kills
def test_workers_that_dropped_the_run_get_ready_anew(over_tls, pipeline_folder, one_place):
    """As after this machine slept: they heard nothing for so long that they ended everything."""
    _, client = over_tls
    dropped = []

    def drop(progress):
        if progress.trial is not None and not dropped:

            def end_all():
                from quantolab.run import at_worker

                runs = list(at_worker._PLACES)
                for run in runs:
                    at_worker.end_run(run)
                return runs

            dropped.extend(client.run(end_all).values())

    result = ql.compare(pipeline_folder, RECIPES, PROMPTS, workers=client, watch=drop, **FAST)
    assert [len(runs) for runs in dropped] == [1, 1]
    assert pixels(result) == pixels(one_place)
    assert same_rows(result, one_place)


# --- who is let in, without anybody to connect to ---------------------------------------------


@pytest.mark.parametrize(
    "workers",
    [
        "elsewhere:8786",
        "http://host:1",
        "tcp://host",
        "two",
        "",
        "tls://host:0",
        "tls://host:65536",
    ],
)
def test_what_is_no_worker_is_refused(workers):
    with pytest.raises(ArgumentError, match="neither a number"):
        check_workers(workers, False)


@pytest.mark.parametrize("workers", [0, -1, 100_000, "0"])
def test_a_number_of_workers_has_limits(workers):
    with pytest.raises(ArgumentError, match="workers"):
        check_workers(workers, False)


def test_another_machine_needs_tls_or_a_yes():
    with pytest.raises(ArgumentError, match="--trust-workers"):
        check_workers("tcp://node7:8786", False)
    assert check_workers("tcp://node7:8786", True) == "tcp://node7:8786"
    assert check_workers("tls://node7:8786", False) == "tls://node7:8786"
    for own in ("tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786"):
        assert check_workers(own, False) == own
    assert check_workers("2", False) == 2


@pytest.mark.parametrize("host", ["127.evil.example", "localhost.example", "127.0.0.1@example"])
def test_a_name_that_begins_like_this_machine_is_another(host):
    with pytest.raises(ArgumentError, match="--trust-workers"):
        check_workers(f"tcp://{host}:8786", False)


@pytest.mark.parametrize("workers", [2.5, [], b"2", object()])
def test_what_can_not_work_is_refused_by_its_kind(workers):
    with pytest.raises(ArgumentError, match=f"not {type(workers).__name__}"):
        check_workers(workers, False)


def test_a_worker_that_comes_again_takes_the_card_that_is_free():
    assert least_taken(["0", "1"], []) == "0"
    assert least_taken(["0", "1"], ["0"]) == "1"
    assert least_taken(["0", "1"], ["1"]) == "0"
    assert least_taken(["0", "1"], ["0", "1"]) == "0"


def test_tls_needs_certificates(tmp_path):
    with pytest.raises(ArgumentError, match="certificates"):
        ql.compare("demo", workers="tls://node7:8786", watch=quietly, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nobody_at_an_address(monkeypatch, tmp_path):
    monkeypatch.setattr("quantolab.run.crew._CONNECT_SECONDS", 1)
    with pytest.raises(ArgumentError, match="no scheduler can be reached"):
        ql.compare("demo", workers="tcp://127.0.0.1:1", watch=quietly, out=tmp_path / "out")


def test_without_the_engine_one_sentence_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    from quantolab.cli import main

    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["compare", "--workers", "2", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "pip install 'quantolab[workers]'" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_engine_is_imported_only_where_workers_are_asked_for():
    code = "import sys, quantolab.run.engine, quantolab.cli; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_slices_are_worth_loading_for():
    assert slices(12, 4) == [tuple(range(12))]
    parts = slices(100, 3)
    assert [n for part in parts for n in part] == list(range(100))
    assert [len(part) for part in parts] == [33, 33, 34]
    assert len(slices(40, 8)) == 2


def test_what_the_engine_logs_is_silent_until_its_loop_has_come_to_rest(monkeypatch):
    """It tells of each connection that it closes, after the run has let go of it."""
    monkeypatch.setattr(crew, "_SILENT_SECONDS", 0.1)
    logger = logging.getLogger("distributed")
    before = logger.level
    with crew._SILENCE:
        with crew._SILENCE:
            assert logger.level == logging.CRITICAL
        time.sleep(0.3)  # the inner one's end changes nothing
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.CRITICAL
    end = time.monotonic() + 30
    while logger.level != before:
        assert time.monotonic() < end, "it stays silent"
        time.sleep(0.05)
