"""Errors of sets of layers, measured in a child and kept in a file if one is given."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ArgumentError
from ..files.choosing import weight_files
from ..files.whole import scratch_folder, write_whole
from ..plain_values import LATER, from_dict, to_dict
from ..processes.children import Held
from ..recipes import Recipe
from ..records import Conditions
from ..run.asked import Request
from ..run.session import Session, Watch
from ..shapes import Layer
from ..weights import REFERENCE
from .jobs import LayerSet, LayersJob, SetError, Sets, SetsFound, SetsJob, SetsReady
from .kinds import LAYERS, SETS
from .opening import watched

_RULES = 5
"""How inputs and floor are found; results by other rules aren't mixed with these."""

_AT_ONCE = 16  # sets that one question is about

_KEPT: dict[str, tuple[dict[int, Seen], dict[LayerSet, SetError]]] = {}
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
    pictures: int = field(default=0, metadata=LATER)
    """How many whole pictures were looked at instead."""
    rounding: float | None = field(default=None, metadata=LATER)
    """What rounding to the compute dtype does to them, where they were made in float32."""


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
    out : Path, optional
        File that keeps what is measured; by default this process keeps it.
    picture_steps : int
        Steps of whole pictures that are looked at; 0 means the workload's.
    in_float32 : bool
        Whether to compute in float32, with the values that weights have in the workload's dtype
        and that they are quantized to.
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
        out: Path | None = None,
        picture_steps: int = 0,
        in_float32: bool = False,
    ) -> None:
        self.component = component or request.source.denoiser
        self.others = tuple(others)
        self._inputs = inputs
        self._request = request
        self._watch = watch
        self._options = {"cancel": cancel, "stall_seconds": stall_seconds}
        self._stack = ExitStack()
        self._out = out
        self._picture_steps = picture_steps
        self.in_float32 = in_float32
        self._held: Held[SetsReady] | None = None
        self._results: _Results | None = None

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

    def measure(self, sets: Sequence[NamedSet], pictures: int = 0) -> list[SetError]:
        """Return the errors of each set; those that are known already aren't measured again.

        Parameters
        ----------
        sets : sequence of NamedSet
            What is quantized together.
        pictures : int
            How many whole pictures to look at; 0 looks at calls of the component.
        """
        asked = [dataclasses.replace(entry.asked, pictures=pictures) for entry in sets]
        results = self.results
        left = [entry for entry in dict.fromkeys(asked) if results.of(entry) is None]
        self.expect(self._session.done + len(left))
        if left or results.seen_in(pictures) is None:
            for start in range(0, max(len(left), 1), _AT_ONCE):
                some = tuple(left[start : start + _AT_ONCE])
                results.add(some, pictures, self._ask(Sets(some, pictures)))
        found = [results.of(entry) for entry in asked]
        return [error for error in found if error is not None]

    def expect(self, total: int) -> None:
        """Say how many sets there will be to measure, as far as that is known."""
        self._session.total = max(self._session.total, total)

    def seen(self, pictures: int = 0) -> Seen:
        """Return the conditions of what was measured, or read, so far."""
        seen = self.results.seen_in(pictures)
        assert seen is not None, "nothing was measured"
        return seen

    @property
    def results(self) -> _Results:
        """What is known already."""
        if self._results is None:
            self._results = _Results(self._out, {"measured": self.identity})
        return self._results

    def _ask(self, asked: Sets) -> tuple[SetsFound, Conditions]:
        """Ask the process that holds the model, which is started once it is needed."""
        session = self._session
        if self._held is None:
            job = SetsJob(
                session.trial_job(Recipe(REFERENCE), session.encode(self._work)),
                self.component,
                self._inputs,
                None if self._out is None else self._out.absolute(),
                self.others,
                self._picture_steps,
                self.in_float32,
            )
            self._held = session.hold(SETS, job, self._work / "measure")
            self._stack.callback(self._held.end)
        return session.ask(self._held, asked, SetsFound), self._held.found.conditions

    @property
    def identity(self) -> str:
        """What must agree before results of two calls may stand in one table."""
        workload = dataclasses.asdict(self.request.workload)
        names = ("prompts", "seeds", "steps", "guidance", "size", "dtype", "device", "revision")
        chosen = {name: workload[name] for name in names}
        if self.request.workload.frames is not None:
            chosen["frames"] = self.request.workload.frames
        parts = [self.request.source.component(n) for n in (self.component, *self.others)]
        paths = [
            p
            for part in parts
            for p in weight_files(part.folder, part.library, variant=part.variant).paths
        ]
        files = [(str(p), p.stat().st_size, p.stat().st_mtime) for p in paths]
        said = [
            _RULES, chosen, files, self.component, self._inputs, self._picture_steps,
            self.in_float32, *self.others,
        ]  # fmt: skip
        text = json.dumps(said, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Results:
    """Results by set, kept in a file of JSON lines if one is given."""

    def __init__(self, path: Path | None, identity: dict[str, str]) -> None:
        self._path, self._identity = path, identity["measured"]
        if path is None:
            self._seen, self._found = _KEPT.setdefault(self._identity, ({}, {}))
            return
        self._seen, self._found = {}, {}
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
        _KEPT[self._identity] = (self._seen, self._found)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole lines only: the last may have been cut when the process was ended.
        write_whole(path, "".join(json.dumps(line) + "\n" for line in [identity, *lines[1:]]))

    def _take(self, line: dict[str, Any]) -> None:
        if "conditions" in line:
            seen = from_dict(Seen, line["conditions"])
            self._seen[seen.pictures] = seen
        else:
            self._found[from_dict(LayerSet, line)] = from_dict(SetError, line)

    def of(self, entry: LayerSet) -> SetError | None:
        """Return a set's errors, if they are there."""
        return self._found.get(entry)

    def mixed(self, pictures: int) -> list[LayerSet]:
        """Return the whole recipes whose errors are known in so many pictures."""
        return [entry for entry in self._found if entry.words and entry.pictures == pictures]

    def seen_in(self, pictures: int) -> Seen | None:
        """Return the conditions of what was measured in so many pictures, or in calls."""
        return self._seen.get(pictures)

    def add(
        self, entries: Sequence[LayerSet], pictures: int, given: tuple[SetsFound, Conditions]
    ) -> None:
        """Take what the job found; it has written the errors to the file itself."""
        found, conditions = given
        self._found.update(zip(entries, found.results, strict=True))
        new = pictures not in self._seen
        self._seen[pictures] = Seen(
            **to_dict(conditions),
            inputs=found.inputs,
            output_floor=found.output_floor,
            pictures=pictures,
            rounding=found.rounding,
        )
        if new and self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"conditions": to_dict(self._seen[pictures])}) + "\n")


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
