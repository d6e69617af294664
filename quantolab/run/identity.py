"""What makes a run the same: the content of its model, told before and watched while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import BrokenModelError, QuantolabError
from ..files.choosing import STEMS, SUFFIX, weight_files
from ..files.digests import Stamp, file_digest, stamp_of
from ..files.json_objects import read_object
from ..models.source import Source
from ..records import ModelContent, Workload

_TEXTS = ("*.json", "*.txt", "*.model")
_INDEX = ".index.json"  # counts where it chose the weights


class ContentWatch:
    """A model's content: read once, in a thread; afterwards only whether it changed.

    Parameters
    ----------
    source : Source
        The model. A Hub commit stands for all of its files, and none is read.
    cancel : threading.Event or None
        Ends the reading when set.
    """

    def __init__(self, source: Source, cancel: threading.Event | None = None) -> None:
        self._source = source
        self._cancel = cancel
        self._stamps: dict[str, Stamp] = {}
        self._digests: dict[str, str] = {}
        self._done = self._total = 0
        self._error: QuantolabError | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, name="model's content", daemon=True)

    def begin(self) -> None:
        """Begin to read."""
        if self._source.revision is None:
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for at most so long, and return whether all is read.

        Raises
        ------
        BrokenModelError
            If a file can't be read.
        Cancelled
            If that was asked for.
        """
        if self._source.revision is None:
            self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    @property
    def share(self) -> float:
        """Share of the bytes that have been read."""
        return self._done / self._total if self._total else 0.0

    @property
    def content(self) -> ModelContent:
        """What was read."""
        return ModelContent(self._source.revision, dict(self._digests))

    def changed(self) -> str | None:
        """Return the name of a file that no longer holds what it held, if there is one."""
        for name, stamp in self._stamps.items():
            path = self._source.folder / name
            try:
                now = stamp_of(path)
                if now == stamp:
                    continue
                if file_digest(path, cancel=self._cancel) != self._digests[name]:
                    return name
                self._stamps[name] = now  # touched alone
            except BrokenModelError:
                return name
        return None

    def _read(self) -> None:
        try:
            paths = sorted(set(content_files(self._source)))
            names = [path.relative_to(self._source.folder).as_posix() for path in paths]
            stamps = [stamp_of(path) for path in paths]
            self._total = sum(stamp[0] for stamp in stamps)
            for name, path, stamp in zip(names, paths, stamps, strict=True):
                self._digests[name] = file_digest(path, self._tell, self._cancel)
                self._stamps[name] = stamp
        except QuantolabError as error:
            self._error = error

    def _tell(self, count: int) -> None:
        self._done += count


def content_files(source: Source) -> Iterator[Path]:
    """Yield the files that decide what a pipeline makes: configuration, words, weights."""
    index = source.folder / "model_index.json"
    yield index
    for name, entry in read_object(index).items():
        folder = source.folder / name
        if not isinstance(entry, list) or Path(name).name != name or not folder.is_dir():
            continue
        for pattern in _TEXTS:
            yield from (p for p in folder.glob(pattern) if not p.name.endswith(_INDEX))
        library = str(entry[0]) if entry else ""
        yield from _weights(folder, library, source.asked_variant)


def _weights(folder: Path, library: str, variant: str | None) -> Iterator[Path]:
    try:
        if library in STEMS:
            found = weight_files(folder, library, variant=variant)
            yield from (*found.paths, *((found.index,) if found.index else ()))
            return
    except BrokenModelError:
        pass  # whoever loads it says why, if anybody does
    yield from folder.glob("*" + SUFFIX)


def differences(earlier: Workload, now: Workload, *, but: tuple[str, ...] = ()) -> str:
    """Return in words what is asked for otherwise than before; empty if nothing is."""
    names = [name for name in vars(now) if name not in but]
    return "; ".join(
        f"{name} was {getattr(earlier, name)!r}, now {getattr(now, name)!r}"
        for name in names
        if getattr(earlier, name) != getattr(now, name)
    )


def other_content(earlier: ModelContent, now: ModelContent) -> str:
    """Return in words how two models differ; empty if they hold the same."""
    if earlier.commit != now.commit:
        return f"its commit was {earlier.commit}, now {now.commit}"
    names = sorted(earlier.files.keys() | now.files.keys())
    other = [name for name in names if earlier.files.get(name) != now.files.get(name)]
    if not other:
        return ""
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return f"other content in {', '.join(other[:3])}{more}"
