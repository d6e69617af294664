"""Servers of jobs in tests: forked off one process, or started in earnest where that differs."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import zygote
from forked_kernel import kernel_spec
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

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


@pytest.mark.parametrize("name", ["HF_HOME", "OMP_NUM_THREADS"])
def test_what_imports_read_has_it_started_in_earnest(name, monkeypatch):
    monkeypatch.setenv(name, "3")
    assert isinstance(process_of_a_server(), subprocess.Popen)


SAYS = """
import diffusers.utils.hub_utils as theirs, torch._functorch.config, torch._inductor.config
from huggingface_hub import constants, hf_hub_url
print(hf_hub_url("a/b", "c"), constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE)
print(theirs.HUGGINGFACE_CO_RESOLVE_ENDPOINT, theirs.HF_HUB_OFFLINE)
print(torch._inductor.config.fx_graph_cache, torch._functorch.config.enable_autograd_cache)
"""


def test_a_fork_heeds_what_is_said_of_the_hub_and_the_compiler(tmp_path):
    """The same script says the same in a process that is started in earnest."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0",
                   "HF_HUB_CACHE": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
                   "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}  # fmt: skip
    assert zygote.run_script(SAYS, environment, tmp_path / "said", 100) == 0
    done = subprocess.run(
        [sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True, check=True
    )
    said = (tmp_path / "said").read_text().splitlines()
    assert said == done.stdout.splitlines()
    assert said[0].startswith("http://127.0.0.1:1/a/b") and said[2] == "False False"


WHO = "import sys; print([name in sys.modules for name in ('diffusers', 'quantolab')], sys.argv)"


def test_there_is_one_that_has_nothing_of_ours():
    done = zygote.run_code(WHO, "a", 1, door=zygote.PLAIN)
    assert done.stdout == "[True, False] ['-c', 'a', '1']\n", done.stderr
    done = zygote.run_code("import sys; sys.exit('in vain')", door=zygote.PLAIN)
    assert (done.returncode, done.stderr) == (1, "in vain\n")


def test_scripts_that_python_is_given_run_in_it_where_that_is_asked_for(monkeypatch, tmp_path):
    """As notebooks start them."""
    monkeypatch.setenv(zygote.SCRIPTS, "1")
    code = f"{WHO}; import os; print(os.getcwd(), file=sys.stderr); sys.exit(3)"
    command = [sys.executable, "-c", code, "a", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[True, False] ['-c', 'a', '1']\n"
    assert (done.returncode, done.stderr) == (3, f"{tmp_path}\n")


def test_so_it_is_where_that_is_asked_for(real_servers):
    assert isinstance(process_of_a_server(), subprocess.Popen)


def test_so_it_is_where_there_is_none(monkeypatch, tmp_path):
    (tmp_path / "circumstances").write_text(zygote._circumstances(os.environ))
    monkeypatch.setenv(zygote.PLACE, str(tmp_path))  # and no socket
    assert isinstance(process_of_a_server(), subprocess.Popen)


def test_what_transformers_makes_of_its_tables_is_there_in_every_fork():
    """A tenth of a second of each job before; see ``_make_tables`` in ``processes/server.py``."""
    pytest.importorskip("transformers.conversion_mapping")
    code = "import transformers.conversion_mapping as m; print(len(m.{}))"
    done = zygote.run_code(code.format("_checkpoint_conversion_mapping_cache"))
    assert done.returncode == 0 and int(done.stdout) > 10, done.stderr


def test_a_kernel_is_interrupted_and_ends_with_who_started_it(tmp_path):
    """As Jupyter does it: by signals to the process that it knows, which isn't the kernel."""
    spec = KernelSpecManager(kernel_dirs=[str(tmp_path)], ensure_native_kernel=False)
    (tmp_path / "forked").mkdir()
    (tmp_path / "forked" / "kernel.json").write_text(json.dumps(kernel_spec()))
    manager = KernelManager(kernel_spec_manager=spec, kernel_name="forked")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(60)
        said = client.execute_interactive("import os", user_expressions={"pid": "os.getpid()"})
        text = said["content"]["user_expressions"]["pid"]["data"]["text/plain"]
        kernel = psutil.Process(int(text))
        known = manager.provisioner.process.pid
        assert kernel.pid != known
        asked = client.execute("print('begun', flush=True); import time; time.sleep(1000)")
        while client.get_iopub_msg(60)["content"].get("text") != "begun\n":
            pass
        manager.interrupt_kernel()
        while (answer := client.get_shell_msg(60))["parent_header"]["msg_id"] != asked:
            pass
        assert answer["content"]["ename"] == "KeyboardInterrupt"
        os.kill(known, signal.SIGKILL)
        gone, left = psutil.wait_procs([kernel], 20)
        assert gone and not left
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
