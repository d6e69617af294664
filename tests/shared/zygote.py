"""One process that has imported what servers import, from which the servers of all tests fork.

Workers of pytest-xdist fork off it too, as do Jupyter's kernels, scripts of tests on a test card,
and commands whose start isn't what is tested. Itself it is a fork of one that has imported
Diffusers and nothing of ours: scripts of somebody who has no quantolab fork off that.

Importing torch and Diffusers costs seconds of a processor, and a server of jobs is started by
most tests that run something. What a server does afterwards is its own, in a process of its own:
only its start differs. Tests of the start itself, in ``tests/processes``, have it done for real,
and so does a server whose environment holds anything that libraries read while they are imported.

It is begun by pytest's own process (`start`), used through `insert` by each process that the
tests consist of or start, and ends with the first.
"""

from __future__ import annotations

import gc
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
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import psutil

PLACE = "QUANTOLAB_TESTS_ZYGOTE"
"""Environment variable with the folder of its sockets and of what it was started under."""

SCRIPTS = "QUANTOLAB_TESTS_FORK_SCRIPTS"
"""Environment variable: where it is set, ``python -c SCRIPT`` runs in a fork without quantolab."""

HOUSE, PLAIN = "socket", "plain"
"""Sockets of the process that has imported quantolab, and of the one that hasn't."""

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
    (folder / "circumstances").write_text(_circumstances(os.environ))
    here, home = Path(__file__).parent, Path(__file__).parents[2]
    code = "import sys; sys.path += sys.argv[1:3]; import zygote; zygote.serve(*sys.argv[3:])"
    with _door(folder / HOUSE) as house, _door(folder / PLAIN) as plain:
        doors = [house.fileno(), plain.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *map(str, (here, home, *doors))],
            stdin=subprocess.PIPE,
            pass_fds=doors,
            start_new_session=True,  # Ctrl-C is for pytest
        )

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder)

    return end


def _door(path: Path) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(str(path))
    door.listen(32)
    return door


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
            FORKS.append(Fork(place / HOUSE, environment, arguments=arguments))
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
            place = Path(environment[PLACE]) / HOUSE
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
    door: str = HOUSE,
) -> int:
    """Run a script in a process that finds the test card, if the environment says one.

    What it prints goes into a file, and what it says on standard error too, or into one of its
    own. Returned is its exit code. It is killed if it takes longer than so many seconds.
    """
    what = {"script": script, "said": [str(said), str(errors or said)], "arguments": arguments}
    if folder is not None:
        what["current"] = str(folder)
    with closing(Fork(Path(environment[PLACE]) / door, environment, **what)) as process:
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


RUN_FILE = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run_file(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a file of Python code as `run_command` runs a command."""
    return run_code(RUN_FILE, path, *arguments)


def run_code(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    door: str = HOUSE,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fork, or in earnest where there is nothing to fork from.

    At the door `PLAIN` it is in a process that has imported Diffusers, and nothing of quantolab.
    """
    words = tuple(map(str, arguments))
    environment = {**os.environ} if environment is None else environment
    if PLACE not in environment:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"errors": err, "arguments": words, "folder": cwd, "door": door}
        ended = run_script(code, environment, out, 600, **asked)
        told = out.read_text(), err.read_text()
    return subprocess.CompletedProcess(words, ended, *told)


def begin_code(code: str, *arguments: object) -> Fork:
    """Begin Python code in a fork that has quantolab; the caller reads what it prints."""
    words = tuple(map(str, arguments))
    place = Path(os.environ[PLACE]) / HOUSE
    return Fork(place, {**os.environ}, script=code, said=[], arguments=words)


class Fork:
    """A process that was forked off, with those parts of `subprocess.Popen` that are used."""

    def __init__(self, place: Path, environment: dict[str, str], **what: object) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(str(place))
        socket.send_fds(self._line, [b"."], [theirs_in, theirs_out])
        os.close(theirs_in)
        os.close(theirs_out)
        asked = {"current": _current_folder(), **what, "environment": environment}
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

    def close(self) -> None:
        """Let go of it: nothing more is said or heard."""
        for end in (self.stdin, self.stdout, self._told, self._line):
            end.close()


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed
        return ""


def fork_scripts() -> None:
    """Where that is asked for, have this process run its script in a fork, and end as that does.

    For scripts that a notebook starts, which has ``python -c`` do it as its reader would.
    """
    if SCRIPTS not in os.environ or PLACE not in os.environ or sys.orig_argv[1:2] != ["-c"]:
        return
    script, *arguments = sys.orig_argv[2:]
    environment = {name: value for name, value in os.environ.items() if name != SCRIPTS}
    said, errors = (Path(f"/proc/{os.getpid()}/fd/{number}") for number in (1, 2))
    asked = {"errors": errors, "arguments": tuple(arguments), "folder": Path.cwd()}
    os._exit(run_script(script, environment, said, 600, door=PLAIN, **asked) % 256)


# --- in the zygote --------------------------------------------------------------------------


def serve(house: str, plain: str) -> NoReturn:
    """Be two processes, with quantolab and without, once either is asked for a fork."""
    doors = [socket.socket(fileno=int(number)) for number in (house, plain)]
    with selectors.DefaultSelector() as selector:
        for source in (0, *doors):
            selector.register(source, selectors.EVENT_READ)
        asked = [key.fileobj for key, _ in selector.select()]
    if asked == [0]:  # nobody did, and all is over
        os._exit(0)
    _import_plain()
    with_quantolab = os.fork()
    if not with_quantolab:
        _import_house()
    gc.freeze()
    mine, others = reversed(doors) if with_quantolab else doors
    others.close()
    _fork_on_demand(mine)
    if with_quantolab:
        with suppress(ChildProcessError):  # it was killed
            os.waitpid(with_quantolab, 0)
    os._exit(0)


def _import_plain() -> None:
    """Import what whoever makes pictures with FLUX has imported."""
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel  # noqa: F401
    from diffusers.pipelines import auto_pipeline  # noqa: F401
    from transformers import CLIPTextModel, T5EncoderModel  # noqa: F401


def _import_house() -> None:
    """Import what jobs, commands and tests have in common, each of which would do it anew."""
    from quantolab.experiments import comparing
    from quantolab.processes.jobs import Preload
    from quantolab.processes.server import preload

    comparing._import_ahead()
    # No panels: what they are made of looks for the kernel when it is imported.
    rooms = (
        "run.child", "widgets.child", "experiments.sensitivity_child", "report.files",
        "backends.quanto.layers", "backends.quanto.stored_form",
    )  # fmt: skip
    preload(Preload((), tuple(f"quantolab.{room}" for room in rooms)))


def _fork_on_demand(door: socket.socket) -> None:
    """Fork for each connection until standard input ends."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for source in (0, door, wake_read):
        selector.register(source, selectors.EVENT_READ)
    lines: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                return
            if key.fileobj is wake_read or key.fileobj == wake_read:
                os.read(wake_read, 4096)
                _tell_ends(lines)
                continue
            line, _ = door.accept()
            _, fds, _, _ = socket.recv_fds(line, 1, 2)
            with line.makefile() as told:
                asked = json.loads(told.readline())
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


def _tell_ends(lines: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if pid not in lines:  # the other of the two
            continue
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
        names = {"__name__": "__main__", "card": card}
        exec(compile(asked["script"], "<script>", "exec"), names)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
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
