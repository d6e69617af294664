"""Errors of sets of layers, measured in a child and kept in a file if one is given."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ArgumentError
from ..files.choosing import weight_files
from ..files.whole import scratch_folder, write_whole
from ..plain_values import from_dict, to_dict
from ..recipes import Recipe
from ..records import Conditions
from ..run.asked import Request
from ..run.session import Session, Watch
from ..shapes import Layer
from ..weights import REFERENCE
from .jobs import LayerSet, LayersJob, SetError, SetsFound, SetsJob
from .kinds import LAYERS, SETS
from .opening import watched

_RULES = 2
"""How inputs and floor are found; results by other rules aren't mixed with these."""

_KEPT: dict[str, tuple[Seen | None, dict[LayerSet, SetError]]] = {}
"""What this process has measured, by what it was measured with: used again, and not lost between
a table and the advice that follows."""


@dataclass(frozen=True)
class NamedSet:
    """Layers that are quantized together, under a name of theirs."""

    weights: str
    path: str
    """The name: a layer's path, or its block's."""
    layers: tuple[Layer, ...]
    words: tuple[str, ...] = ()
    """The word of each layer, where they haven't all the same."""
    component: str = ""
    """Which component they belong to, where it isn't the first."""

    @property
    def asked(self) -> LayerSet:
        """What a child is asked for."""
        before = f"{self.component}/" if self.component else ""
        return LayerSet(self.weights, tuple(before + la.path for la in self.layers), self.words)


@dataclass(frozen=True, kw_only=True)
class Seen(Conditions):
    """Under which conditions sets were measured."""

    inputs: int
    """How many of the component's calls were looked at."""
    output_floor: float
    """The error of the output that rounding alone makes."""


class LayerErrors:
    """Measures sets of layers of one component. Use as a context manager.

    Parameters
    ----------
    request : Request
        The workload whose first picture gives the inputs.
    component : str or None
        By default the denoiser.
    inputs : int
        How many of the component's calls to look at.
    watch, cancel, stall_seconds
        As for `compare`.
    others : sequence of str
        Text encoders; errors are then those of the denoiser's output.
    """

    def __init__(
        self,
        request: Request,
        component: str | None,
        inputs: int,
        *,
        watch: Watch | None,
        cancel: Any,
        stall_seconds: float,
        others: Sequence[str] = (),
    ) -> None:
        self.component = component or request.source.denoiser
        self.others = tuple(others)
        self._inputs = inputs
        self._request = request
        self._watch = watch
        self._options = {"cancel": cancel, "stall_seconds": stall_seconds}
        self._stack = ExitStack()
        self.seen: Seen | None = None
        """The conditions, once something was measured or read."""

    def __enter__(self) -> LayerErrors:
        with ExitStack() as stack:
            watch = stack.enter_context(watched(self._watch, "layers"))
            self._work = stack.enter_context(scratch_folder("sensitivity"))
            session = Session(self._request, total=0, watch=watch, **self._options)
            self._session = stack.enter_context(session)
            session.plan()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def request(self) -> Request:
        """What is asked for, the device resolved."""
        return self._session.request

    def layers(
        self, recipes: Sequence[Recipe], component: str | None = None
    ) -> tuple[tuple[Layer, ...], ...]:
        """Return the layers that each recipe quantizes."""
        request, name = self.request, component or self.component
        asked = LayersJob(request.source, name, request.workload.dtype, tuple(recipes))
        return self._session.job(LAYERS, asked, self._work / f"layers-{name}").layers

    def measure(self, sets: Sequence[NamedSet], out: Path | None = None) -> list[SetError]:
        """Return the errors of each set; those that `out` holds already aren't measured again."""
        session = self._session
        results = _Results(out, {"measured": self.identity})
        left = tuple(dict.fromkeys(e.asked for e in sets if results.of(e.asked) is None))
        session.total = len(left)
        if left or results.seen is None:
            encoded = session.encode(self._work)
            asked = SetsJob(
                session.trial_job(Recipe(REFERENCE), encoded),
                self.component,
                left,
                self._inputs,
                None if out is None else out.absolute(),
                self.others,
            )
            results.add(left, session.job(SETS, asked, self._work / "measure"))
        session.enter_stage("finished")
        self.seen = results.seen
        found = [results.of(entry.asked) for entry in sets]
        return [error for error in found if error is not None]

    @property
    def identity(self) -> str:
        """What must agree before results of two calls may stand in one table."""
        workload = dataclasses.asdict(self.request.workload)
        names = ("prompts", "seeds", "steps", "guidance", "size", "dtype", "device", "revision")
        chosen = {name: workload[name] for name in names}
        parts = [self.request.source.component(n) for n in (self.component, *self.others)]
        paths = [
            p
            for part in parts
            for p in weight_files(part.folder, part.library, variant=part.variant).paths
        ]
        files = [(str(p), p.stat().st_size, p.stat().st_mtime) for p in paths]
        said = [_RULES, chosen, files, self.component, self._inputs, *self.others]
        text = json.dumps(said, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Results:
    """Results by set, kept in a file of JSON lines if one is given."""

    def __init__(self, path: Path | None, identity: dict[str, str]) -> None:
        self._path, self._identity = path, identity["measured"]
        if path is None:
            self.seen, self._found = _KEPT.get(self._identity, (None, {}))
            return
        self.seen, self._found = None, {}
        lines = _json_lines(path) if path.exists() else []
        if lines and lines[0] != identity:
            raise ArgumentError(
                f"{str(path)!r} holds results of another call (model, prompt, steps, ...); name "
                "another file"
            )
        try:
            for line in lines[1:]:
                self._take(line)
        except ValueError as error:
            raise ArgumentError(
                f"{str(path)!r} isn't what sensitivity writes: {error}; name another file"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole lines only: the last may have been cut when the process was ended.
        write_whole(path, "".join(json.dumps(line) + "\n" for line in [identity, *lines[1:]]))

    def _take(self, line: dict[str, Any]) -> None:
        if "conditions" in line:
            self.seen = from_dict(Seen, line["conditions"])
        else:
            self._found[from_dict(LayerSet, line)] = from_dict(SetError, line)
        _KEPT[self._identity] = (self.seen, self._found)

    def of(self, entry: LayerSet) -> SetError | None:
        """Return a set's errors, if they are there."""
        return self._found.get(entry)

    def add(self, entries: Sequence[LayerSet], found: SetsFound) -> None:
        """Take what the job found; it has written the errors to the file itself."""
        self._found.update(zip(entries, found.results, strict=True))
        self.seen = Seen(
            **to_dict(found.conditions), inputs=found.inputs, output_floor=found.output_floor
        )
        _KEPT[self._identity] = (self.seen, self._found)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"conditions": to_dict(self.seen)}) + "\n")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines
