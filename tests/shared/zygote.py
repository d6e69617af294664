"""One process that has imported what servers import, from which the servers of all tests fork.

Workers of pytest-xdist fork off it too, as do Jupyter's kernels, scripts of tests on a test card,
and commands whose start isn't what is tested.

Importing torch and Diffusers costs seconds of a processor, and a server of jobs is started by
most tests that run something. What a server does afterwards is its own, in a process of its own:
only its start differs. Tests of the start itself, in ``tests/processes``, have it done for real,
and so does a server whose environment holds anything that libraries read while they are imported.

It is begun by pytest's own process (`start`), used through `insert` by each process that the
tests consist of or start, and ends with the first.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import psutil

PLACE = "QUANTOLAB_TESTS_ZYGOTE"
"""Environment variable with the folder of its socket and of what it was started under."""

# Names that libraries read while they are imported begin so. But for some: what a fork can still
# heed is heeded (see `_heed`), the compiler reads where its cache is when it compiles, and on the
# seed that Python hashes with, which the distributed engine sets, no job may depend.
_READ_BY_IMPORTS = (
    "ACCELERATE", "BITSANDBYTES", "CUDA", "DIFFUSERS", "HF_", "HUGGINGFACE", "KMP", "LD_", "MKL",
    "OMP", "PEFT", "PYTHON", "PYTORCH", "SDNQ", "TORCH", "TRANSFORMERS",
)  # fmt: skip

_COMPILERS = {
    "TORCHINDUCTOR_AUTOGRAD_CACHE": ("torch._functorch.config", "enable_autograd_cache"),
    "TORCHINDUCTOR_FX_GRAPH_CACHE": ("torch._inductor.config", "fx_graph_cache"),
}
"""Modules and their switches, by the variable that says 0 or 1."""

_OF_NO_ACCOUNT = (
    "DIFFUSERS_VERBOSITY", "HF_ENDPOINT", "HF_HUB_", "HF_TOKEN", "PYTHONHASHSEED",
    "PYTHONWARNINGS", "TORCHINDUCTOR_CACHE_DIR", "TRANSFORMERS_VERBOSITY", *_COMPILERS,
)  # fmt: skip


def _circumstances(environment) -> str:
    """Return what a fork of the zygote has in common with a process that is started in earnest."""
    import resource

    names = {name for name in dir(resource) if name.startswith("RLIMIT_")}
    names -= {"RLIMIT_NOFILE"}  # Jupyter raises that one for its kernels
    limits = [getattr(resource, name) for name in sorted(names)]
    return json.dumps(
        [
            {k: environment[k] for k in sorted(environment) if _is_read_by_imports(k)},
            [resource.getrlimit(limit) for limit in limits],
            sorted(os.sched_getaffinity(0)),
            os.getpriority(os.PRIO_PROCESS, 0),
        ]
    )


def _is_read_by_imports(name: str) -> bool:
    return name.startswith(_READ_BY_IMPORTS) and not name.startswith(_OF_NO_ACCOUNT)


def start(folder: Path) -> Callable[[], None]:
    """Start it, and have all processes that are started from now on know of it.

    It imports once the first of them asks for a fork. Returned is what ends it and removes the
    folder.
    """
    os.environ[PLACE] = str(folder)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(folder / "socket"))
    listening.listen(32)
    (folder / "circumstances").write_text(_circumstances(os.environ))
    here = str(Path(__file__).parent)
    home = str(Path(__file__).parents[2])
    code = "import sys; sys.path += sys.argv[1:3]; import zygote; zygote.serve(int(sys.argv[3]))"
    with listening:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, here, home, str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C is for pytest
        )

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder)

    return end


FORKS: list[Fork] = []
"""Those that this process has started."""


# --- in the processes that want a server ----------------------------------------------------


def insert(children: ModuleType) -> None:
    """Have `quantolab.processes.children` fork its servers off it, where a fork is as good.

    Where it isn't, they are started in earnest.
    """
    real = children._start

    def start(arguments, extra):
        environment = {**os.environ, **extra, "TQDM_DISABLE": "1"}
        place = Path(environment.get(PLACE, ""))
        if PLACE not in environment or not place.is_dir():
            return real(arguments, extra)
        if _circumstances(environment) != (place / "circumstances").read_text():
            return real(arguments, extra)
        try:
            FORKS.append(Fork(place / "socket", environment, arguments=arguments))
        except (OSError, ValueError):  # it was killed
            return real(arguments, extra)
        return FORKS[-1]

    children._start = start


def fork_workers() -> None:
    """Have the workers of pytest-xdist fork off it: each would import all that tests do anew."""
    from execnet import gateway_base, gateway_io

    class Forked(gateway_io.Popen2IOMaster):
        def __init__(self, args, execmodel) -> None:
            environment = {**os.environ}
            place = Path(environment[PLACE]) / "socket"
            self.popen = Fork(place, environment, script=args[-1], said=[], arguments=[])
            gateway_base.Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel)

    gateway_io.Popen2IOMaster = Forked


def servers() -> list[psutil.Process]:
    """Return the servers of jobs that this process has started, one way or the other."""
    FORKS[:] = [fork for fork in FORKS if fork.poll() is None]
    own = psutil.Process().children()
    started = [p for p in own if "quantolab.processes.server" in " ".join(p.cmdline())]
    return started + [psutil.Process(fork.pid) for fork in FORKS]


def run_script(
    script: str,
    environment: dict[str, str],
    said: Path,
    seconds: float,
    *,
    errors: Path | None = None,
    arguments: tuple[str, ...] = (),
    folder: Path | None = None,
) -> int:
    """Run a script in a process that finds the test card, if the environment says one.

    What it prints goes into a file, and what it says on standard error too, or into one of its
    own. Returned is its exit code. It is killed if it takes longer than so many seconds.
    """
    what = {"script": script, "said": [str(said), str(errors or said)], "arguments": arguments}
    if folder is not None:
        what["current"] = str(folder)
    process = Fork(Path(environment[PLACE]) / "socket", environment, **what)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


COMMAND = "from quantolab.cli import run_and_exit; run_and_exit()"


def run_command(
    *words: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line of quantolab in a process of its own, and return what came of it.

    It has imported Diffusers already, for importing takes longer than most of what is asked for.
    """
    return run_code(COMMAND, *words, cwd=cwd, environment=environment)


def run_code(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fork, or in earnest where there is nothing to fork from."""
    words = tuple(map(str, arguments))
    environment = {**os.environ} if environment is None else environment
    if PLACE not in environment:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"errors": err, "arguments": words, "folder": cwd}
        ended = run_script(code, environment, out, 600, **asked)
        told = out.read_text(), err.read_text()
    return subprocess.CompletedProcess(words, ended, *told)


class Fork:
    """A process that was forked off, with those parts of `subprocess.Popen` that are used."""

    def __init__(self, place: Path, environment: dict[str, str], **what: object) -> None:
        from quantolab.processes.spare import current_folder

        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(str(place))
        socket.send_fds(self._line, [b"."], [theirs_in, theirs_out])
        os.close(theirs_in)
        os.close(theirs_out)
        current = str(current_folder() or "")
        asked = {"current": current, **what, "environment": environment}
        self._line.sendall(json.dumps(asked).encode() + b"\n")
        self._told = self._line.makefile()
        self._reading = threading.Lock()
        self.stdin = os.fdopen(ours_in, "w")
        self.stdout = os.fdopen(ours_out)
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._line, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise subprocess.TimeoutExpired("a server", timeout or 0)
        with self._reading:  # two threads may wait
            if self.returncode is None:
                said = self._told.readline()  # nothing, if the zygote itself was killed
                self.returncode = int(said) if said else -signal.SIGKILL
        return self.returncode

    def kill(self) -> None:
        """Kill it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


# --- in the zygote --------------------------------------------------------------------------


def serve(listening: int) -> NoReturn:
    """Fork a server for each connection until standard input ends."""
    door = socket.socket(fileno=listening)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for source in (0, door, wake_read):
        selector.register(source, selectors.EVENT_READ)
    lines: dict[int, socket.socket] = {}
    imported = False
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                os._exit(0)
            if key.fileobj is wake_read or key.fileobj == wake_read:
                os.read(wake_read, 4096)
                _tell_ends(lines)
                continue
            line, _ = door.accept()
            _, fds, _, _ = socket.recv_fds(line, 1, 2)
            with line.makefile() as told:
                asked = json.loads(told.readline())
            if not imported:
                _import()
                imported = True
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (door, line, *lines.values()):
                    other.close()
                os.close(wake_read)
                os.close(wake_write)
                _become(fds, asked)
            for fd in fds:
                os.close(fd)
            lines[pid] = line
            line.sendall(f"{pid}\n".encode())


def _import() -> None:
    import gc

    from quantolab.processes.jobs import Preload
    from quantolab.processes.server import preload

    names = ("FluxPipeline", "FluxTransformer2DModel", "AutoencoderKL")
    classes = [("diffusers", name) for name in names]
    classes += [("transformers", name) for name in ("CLIPTextModel", "T5EncoderModel")]
    modules = ("quantolab.run.child", "quantolab.backends.quanto.layers")
    preload(Preload(tuple(classes), modules))
    gc.freeze()


def _tell_ends(lines: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        with lines.pop(pid) as line:
            try:
                line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                pass  # who had asked for it is gone


def _become(fds, asked) -> NoReturn:
    """Be a server, or run a script, in circumstances that the asker has."""
    try:
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(asked["environment"])
        if asked["current"]:  # it may have been removed
            os.chdir(asked["current"])
        _heed()
        card = insert_card() if "QUANTOLAB_TEST_CARD" in os.environ else None
        if "script" in asked:
            _run_script(asked, card)
        sys.argv = ["-c", *asked["arguments"]]
        from quantolab.processes.server import main

        main()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def _heed() -> None:
    """Tell the libraries what they read of the environment when they were imported."""
    from huggingface_hub import constants

    for said in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(said)
    for library in ("diffusers", "transformers"):
        level = os.environ.get(f"{library.upper()}_VERBOSITY")
        if level:
            logging.getLogger(library).setLevel(level.upper())
    importlib.reload(constants)
    copied = {
        "HF_HUB_OFFLINE": constants.HF_HUB_OFFLINE,
        "HUGGINGFACE_CO_RESOLVE_ENDPOINT": constants.ENDPOINT,
    }
    for module in filter(None, list(sys.modules.values())):
        for name in copied.keys() & getattr(module, "__dict__", {}).keys():
            setattr(module, name, copied[name])
    for variable, (module, switch) in _COMPILERS.items():
        if variable in os.environ:
            setattr(importlib.import_module(module), switch, os.environ[variable] == "1")


def _run_script(asked, card) -> NoReturn:
    for number, path in enumerate(asked["said"], 1):
        with Path(path).open("a") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["-c", *asked["arguments"]]
    code = 0
    try:
        exec(compile(asked["script"], "<script>", "exec"), {"card": card})
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def insert_card():
    """Put the card of ``tests/card`` into this process, and return it."""
    sys.path.append(str(Path(__file__).parents[1] / "card"))
    try:
        import card_of_tests
    finally:
        sys.path.pop()
    return card_of_tests.insert()
