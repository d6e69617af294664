"""Files of a hub on this machine come whole, once, watched and interruptible."""

import collections
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from hub_server import Answer
from local_hub import local_hub, offline

from quantolab.errors import (
    BrokenModelError,
    Cancelled,
    ModelNotFoundError,
    OutputError,
)
from quantolab.hub.names import HubName
from quantolab.hub.repository import fetch, open_repository
from quantolab.hub.watching import watching

NAME = HubName("owner/some")
FILES = {"model_index.json": 200, "a/one.safetensors": 300_000, "a/two.safetensors": 200_000,
         "b/three.safetensors": 100_000, "c.json": 50}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    dice = random.Random(0)
    for path, size in FILES.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(dice.randbytes(size))
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        server.add("owner/some", tmp_path / "up")
        yield server


def whole(hub, paths=tuple(FILES)):
    """Whether all is in the cache as it was put up, and no piece of a file beside it."""
    repository = open_repository(NAME)
    home = hub.repos["owner/some"].folder
    same = all((repository.folder / p).read_bytes() == (home / p).read_bytes() for p in paths)
    return same and not list(repository.folder.parents[1].glob("blobs/*.incomplete"))


def test_files_come_once_and_are_counted(hub):
    told = []
    repository = open_repository(NAME)
    assert repository.whole and repository.files == FILES
    fetch(repository, ["a/two.safetensors"])
    hub.forget()
    with watching(told.append):
        fetch(repository, FILES)
    there = ("model_index.json", "a/two.safetensors")
    assert hub.sent_of("owner/some") == {p: n for p, n in FILES.items() if p not in there}
    assert {now.total for now in told} == {sum(FILES.values())} and told[0].files == 3
    done = [now.done for now in told]
    assert done == sorted(done) and done[0] >= 200_200 and done[-1] == sum(FILES.values())
    hub.forget()
    fetch(repository, FILES)
    assert not hub.requests and whole(hub)


def test_two_who_need_the_same_files_fetch_them_once(hub):
    hub.repos["owner/some"].bytes_per_second = 600_000
    repository = open_repository(NAME)
    threads = [threading.Thread(target=fetch, args=(repository, FILES)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.sent_of("owner/some") == FILES and whole(hub)


def test_cut_connections_go_on_where_they_broke(hub, monkeypatch):
    """20 cuts at random places."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    dice = random.Random(1)
    repo = hub.repos["owner/some"]
    sizes = {f"a/{n}.safetensors": n * 200_000 for n in (10, 6, 4)}
    for path, size in sizes.items():
        (repo.folder / path).write_bytes(dice.randbytes(size))
        repo.cuts[path] = [dice.randrange(70_000, 190_000) for _ in range(size // 200_000)]
    repository = open_repository(NAME)
    fetch(repository, sizes)
    assert not any(repo.cuts.values()) and whole(hub, sizes)
    sent = hub.sent_of("owner/some")
    assert all(sizes[path] <= sent[path] < sizes[path] + 65_536 * 10 for path in sizes)
    # Each goes on behind the last; no byte twice, but what of a chunk was under way.
    starts = collections.defaultdict(list)
    for method, path, wanted, _ in hub.requests:
        if method == "GET" and wanted and "resolve" in path:
            starts[path].append(int(wanted.removeprefix("bytes=").rstrip("-").split("-")[0]))
    assert sum(map(len, starts.values())) == 20
    assert all(found == sorted(found) for found in starts.values())


def test_a_file_that_arrives_changed_is_fetched_again_or_refused(hub):
    hub.repos["owner/some"].changed = {"a/one.safetensors": 1, "c.json": 1}
    repository = open_repository(NAME)
    fetch(repository, FILES)
    assert hub.sent["owner/some", "a/one.safetensors"] == 2 * FILES["a/one.safetensors"]
    assert whole(hub)
    shutil.rmtree(repository.folder.parents[1])
    hub.repos["owner/some"].changed = {"a/one.safetensors": 9}
    with pytest.raises(BrokenModelError, match=r"owner/some: a/one\.safetensors arrived changed"):
        fetch(open_repository(NAME), FILES)
    assert not repository.has("a/one.safetensors")


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, monkeypatch):
    repository = open_repository(NAME)
    hub.forget()
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("quantolab.hub.repository.shutil.disk_usage", lambda place: usage)
    with pytest.raises(OutputError, match=r"needs 600 kB .* has 100 kB free; nothing was fetched"):
        fetch(repository, FILES)
    assert not hub.requests


def test_cancel_is_heard_within_a_second_and_the_next_try_goes_on(hub):
    repo = hub.repos["owner/some"]
    for after, switch in ((0.0, "slow"), (0.3, "slow"), (0.3, "stall")):
        repo.bytes_per_second = 200_000 if switch == "slow" else None
        repo.stall_after = 20_000 if switch == "stall" else None
        repository, cancel = open_repository(NAME), threading.Event()
        threading.Timer(after, cancel.set).start()
        with watching(cancel=cancel), pytest.raises(Cancelled, match="owner/some was cancelled"):
            fetch(repository, FILES)
            pytest.fail("it had ended before")  # pragma: no cover
        assert cancel.is_set()
        assert not list(repository.folder.parents[1].glob("blobs/*.incomplete"))
    repo.bytes_per_second = repo.stall_after = None
    started = time.monotonic()
    fetch(open_repository(NAME), FILES)
    assert whole(hub)
    # Threads that wait for a stalled server hold the files' locks: a minute, if nothing wakes them.
    assert time.monotonic() - started < 30


def test_a_rate_limit_is_waited_for_as_told(hub):
    told = []
    hub.repos["owner/some"].api_answer = Answer(429, {"Retry-After": "1"}, times=1)
    started = time.monotonic()
    with watching(told.append):
        open_repository(NAME)
    assert time.monotonic() - started >= 1
    assert "asked too often and wants a wait of 1.00 s" in told[0].note
    hub.repos["owner/some"].api_answer = Answer(429, {"Retry-After": "86400"})
    with pytest.raises(ModelNotFoundError, match=r"can be asked for owner/some@v1 again in 24 h"):
        open_repository(HubName("owner/some", "v1"))


def test_without_a_connection_it_says_what_is_missing(hub, monkeypatch):
    repository = open_repository(NAME)
    fetch(repository, ["a/one.safetensors"])
    offline(monkeypatch)
    hub.forget()
    fetch(open_repository(NAME), ["a/one.safetensors"])
    with pytest.raises(ModelNotFoundError) as caught:
        fetch(open_repository(NAME), FILES)
    assert str(caught.value).endswith(
        "in the cache: 2 of 5 files; missing: a/two.safetensors (200 kB), b/three.safetensors "
        "(100 kB), c.json (50 B)"
    )
    assert not hub.requests


PROGRAM = """
import sys
from quantolab.hub.names import HubName
from quantolab.hub.repository import fetch, open_repository
repository = open_repository(HubName("owner/some"))
print("begun", flush=True)
fetch(repository, repository.files)
"""


MOMENTS = [
    pytest.param(0.1 * n, marks=() if n in (1, 6) else pytest.mark.sweep) for n in range(1, 11)
]  # seconds after the download began


@pytest.mark.parametrize("after", MOMENTS)
def test_ctrl_c_ends_a_download_within_a_second(hub, after):
    hub.repos["owner/some"].bytes_per_second = 200_000
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=10)
    # Within a second on a quiet machine; beside other tests the process takes longer to end.
    assert time.monotonic() - started < 4.0
    assert "KeyboardInterrupt" in errors and process.returncode != 0
    hub.repos["owner/some"].bytes_per_second = None
    fetch(open_repository(NAME), FILES)
    assert whole(hub)
