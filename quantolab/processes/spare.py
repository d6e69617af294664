"""A server that nobody uses for the moment, kept for whoever needs one like it next.

Its imports take seconds. It holds no model and no thread, so one that has served is as good as a
new one, as long as nothing has changed that a new one would see. It ends after a while, and with
this process at the latest, however that ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .jobs import Preload

IDLE_SECONDS = 300.0
"""For how long one is kept."""

# Names that change from moment to moment and tell a child nothing.
_OF_NO_ACCOUNT = {"PYTEST_CURRENT_TEST", "_", "OLDPWD", "SHLVL", "COLUMNS", "LINES"}


class Server(Protocol):
    """What is kept."""

    @property
    def gone(self) -> bool:
        """Whether it has ended."""

    def close(self) -> None:
        """End it."""

    def let_go(self) -> None:
        """Let go of it in a process that was forked off: it belongs to the other one."""


@dataclass(frozen=True)
class Circumstances:
    """Everything that a server takes over from the process that starts it."""

    preload: Preload
    environment: tuple[tuple[str, str], ...]
    folder: Path | None
    """The current one, if what is imported depends on it. Jobs go where theirs is by themselves."""
    limits: tuple[object, ...]
    """Processors that may be used, and the system's limits on a process."""
    code: tuple[object, ...]
    """When the code that it imported was written, ours and what was installed."""

    def suits(self, wanted: Circumstances) -> bool:
        """Return whether a server of these circumstances is as good as one of the wanted ones."""
        ours, theirs = self.preload, wanted.preload
        return (
            set(theirs.classes) <= set(ours.classes)
            and (theirs.modules, theirs.without_cuda) == (ours.modules, ours.without_cuda)
            and (self.environment, self.folder) == (wanted.environment, wanted.folder)
            and (self.limits, self.code) == (wanted.limits, wanted.code)
        )


def circumstances(preload: Preload, extra: Mapping[str, str]) -> Circumstances:
    """Return what a server that is started now would take over."""
    environment = {**os.environ, **extra}
    return Circumstances(
        preload,
        tuple(sorted((k, v) for k, v in environment.items() if k not in _OF_NO_ACCOUNT)),
        current_folder() if _imports_from_it(environment) else None,
        _limits(),
        _code(),
    )


def current_folder() -> Path | None:
    """Return the current folder; None if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def _imports_from_it(environment: Mapping[str, str]) -> bool:
    """Return whether a child finds modules by a path that is relative to the current folder."""
    named = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return not all(map(os.path.isabs, named))


def _limits() -> tuple[object, ...]:
    found: list[object] = []
    if hasattr(os, "sched_getaffinity"):
        found.append(frozenset(os.sched_getaffinity(0)))
    if hasattr(os, "getpriority"):
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
    if sys.platform != "win32":
        import resource

        names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
        found += [resource.getrlimit(getattr(resource, name)) for name in names]
    return tuple(found)


def _code() -> tuple[object, ...]:
    """Return when the folders of libraries and each of our own files were changed last."""
    home = Path(__file__).resolve().parents[1]
    # Not the current folder, which may be on the path too: runs are written into it.
    installed = [p for p in map(Path, sys.path) if p.name in ("site-packages", "dist-packages")]
    places = (*installed, *sorted(home.rglob("*.py")))
    return tuple((str(place), _changed(place)) for place in places)


def _changed(place: Path) -> int | None:
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return None


class Spare:
    """A place for one server that waits; several threads may take from it and put into it.

    Parameters
    ----------
    idle_seconds : float
        For how long it waits.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._begin()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Circumstances, Server] | None = None
        self._timer: threading.Timer | None = None

    def take(self, wanted: Circumstances) -> Server | None:
        """Return the server that waits, if it suits; one that doesn't is ended."""
        kept = self._emptied()
        if kept is None:
            return None
        had, server = kept
        if not server.gone and had.suits(wanted):
            return server
        server.close()
        return None

    def put(self, had: Circumstances, server: Server) -> None:
        """Keep a server that has nothing to do; one that waits already is ended."""
        self.close()
        timer = threading.Timer(self._idle_seconds, self._close_if, (server,))
        timer.daemon = True
        with self._lock:
            before, self._kept, self._timer = self._kept, (had, server), timer
        if before is not None:  # another thread was as quick
            before[1].close()
        timer.start()

    def close(self) -> None:
        """End the server that waits, if there is one."""
        kept = self._emptied()
        if kept is not None:
            kept[1].close()

    def _close_if(self, server: Server) -> None:
        with self._lock:
            if self._kept is None or self._kept[1] is not server:
                return
            self._kept = None
        server.close()

    def _emptied(self) -> tuple[Circumstances, Server] | None:
        with self._lock:
            kept, self._kept = self._kept, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return kept

    def _forked(self) -> None:
        kept = self._kept
        self._begin()
        if kept is not None:
            kept[1].let_go()
