"""Child processes: whatever becomes of one, its parent gets a verdict and lives."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from child_jobs import BEGIN, ENVIRONMENT, PRELOAD, Begin

import quantolab
from quantolab.errors import BrokenModelError, Cancelled, JobFailed, JobRaised
from quantolab.models.source import read_source
from quantolab.processes.children import SPARE, Children
from quantolab.processes.jobs import JobKind, Preload
from quantolab.recipes import Recipe
from quantolab.records import Workload
from quantolab.run.jobs import PlanJob, Planned, TrialJob
from quantolab.run.kinds import TRIAL

FLUX = Preload((("diffusers", "FluxPipeline"),))


@pytest.fixture(scope="module")
def children():
    with Children(FLUX) as pool:
        yield pool


WORKLOAD = Workload(
    model="tiny", prompts=("a red cat",), seeds=(0,), steps=2, guidance=None, size=(32, 32),
    dtype="bfloat16", device="cpu", repeats=1,
)  # fmt: skip
ENDLESS = {"steps": 200, "repeats": 10_000}
NONSENSE = JobKind("quantolab.run.child:nonsense", PlanJob, Planned)


def trial(folder, **changes):
    workload = dataclasses.replace(WORKLOAD, **changes)
    source = read_source("tiny", folder)
    return TRIAL, TrialJob(source, workload, Recipe("int8"), ("transformer",))


def nonsense(folder):
    """A job that no function does: it ends at once, with an error."""
    return NONSENSE, PlanJob(read_source("tiny", folder), "cpu", "bfloat16", (), ())


def test_a_job_returns_its_value(children, pipeline_folder, tmp_path):
    events = []
    found = children.run(*trial(pipeline_folder), folder=tmp_path / "a", watch=events.append)
    assert found.weight_bytes > 0
    assert len(found.timing.samples) == 1
    assert (tmp_path / "a" / "images" / "000.png").is_file()
    assert [e.kind for e in events if e.kind != "step"] == [
        "stage", "stage", "picture", "file", "stage", "picture",
    ]  # fmt: skip


def test_children_start_cheaply(children, pipeline_folder, tmp_path):
    """Imports happen once: a child's own CPU time stays far under that of importing torch."""
    before = _cpu_seconds_of_fresh_import()
    started = time.process_time()
    with pytest.raises(JobRaised):
        children.run(*nonsense(pipeline_folder), folder=tmp_path / "a")
    assert time.process_time() - started < before


def _cpu_seconds_of_fresh_import() -> float:
    code = "import torch, os; t = os.times(); print(t.user + t.system)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_an_error_is_told_with_its_kind(children, pipeline_folder, tmp_path):
    kind, asked = trial(pipeline_folder)
    parts = tuple(
        dataclasses.replace(part, folder=tmp_path / part.name) for part in asked.source.components
    )
    moved = dataclasses.replace(asked.source, components=parts)
    with pytest.raises(BrokenModelError, match=r"config\.json can't be read"):
        children.run(kind, dataclasses.replace(asked, source=moved), folder=tmp_path / "a")


def test_an_error_that_nobody_raises_on_purpose_is_one_of_the_job(
    children, pipeline_folder, tmp_path
):
    with pytest.raises(JobRaised, match=r"AttributeError: .*nonsense"):
        children.run(*nonsense(pipeline_folder), folder=tmp_path / "a")
    assert "Traceback" in (tmp_path / "a" / "log.txt").read_text()


def test_a_result_of_another_kind_is_refused(children, pipeline_folder, tmp_path):
    kind, asked = trial(pipeline_folder)
    with pytest.raises(JobRaised, match=r"its result can't be read: device is missing"):
        children.run(JobKind(kind.does, TrialJob, Planned), asked, folder=tmp_path / "a")


def test_memory_that_is_not_there_is_said_so(children, pipeline_folder, tmp_path):
    with pytest.raises(JobRaised, match=r"^out of memory"):
        children.run(*trial(pipeline_folder, size=(1_048_576, 1_048_576)), folder=tmp_path / "a")


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (signal.SIGSEGV, "segmentation fault"),
        pytest.param(signal.SIGKILL, "was killed (SIGKILL)", marks=pytest.mark.sweep),
        pytest.param(signal.SIGABRT, "aborted (SIGABRT)", marks=pytest.mark.sweep),
        (signal.SIGTERM, "was ended (SIGTERM)"),
    ],
)
def test_a_signal_ends_one_job_only(children, pipeline_folder, tmp_path, number, verdict):
    def strike(event):
        if event.kind == "step":
            os.kill(_only_child(), number)

    with pytest.raises(JobFailed, match=verdict.replace("(", r"\(").replace(")", r"\)")):
        children.run(*trial(pipeline_folder, **ENDLESS), folder=tmp_path / "a", watch=strike)
    assert children.run(*trial(pipeline_folder), folder=tmp_path / "b").weight_bytes > 0


def test_a_hang_is_ended(children, pipeline_folder, tmp_path):
    def freeze(event):
        if event.kind == "step":
            os.kill(_only_child(), signal.SIGSTOP)

    with pytest.raises(JobFailed, match="without a sign of life"):
        children.run(
            *trial(pipeline_folder, **ENDLESS), folder=tmp_path, watch=freeze, stall_seconds=1.0
        )
    _wait_until(lambda: not _job_processes())


def test_cancel_ends_the_work_at_once(children, pipeline_folder, tmp_path):
    cancel = threading.Event()
    heard = []

    def stop(event):
        if event.kind == "step" and not cancel.is_set():
            heard.append(time.monotonic())
            cancel.set()

    with pytest.raises(Cancelled):
        children.run(*trial(pipeline_folder, **ENDLESS), folder=tmp_path, watch=stop, cancel=cancel)
    assert time.monotonic() - heard[0] < 5  # a picture of this trial takes far longer
    _wait_until(lambda: not _job_processes())


def test_fresh_processes_do_the_same(pipeline_folder, tmp_path):
    """What Windows and macOS get, where forking isn't safe."""
    with Children(FLUX, fork=False) as pool:
        assert pool.run(*trial(pipeline_folder), folder=tmp_path / "a").weight_bytes > 0


def test_a_signal_ends_a_fresh_process_only(tmp_path):
    def strike(event):
        if event.kind == "step":
            for process in psutil.Process().children():
                if "--once" in process.cmdline():
                    process.send_signal(signal.SIGSEGV)

    with (
        Children(PRELOAD, fork=False, environment=ENVIRONMENT) as pool,
        pytest.raises(JobFailed, match="segmentation fault"),
    ):
        pool.run(BEGIN, Begin("wait", detached=False), folder=tmp_path, watch=strike)


@pytest.fixture(scope="module")
def helpers():
    with Children(PRELOAD, environment=ENVIRONMENT) as pool:
        yield pool


@pytest.mark.parametrize("end", ["well", "killed"])
def test_what_a_job_started_ends_with_it(helpers, tmp_path, end):
    """A compiler that it called, a helper that it forked; also one that left its group."""
    pids = _pids_of(helpers, Begin(end), tmp_path)
    assert len(pids) == 2 and not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize("end", ["well", "killed"])
def test_what_a_fresh_process_started_ends_with_it(tmp_path, end):
    with Children(PRELOAD, fork=False, environment=ENVIRONMENT) as pool:
        (pid,) = _pids_of(pool, Begin(end, detached=False), tmp_path)
        _wait_until(lambda: not psutil.pid_exists(pid) or not _alive(psutil.Process(pid)))


def _pids_of(pool, asked, folder):
    try:
        pool.run(BEGIN, asked, folder=folder)
        assert asked.end == "well"
    except JobFailed as error:
        assert asked.end == "killed" and "SIGKILL" in str(error)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_what_works_shows_signs_of_life_and_what_waits_does_not(helpers, tmp_path):
    pool = helpers
    pool.run(BEGIN, Begin("busy"), folder=tmp_path / "a", stall_seconds=1.0)
    with pytest.raises(JobFailed, match="without a sign of life"):
        pool.run(BEGIN, Begin("wait"), folder=tmp_path / "b", stall_seconds=1.0)


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_nothing_outlives_a_killed_parent(tmp_path, fork, late):
    """While the server still imports, and while a job of it runs."""
    script = (
        "import sys, threading\nfrom pathlib import Path\n"
        "from child_jobs import BEGIN, ENVIRONMENT, PRELOAD, Begin\n"
        "from quantolab.processes.children import Children\n"
        f"with Children(PRELOAD, fork={fork}, environment=ENVIRONMENT) as pool:\n"
        f"    pool.run(BEGIN, Begin('wait', {fork}), folder=Path({str(tmp_path)!r}))\n"
    )
    environment = {**os.environ, **ENVIRONMENT}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    pids = tmp_path / "pids"
    _wait_until(lambda: pids.exists() if late else psutil.Process(parent.pid).children(), 60)
    family = psutil.Process(parent.pid).children(recursive=True)
    if late:
        family += [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    parent.kill()
    parent.wait()
    _wait_until(lambda: not any(_alive(p) for p in family))


@pytest.mark.sweep  # the same as above, of a comparison
def test_children_die_with_their_parent(pipeline_folder, tmp_path):
    script = (
        "from pathlib import Path\n"
        "import quantolab as ql\n"
        "def watch(progress):\n"
        "    if progress.stage == 'timing':\n"
        "        print('timing', flush=True)\n"
        f"ql.compare({str(pipeline_folder)!r}, ['int8'], 'a red cat', steps=1, repeats=9999,\n"
        "           watch=watch)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().strip() == "timing"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2  # the server and its job
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_until(lambda: not any(_alive(p) for p in family))


@pytest.fixture
def servers():
    """Return the function that lists the servers started by this test."""
    SPARE.close()  # one that an earlier run left would be taken over, and not be seen
    known = {p.pid for p in _servers()}
    return lambda: [p for p in _servers() if p.pid not in known]


def test_a_server_killed_while_it_imports_is_followed_by_another(
    servers, pipeline_folder, tmp_path
):
    with Children() as pool:
        _wait_until(servers)  # for its first moment, a process has no command line
        servers()[0].kill()
        _wait_until(lambda: not servers())
        with pytest.raises(JobRaised):
            pool.run(*nonsense(pipeline_folder), folder=tmp_path / "a")
    assert not servers()


def test_a_killed_server_takes_its_job_with_it_and_is_followed_by_another(
    pipeline_folder, servers, tmp_path
):
    family = []

    def strike(event):
        if event.kind == "step" and not family:
            (server,) = servers()
            family.extend([server, *server.children()])
            server.kill()

    with Children() as pool:
        with pytest.raises(JobFailed, match=r"was killed \(SIGKILL\)"):
            pool.run(*trial(pipeline_folder, **ENDLESS), folder=tmp_path / "a", watch=strike)
        assert len(family) == 2
        _wait_until(lambda: not any(_alive(p) for p in family))
        with pytest.raises(JobRaised):
            pool.run(*nonsense(pipeline_folder), folder=tmp_path / "b")
        servers()[0].kill()  # leaving is no trouble either
    assert not servers()


def test_servers_that_all_end_while_they_import(servers, pipeline_folder, tmp_path):
    """As where torch crashes on import: a job says so instead of waiting."""
    over = threading.Event()

    def strike():
        while not over.wait(0.05):
            for server in servers():
                server.kill()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        with (
            Children() as pool,
            pytest.raises(JobFailed, match=r"that starts trials has ended: .*SIGKILL"),
        ):
            pool.run(*nonsense(pipeline_folder), folder=tmp_path / "a")
    finally:
        over.set()
        thread.join()


def test_a_place_that_was_left_starts_nothing(servers, pipeline_folder, tmp_path):
    """As when a panel is closed while a thread of it is about to begin a job."""
    pool = Children()
    with pool, ThreadPoolExecutor(1) as threads:
        late = threads.submit(pool.run, *nonsense(pipeline_folder), folder=tmp_path / "a")
        pool.__exit__(None, None, None)
        with pytest.raises(JobFailed):
            late.result(60)
    assert not servers()


def test_cancelled_at_once_leaves_nothing(pipeline_folder, servers, tmp_path):
    cancel = threading.Event()
    cancel.set()
    with Children() as pool:
        with pytest.raises(JobRaised):
            pool.run(*nonsense(pipeline_folder), folder=tmp_path / "a")
        with pytest.raises(Cancelled):
            pool.run(*trial(pipeline_folder, **ENDLESS), folder=tmp_path / "b", cancel=cancel)
        (server,) = servers()
        _wait_until(lambda: not [c for c in server.children() if _alive(c)])


def _alive(process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _servers():
    return [
        p
        for p in psutil.Process().children()
        if _alive(p) and "quantolab.processes.server" in " ".join(p.cmdline())
    ]


def _job_processes():
    return [c for s in _servers() for c in s.children() if _alive(c)]


def _only_child() -> int:
    jobs = _job_processes()
    assert len(jobs) == 1
    return jobs[0].pid


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {site!r})
from quantolab.errors import JobFailed
from quantolab.processes.children import Children
from quantolab.processes.jobs import JobKind, Preload
from quantolab.run.jobs import PlanJob, Planned
from quantolab.models.source import read_source
sys.path.remove({site!r})
asked = PlanJob(read_source("tiny", Path({model!r})), "cpu", "bfloat16", (), ())
with Children(Preload(modules=("colorsys", "quantolab.where"))) as children:
    try:
        kind = JobKind("quantolab.run.child:nonsense", PlanJob, Planned)
        children.run(kind, asked, folder=Path({out!r}))
    except JobFailed:
        print("done")
"""


def test_only_this_quantolab_is_imported_from_where_it_lies(pipeline_folder, tmp_path):
    """What lies beside it, as a backport in site-packages, never hides a library's own modules."""
    site = tmp_path / "site"
    ours = Path(quantolab.__file__).parent
    shutil.copytree(ours, site / "quantolab", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    (site / "quantolab/where.py").write_text(f"open({str(tmp_path / 'here')!r}, 'w')\n")
    (site / "colorsys.py").write_text(f"open({str(tmp_path / 'hidden')!r}, 'w')\n")
    script = PARENT.format(site=str(site), model=str(pipeline_folder), out=str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr
    assert (tmp_path / "here").exists()  # it is that very quantolab
    assert not (tmp_path / "hidden").exists()


def _wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_script_without_a_main_guard_imports_nothing_of_the_current_folder(
    pipeline_folder, tmp_path
):
    """A model's folder may hold a torch.py of a stranger's, or an innocent one of the user's."""
    folder = tmp_path / "current"
    folder.mkdir()
    for name in ("torch", "json", "sitecustomize", "diffusers", "quantolab"):
        code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit(3)\n"
        (folder / f"{name}.py").write_text(code)
    script, site = tmp_path / "plain.py", str(Path(quantolab.__file__).parents[1])
    code = PARENT.format(site=site, model=str(pipeline_folder), out=str(tmp_path / "out"))
    script.write_text(code.replace("quantolab.where", "quantolab.run.child"))
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr
    assert not (tmp_path / "ran").exists()
