"""Servers of jobs in tests: forked off one process, or started in earnest where that differs."""

import os
import subprocess

import pytest
import zygote

from quantolab.processes.children import Children

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(zygote.PLACE not in os.environ, reason="no servers are forked off here"),
]


def process_of_a_server():
    with Children() as pool:
        server = pool._live_server()
        server.wait_until_ready(None, 600)
        process = server._process
        forked = process.pid in [each.pid for each in zygote.servers()]
        assert forked and process.poll() is None
    assert process.wait(10) == 0 and process.pid not in [each.pid for each in zygote.servers()]
    return process


def test_a_server_is_a_fork():
    assert isinstance(process_of_a_server(), zygote.Fork)


@pytest.mark.parametrize("name", ["HF_HOME", "PYTHONOPTIMIZE", "OMP_NUM_THREADS"])
def test_what_imports_read_has_it_started_in_earnest(name, monkeypatch):
    monkeypatch.setenv(name, "3")
    assert isinstance(process_of_a_server(), subprocess.Popen)


def test_so_it_is_where_that_is_asked_for(real_servers):
    assert isinstance(process_of_a_server(), subprocess.Popen)


def test_so_it_is_where_there_is_none(monkeypatch, tmp_path):
    (tmp_path / "circumstances").write_text(zygote._circumstances(os.environ))
    monkeypatch.setenv(zygote.PLACE, str(tmp_path))  # and no socket
    assert isinstance(process_of_a_server(), subprocess.Popen)
