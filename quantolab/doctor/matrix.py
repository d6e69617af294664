"""The path matrix: every documented path, every weights dtype, once each way, really run."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Seconds, public
from ..backends import check_backend
from ..errors import ArgumentError, Cancelled, JobFailed, JobRaised, QuantolabError, one_of
from ..files.whole import scratch_folder
from ..processes.children import Children
from ..processes.jobs import Asked, Event, Found, JobKind, Preload
from ..recipes import COMPUTE_DTYPES, slug
from ..units import format_list
from ..weights import HOME, QUANTIZED, WALKED, known_word, weights_of
from .constants import DISTRIBUTIONS, EXTENSIONS
from .jobs import CompileJob, PhaseJob, Place
from .kinds import BUILD, COMPILE, MAKE, PHASE
from .outcomes import Cell

if TYPE_CHECKING:
    import pandas

PATHS = (
    "load",
    "skip by leaf",
    "skip by path",
    "single file",
    "original single file",
    "save and reload in a fresh process",
    "pipeline save and reload",
    "text encoder save and reload",
    "pipeline-level config",
    "word by component",
    "word by layer",
    "Quanto-direct checkpoint",
    "LoRA (load, fuse, unload)",
    "offload (model, sequential, group)",
    "copy and pickle",
    "compile full graph",
    "compile of repeated blocks",
)
"""The documented paths: the rows."""

VIA = ("diffusers", "quantolab")

_COMPILED = PATHS[-2:]
_QUANTO_ALONE = ("Quanto-direct checkpoint",)
_PHASES = {
    "save and reload in a fresh process": 2,
    "pipeline save and reload": 2,
    "text encoder save and reload": 2,
    "Quanto-direct checkpoint": 2,
}
_NEEDS_EXTENSION = tuple(word for word in QUANTIZED if weights_of(word).is_packed)

HUNG_SECONDS = 600.0
"""A phase that says nothing for so long is taken for hung. Building Quanto's extension takes
about a minute, compiling a tiny model some ten seconds."""

_WORKERS = 2  # cells at a time; each has one thread

# Imported once and shared by the children that are forked.
_PRELOAD = Preload(
    (
        ("diffusers", "FluxPipeline"),
        ("diffusers", "AutoencoderKL"),
        ("diffusers", "QuantoConfig"),
        ("diffusers", "PipelineQuantizationConfig"),
        ("transformers", "T5EncoderModel"),
        ("transformers", "QuantoConfig"),
        ("torch._inductor.compile_fx", "compile_fx"),
    ),
    without_cuda=("quantolab.doctor.cells",),
)

Told = Callable[[Cell, int, int], None]


@public
def path_matrix(
    paths: Iterable[str] | str = PATHS,
    *,
    weights: Iterable[str] | str = QUANTIZED,
    via: Iterable[str] | str = VIA,
    device: str = "auto",
    dtype: str = "bfloat16",
    watch: Told | None = None,
    hung_seconds: Seconds = HUNG_SECONDS,
) -> pandas.DataFrame:
    """Run every documented path on a tiny random model and return what became of each.

    Every cell runs in a process of its own, so a crash or a hang is an outcome like any other.
    Through plain Diffusers the calls are those of its manual, with Quanto as its makers ship it:
    its C++ extension is built at first use, in a temporary folder, which takes about a minute.
    The whole matrix takes a few minutes on two cores.

    Parameters
    ----------
    paths : iterable of str
        Rows; all of `PATHS` by default.
    weights : iterable of str
        Weights dtypes; all four of Quanto's by default. Words of SDNQ and torchao (``"sdnq:int8"``)
        are run on the paths that Diffusers documents for these.
    via : iterable of str
        ``"diffusers"``, ``"quantolab"``, or both.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    watch : callable, optional
        Called with each finished `Cell`, the number done and the number of all; by default a
        progress bar.
    hung_seconds : float
        A cell that shows no sign of life for so long has failed.

    Returns
    -------
    pandas.DataFrame
        One row a cell: ``path, weights, via, outcome`` (``works``, ``fails``, ``misleads``: no
        error but not what was asked for, or ``unsupported``), ``reason`` (the real message, or
        what was measured), ``seconds``, and the conditions ``device, dtype, torch, diffusers,
        transformers, quanto, backend, backend_version``. ``attrs["seconds"]`` is the wall time.

    Raises
    ------
    ArgumentError
        Unknown path, weights, via, device or dtype; or a path that none of the words has.
    UnsupportedError
        If a word's backend isn't installed.

    Examples
    --------
    >>> matrix = path_matrix("skip by path", weights="int8")
    >>> matrix[["via", "outcome"]].values.tolist()
    [['diffusers', 'misleads'], ['quantolab', 'works']]
    """
    cells = _cells(paths, weights, _words("via", via, VIA))
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    bar = None
    if watch is None:
        from .progress import CellBar

        watch = bar = CellBar()
    started = time.monotonic()
    try:
        with scratch_folder("doctor") as folder:
            ward = _Ward(folder, device, dtype, watch, hung_seconds)
            done = ward.run(cells)
    finally:
        if bar is not None:
            bar.close()
    return _frame(done, ward.device, dtype, time.monotonic() - started)


class _Ward:
    """Runs cells in child processes, some at a time, in an order that keeps the cores busy."""

    def __init__(
        self, folder: Path, device: str, dtype: str, watch: Told, hung_seconds: float
    ) -> None:
        self.device = device
        self._folder = folder
        self._dtype = dtype
        self._watch = watch
        self._hung_seconds = hung_seconds
        self._cancel = threading.Event()
        self._built: Future | None = None
        self._moved: dict[str, Future] = {}

    def run(self, cells: list[Cell]) -> list[Cell]:
        """Return the cells with their outcomes, in the order given."""
        pool = ThreadPoolExecutor(_WORKERS)
        environment = _environment(self._folder)
        try:
            with Children(_PRELOAD, environment=environment) as self._children:
                try:
                    self.device = self._job(MAKE, self._place, "lab").device
                    return self._run_all(pool, cells)
                finally:  # before the children's server goes, also after Ctrl-C
                    self._cancel.set()
                    pool.shutdown(cancel_futures=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_all(self, pool: ThreadPoolExecutor, cells: list[Cell]) -> list[Cell]:
        # What others wait for comes first; threads take work in this order, so none waits
        # for work that hasn't begun.
        if any(_builds_extension(cell) for cell in cells):
            self._built = pool.submit(self._build_extension)
        for path in _COMPILED:
            if any(cell.path == path for cell in cells):
                self._moved[path] = pool.submit(self._compile_unquantized, path)
        order = sorted(cells, key=lambda cell: (_builds_extension(cell), cell.path in _COMPILED))
        running = {pool.submit(self._run_cell, cell): cell for cell in order}
        finished = {}
        for number, future in enumerate(as_completed(running), 1):
            cell = finished[running[future]] = future.result()
            self._watch(cell, number, len(cells))
        return [finished[cell] for cell in cells]

    @property
    def _place(self) -> Place:
        return Place(self._folder, self.device, self._dtype)

    def _build_extension(self) -> None:
        try:
            self._job(BUILD, self._place, "extension")
        except JobFailed:
            # A lock left behind would let every cell wait without end.
            shutil.rmtree(self._folder / EXTENSIONS, ignore_errors=True)

    def _compile_unquantized(self, path: str) -> float:
        name = slug(f"unquantized {path}")
        try:
            return self._job(COMPILE, CompileJob(self._place, path), name).moved
        except JobFailed:
            return 0.0  # the cells fail in the same way, and say how

    def _run_cell(self, cell: Cell) -> Cell:
        if _builds_extension(cell):
            self._built.result()
        moved = self._moved[cell.path].result() if cell.path in _COMPILED else 0.0
        name = slug(f"{cell.via} {cell.path} {cell.weights}")
        started = time.monotonic()
        for phase in range(_PHASES.get(cell.path, 1)):
            asked = PhaseJob(self._place, cell.path, cell.weights, cell.via, phase, moved)
            outcome, reason = self._run_phase(asked, name)
            if outcome is not None:
                break
        seconds = time.monotonic() - started
        return Cell(cell.path, cell.weights, cell.via, outcome, reason, round(seconds, 2))

    def _run_phase(self, asked: PhaseJob, name: str) -> tuple[str | None, str]:
        stages = ["loading"]

        def hear(event: Event) -> None:
            if event.kind == "stage":
                stages.append(event.stage)

        try:
            verdict = self._job(PHASE, asked, name, hear)
        except JobFailed as error:
            return "fails", f"while {stages[-1]}: {error}"
        if verdict.outcome in ("fails", "unsupported"):
            return verdict.outcome, f"while {stages[-1]}: {verdict.reason}"
        return verdict.outcome, verdict.reason

    def _job(
        self,
        kind: JobKind[Asked, Found],
        asked: Asked,
        name: str,
        hear: Callable[[Event], None] = lambda event: None,
    ) -> Found:
        """Run one job of this room in a process of its own and return what it found.

        Raises
        ------
        JobFailed
            If the process crashed or hung.
        QuantolabError
            If the job refused, or made a mistake of its own.
        """
        try:
            return self._children.run(
                kind,
                asked,
                folder=self._folder / name,
                watch=hear,
                cancel=self._cancel,
                stall_seconds=self._hung_seconds,
            )
        except JobFailed as error:
            if isinstance(error, JobRaised):
                raise _DoctorError(f"{name}: {error}") from error
            raise
        except Cancelled:
            raise
        except QuantolabError as error:
            raise _DoctorError(f"{name}: {error}") from error


class _DoctorError(QuantolabError):
    """The doctor itself made a mistake; no outcome of a cell."""


def totals(matrix: pandas.DataFrame) -> dict[str, tuple[int, int]]:
    """Return, for each way, how many cells work and how many there are."""
    return {
        way: (int((rows["outcome"] == "works").sum()), len(rows))
        for way, rows in matrix.groupby("via", sort=False)
    }


def all_work(matrix: pandas.DataFrame) -> bool:
    """Return whether quantolab works in each of its cells, or says why that can't be."""
    ours = matrix[matrix["via"] == "quantolab"]
    return bool(ours["outcome"].isin(["works", "unsupported"]).all())


def _builds_extension(cell: Cell) -> bool:
    """Whether plain Quanto's C++ extension may be wanted: by int4 and int2, as shipped."""
    return cell.via == "diffusers" and cell.weights in _NEEDS_EXTENSION


def _environment(folder: Path) -> dict[str, str]:
    """Return the children's surroundings: offline, one thread each, nothing left behind."""
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # Compiled code of equal source is shared; graphs are not, so each cell really compiles.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "SDNQ_USE_TORCH_COMPILE": "0",  # else each process compiles for half a minute first
    }


def _cells(
    paths: Iterable[str] | str, weights: Iterable[str] | str, ways: tuple[str, ...]
) -> list[Cell]:
    words = (weights,) if isinstance(weights, str) else tuple(weights)
    words = tuple(dict.fromkeys(map(_walked, words)))
    found = []
    for path in _words("path", paths, PATHS):
        mine = [w for w in words if path not in _QUANTO_ALONE or weights_of(w).backend == HOME]
        if words and not mine and tuple(paths) != PATHS:
            raise ArgumentError(
                f"the path {path!r} is Quanto's alone, and weights names none of its"
            )
        found += [Cell(path, word, way) for word in mine for way in ways]
    return found


def _walked(word: str) -> str:
    """Return a word whose paths can be run."""
    if ":" not in str(word):
        return one_of("weights dtype", word, QUANTIZED)
    backend = weights_of(known_word("weights dtype", word)).backend
    if backend not in WALKED:
        raise ArgumentError(
            f"weights dtype {word!r} is of {backend}, whose paths Diffusers has with a GPU only; "
            f"allowed are words of {format_list(list(WALKED))}"
        )
    check_backend(backend)
    return word


def _words(what: str, value: Iterable[str] | str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tuple(value)
    return tuple(dict.fromkeys(one_of(what, word, allowed) for word in words))


def _frame(cells: list[Cell], device: str, dtype: str, seconds: float) -> pandas.DataFrame:
    import pandas as pd

    rows = [
        {
            "path": cell.path,
            "weights": cell.weights,
            "via": cell.via,
            "outcome": cell.outcome,
            "reason": cell.reason,
            "seconds": cell.seconds,
            "device": device,
            "dtype": dtype,
            "torch": metadata.version("torch"),
            "diffusers": metadata.version("diffusers"),
            "transformers": metadata.version("transformers"),
            "quanto": metadata.version("optimum-quanto"),
            "backend": (backend := weights_of(cell.weights).backend),
            "backend_version": metadata.version(DISTRIBUTIONS.get(backend, backend)),
        }
        for cell in cells
    ]
    frame = pd.DataFrame(rows)
    frame.attrs["seconds"] = seconds
    return frame
