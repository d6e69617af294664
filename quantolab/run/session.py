"""What every kind of run shares: its children, how far it is, and the jobs that come first."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..records import Trial
from .children import Children, JobFailed
from .request import Request


@dataclass(frozen=True)
class Progress:
    """One event of a comparison, for whoever watches."""

    stage: str
    """``starting``, ``planning``, ``encoding prompts``, ``loading``, ``making the pictures``,
    ``timing``, ``finished``."""
    label: str | None
    """Label of the trial that is running; None outside trials."""
    done: int
    """Pictures made so far, timed ones included."""
    total: int
    """Pictures that the whole comparison makes."""
    elapsed_seconds: float
    eta_seconds: float | None
    """Seconds to go, once there is something to judge by."""
    trial: Trial | None = None
    """The trial that has just ended, if one has."""


Watch = Callable[[Progress], None]


def value_of(result: dict) -> Any:
    """Return the value in a job's result.

    Raises
    ------
    QuantolabError
        What the job raised.
    """
    if "error" not in result:
        return result["value"]
    raise getattr(errors, result["error"], JobFailed)(result["message"])


class Session:
    """Children for one request, and the tale of how far it is. Use as a context manager.

    Parameters
    ----------
    request : Request
        What is asked for. Planning puts the resolved device into it.
    total : int
        Pictures that will be made.
    watch : callable
        Called with a `Progress` at each event.
    cancel : threading.Event or None
        Ends the job in progress when set.
    stall_seconds : float
        After how long without an event a job counts as hung.
    """

    def __init__(
        self,
        request: Request,
        *,
        total: int,
        watch: Watch,
        cancel: threading.Event | None,
        stall_seconds: float,
    ) -> None:
        self.request = request
        self.stage, self.label = "starting", None
        self.done = 0
        self.total = total
        self._watch = watch
        self._cancel = cancel
        self._stall_seconds = stall_seconds
        self._started = time.monotonic()
        self._first_picture: float | None = None
        self._since_first = 0
        source = request.source
        classes = [("diffusers", source.pipeline), *((c.library, c.cls) for c in source.components)]
        self._children = Children(classes)

    def __enter__(self) -> Session:
        self.tell()
        self._children.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._children.__exit__(*error)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def tell(self, trial: Trial | None = None) -> None:
        """Let the watcher know how things stand."""
        eta = None
        if self._since_first and self._first_picture is not None:
            each = (time.monotonic() - self._first_picture) / self._since_first
            eta = max(0.0, each * (self.total - self.done))
        self._watch(
            Progress(self.stage, self.label, self.done, self.total, self.elapsed, eta, trial)
        )

    def enter_stage(self, stage: str, label: str | None = None) -> None:
        """Go on to another stage and tell it."""
        self.stage, self.label = stage, label
        self.tell()

    def job(self, request: dict, folder: Path) -> dict:
        """Do a job in a child and return its value, or raise what it says.

        Raises
        ------
        QuantolabError
            What the job raised, `JobFailed` if its process ended without a result, `Cancelled`
            if the user ended it.
        """
        result = self._children.run(
            request,
            folder=folder,
            watch=self._on_event,
            cancel=self._cancel,
            stall_seconds=self._stall_seconds,
        )
        return value_of(result)

    def plan(self) -> dict[str, dict]:
        """Resolve the device, and bytes and layers of each recipe, in a child; by recipe label.

        This process stays light, and nothing is written.
        """
        self.enter_stage("planning")
        request = self.request
        with tempfile.TemporaryDirectory(prefix="quantolab-plan-") as folder:
            plan = self.job(
                {
                    "kind": "plan",
                    "model": str(request.source.folder),
                    "device": request.workload.device,
                    "dtype": request.workload.dtype,
                    "components": request.components,
                    "recipes": [r.to_dict() for r in request.recipes],
                },
                Path(folder),
            )
        workload = dataclasses.replace(request.workload, device=plan["device"])
        self.request = dataclasses.replace(request, workload=workload)
        return {r.label: p for r, p in zip(request.recipes, plan["plans"], strict=True)}

    def encode(self, work: Path) -> Path | None:
        """Encode the prompts once for all trials and return the file.

        None if text encoders are among what is quantized, or the pipeline takes only text.
        """
        if any(name.startswith("text_encoder") for name in self.request.components):
            return None
        self.enter_stage("encoding prompts")
        path = work / "prompts.safetensors"
        workload = self.request.workload
        value = self.job(
            {
                "kind": "encode",
                "model": str(self.request.source.folder),
                "prompts": workload.prompts,
                "dtype": workload.dtype,
                "device": workload.device,
                "encoded": str(path),
            },
            work / "encode",
        )
        return path if value["encoded"] else None

    def trial_request(self, trial: Trial, encoded: Path | None) -> dict:
        """Return what a child needs to know to run a trial."""
        workload = self.request.workload
        return {
            "kind": "trial",
            "model": str(self.request.source.folder),
            "recipe": trial.recipe.to_dict(),
            "components": self.request.components,
            "compiled": trial.compiled,
            "prompts": workload.prompts,
            "pairs": workload.pairs,
            "steps": workload.steps,
            "guidance": workload.guidance,
            "size": workload.size,
            "dtype": workload.dtype,
            "device": workload.device,
            "repeats": workload.repeats,
            "encoded": str(encoded) if encoded else None,
        }

    def _on_event(self, event: dict) -> None:
        if event["event"] == "stage":
            self.stage = event["stage"]
        elif event["event"] == "picture":
            self.done += 1
            if self._first_picture is None:
                self._first_picture = time.monotonic()
            else:
                self._since_first += 1
        self.tell()
