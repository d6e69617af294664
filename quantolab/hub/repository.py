"""A repository of the Hub, seen through its list of files, and its files brought here."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
from tqdm import tqdm

from ..errors import BrokenModelError, Cancelled, ModelNotFoundError, OutputError, QuantolabError
from ..units import format_bytes, format_seconds
from .names import HubName, endpoint
from .sentences import cached_names, is_passing, sentence_for, told_to_wait
from .watching import Fetching, FetchWatch, asked_to_end, watcher

Value = TypeVar("Value")

_POLL_SECONDS = 0.1  # how soon Ctrl-C and cancel are heard
_LEAVE_SECONDS = 0.5  # what threads get to notice
_AT_ONCE = 8  # files, as huggingface_hub does by itself
_TRIES = 5  # at a file, each of which got some of it
_LONGEST_WAIT = 600.0  # for a rate limit; a longer one is told instead
_CHUNK = 1 << 16  # bytes between two looks at whether to end; what a cut connection costs
_INDEX = "model_index.json"


@dataclass(frozen=True)
class Repository:
    """What lies in a repository at one commit."""

    name: HubName
    folder: Path
    """Where its files are in the cache, as far as they are there."""
    commit: str
    files: dict[str, int]
    """Bytes by path."""
    whole: bool
    """Whether `files` is the hub's own list; else only what the cache has is known."""
    blobs: dict[str, str] = field(default_factory=dict, repr=False)
    """Git's digest by path."""

    def has(self, path: str) -> bool:
        """Return whether a file is in the cache."""
        return (self.folder / path).is_file()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those that aren't in the cache."""
        return [path for path in dict.fromkeys(paths) if not self.has(path)]


def open_repository(name: HubName) -> Repository:
    """Return what lies in a repository; its ``model_index.json`` is then in the cache.

    One list of files a commit is asked for and kept in the cache. Without a connection the cache
    answers.

    Parameters
    ----------
    name : HubName
        What is meant.

    Raises
    ------
    ModelNotFoundError, OutputError
        With one sentence for each answer of a hub.
    Cancelled
        If `watching` was told to end.
    """
    try:
        with watcher() as watch:
            return _patiently(lambda: _open(name), str(name), watch)
    except QuantolabError:
        raise
    except Exception as error:
        refs = _refs(error, name)
        meant = None if refs is None else _with_slashes(name, refs)
        if meant is None:
            raise sentence_for(error, name, refs or ()) from None
    return open_repository(meant)


def fetch(repository: Repository, paths: Iterable[str], *, quiet: bool = False) -> None:
    """Bring files of a repository into the cache, as far as they aren't there.

    Parameters
    ----------
    repository : Repository
        From `open_repository`.
    paths : iterable of str
        Files in it.
    quiet : bool
        Whether nobody needs to watch: they are a few kilobytes. A wait is told all the same.

    Raises
    ------
    ModelNotFoundError
        If they can't be had; the text says which are missing.
    OutputError
        If the disk is too small for them: before anything is fetched.
    BrokenModelError
        If one arrives changed, twice.
    Cancelled
        If `watching` was told to end; whole files are kept.
    """
    wanted = list(dict.fromkeys(paths))
    missing = repository.missing(wanted)
    if not missing:
        return
    name = repository.name
    _refuse_offline(repository, wanted, missing)
    _check_space(repository, missing)
    _sweep(repository)
    download = _Download(repository, wanted, missing)
    try:
        with watcher() as watch:
            download.run((lambda now: watch(now) if now.note else None) if quiet else watch)
    except QuantolabError:
        raise
    except Exception as error:
        said = sentence_for(error, name, repository.files)
        raise type(said)(f"{said}{_state(repository, wanted)}") from None


def read_header(repository: Repository, path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of each tensor of a safetensors file that isn't fetched for that.

    Raises
    ------
    ModelNotFoundError
        As for `fetch`.
    BrokenModelError
        If it is no safetensors file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    name = repository.name
    _refuse_offline(repository, [path], [path])
    try:
        found = _in_background(
            lambda: HfApi().parse_safetensors_file_metadata(
                name.repo, path, revision=repository.commit
            )
        )
    except SafetensorsParsingError as error:
        raise BrokenModelError(f"{name.repo}/{path} is no safetensors file: {error}") from None
    except QuantolabError:
        raise
    except Exception as error:
        raise sentence_for(error, name, repository.files) from None
    return {key: (info.dtype, tuple(info.shape)) for key, info in found.tensors.items()}


# --- looking ------------------------------------------------------------------------------


def _open(name: HubName) -> Repository:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    revision = _resolve(name)
    commit = revision.resolved
    try:
        with _quiet_library():
            folder = snapshot_download(
                name.repo, revision=revision, allow_patterns=[_INDEX], tqdm_class=_Silent
            )
    except IncompleteSnapshotError as error:
        folder = str(error.snapshot_path)
        if not constants.is_offline_mode():
            raise
    files, blobs, whole = _listing(name, commit, Path(folder))
    return Repository(name, Path(folder), commit, files, whole, blobs)


def _resolve(name: HubName) -> Any:
    """Return the commit that is meant; the cache's if the hub doesn't tell it any more."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    api = HfApi()
    try:
        return api.resolve_revision(
            name.repo, revision=name.revision, local_files_only=constants.is_offline_mode()
        )
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403) or name.repo not in cached_names():
            raise
        try:  # a token ran out, say: what was fetched before is still ours
            return api.resolve_revision(name.repo, revision=name.revision, local_files_only=True)
        except RevisionResolutionError:
            raise error from None


def _listing(name: HubName, commit: str, folder: Path) -> tuple[dict, dict, bool]:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        found = get_cached_repo_tree(name.repo, revision=commit)
    except CachedRepoTreeNotFoundError:
        inside = [p for p in folder.rglob("*") if p.is_file()]
        return {p.relative_to(folder).as_posix(): p.stat().st_size for p in inside}, {}, False
    return {f.path: f.size for f in found}, {f.path: f.blob_id for f in found}, True


def _refs(error: BaseException, name: HubName) -> list[str] | None:
    """Return which branches and tags there are, where the one that was named isn't; else None."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError, RevisionResolutionError

    if isinstance(error, RevisionResolutionError) and constants.is_offline_mode():
        known = Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}" / "refs"
        return [p.relative_to(known).as_posix() for p in known.rglob("*") if p.is_file()]
    if not isinstance(error, RevisionNotFoundError):
        return None
    try:
        refs = _in_background(lambda: HfApi().list_repo_refs(name.repo))
    except QuantolabError:
        raise
    except Exception:
        return []  # the hub said that the revision isn't there; that is enough
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _with_slashes(name: HubName, refs: list[str]) -> HubName | None:
    """Return a name whose revision goes on behind a slash, as branches may be called."""
    whole = f"{name.revision}/{name.path}/"
    found = [ref for ref in refs if "/" in ref and whole.startswith(f"{ref}/")]
    if not found or found == [name.revision]:
        return None
    ref = max(found, key=len)
    return replace(name, revision=ref, path=whole[len(ref) + 1 :].rstrip("/"))


def _refuse_offline(repository: Repository, wanted: list[str], missing: list[str]) -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise ModelNotFoundError(
            f"{repository.name} isn't whole in the local cache, and HF_HUB_OFFLINE forbids to "
            f"fetch the rest{_state(repository, wanted)}"
        )
    unknown = [path for path in missing if path not in repository.files]
    if unknown and repository.whole:
        raise ModelNotFoundError(f"{repository.name} has no file {unknown[0]!r}")


def _state(repository: Repository, wanted: list[str]) -> str:
    """Return what is in the cache and what is missing, as the end of a sentence."""
    files = repository.files
    missing = sorted(repository.missing(wanted), key=lambda path: -files.get(path, 0))
    if not missing:
        return ""
    named = ", ".join(
        f"{path} ({format_bytes(files[path])})" if path in files else path for path in missing[:5]
    )
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    here = f"{len(wanted) - len(missing)} of {len(wanted)} files"
    return f"; in the cache: {here}; missing: {named}{more}"


def _check_space(repository: Repository, missing: list[str]) -> None:
    needed = sum(repository.files.get(path, 0) for path in missing)
    place = repository.folder
    while not place.is_dir() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"{repository.name} needs {format_bytes(needed)} in the Hub's cache, and its disk has "
            f"{format_bytes(free)} free; nothing was fetched (another place: HF_HUB_CACHE)"
        )


# --- fetching -----------------------------------------------------------------------------


class _Silent(tqdm):
    """A bar that nobody sees."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.pop("name", None)
        super().__init__(*args, **{**options, "disable": True})


_running: list[_Download] = []  # in this process


class _Ended(Exception):
    """Raised in a thread that fetches, when nobody wants the file any longer."""


class _Download:
    """Some files on their way, each in a thread of its own."""

    def __init__(self, repository: Repository, wanted: list[str], missing: list[str]) -> None:
        self._repository = repository
        self._sizes = {path: repository.files.get(path, 0) for path in wanted}
        self._far = {path: 0 if path in missing else size for path, size in self._sizes.items()}
        self._files = missing
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for path in sorted(missing, key=lambda path: -self._sizes[path]):
            self._waiting.put(path)
        self._errors: list[BaseException] = []
        self._end = threading.Event()
        self._note = ""

    def run(self, watch: FetchWatch) -> None:
        """Fetch all; raise the first error, after the other files were given up."""
        _running.append(self)
        try:
            self._run(watch)
        finally:
            _running.remove(self)

    def _run(self, watch: FetchWatch) -> None:
        count = min(_AT_ONCE, len(self._files))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        with _small_chunks():
            for thread in threads:
                thread.start()
            try:
                while any(thread.is_alive() for thread in threads):
                    watch(self._now())
                    if asked_to_end():
                        raise Cancelled(f"fetching {self._repository.name} was cancelled")
                    _join(threads, _POLL_SECONDS)
            finally:
                self._end.set()
                _join(threads, _LEAVE_SECONDS)
                self._leave_nothing(any(thread.is_alive() for thread in threads))
                _sweep(self._repository)
        if self._errors:
            raise self._errors[0]
        watch(self._now())

    def _now(self) -> Fetching:
        done = sum(self._far.values())
        total = sum(self._sizes.values())
        return Fetching(str(self._repository.name), done, total, len(self._files), self._note)

    def _work(self) -> None:
        while not self._end.is_set():
            try:
                path = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._bring(path)
            except _Ended:
                return
            except BaseException as error:
                self._errors.append(error)
                self._end.set()

    def _bring(self, path: str) -> None:
        from huggingface_hub import hf_hub_download

        repository, tries, again = self._repository, _TRIES, False
        while True:
            try:
                found = hf_hub_download(
                    repository.name.repo,
                    path,
                    revision=repository.commit,
                    tqdm_class=self._counter(path),
                    force_download=again,
                )
            except Exception as error:
                if self._end.is_set():
                    raise _Ended from error
                tries -= 1
                wait = told_to_wait(error)
                if tries <= 0 or not (wait is not None or is_passing(error)):
                    raise
                self._pause(1.0 if wait is None else wait, wait is not None, error)
                continue
            if _arrived(repository, path, Path(found)):
                self._far[path] = self._sizes[path] = Path(found).stat().st_size
                return
            _forget(Path(found))
            if again:
                raise BrokenModelError(
                    f"{repository.name}: {path} arrived changed twice (its digest isn't the one "
                    "that the hub names), and was thrown away"
                )
            again = True

    def _pause(self, seconds: float, limited: bool, error: BaseException) -> None:
        if seconds > _LONGEST_WAIT:
            raise error
        if limited:
            self._note = _limit_note(seconds)
        if self._end.wait(seconds):
            raise _Ended
        self._note = ""

    def _counter(self, path: str) -> Any:
        """Return what the library makes a bar of; it counts, and ends what isn't wanted."""
        download = self

        class Counter(_Silent):
            def __init__(self, *args: Any, **options: Any) -> None:
                if download._end.is_set():
                    raise _Ended
                super().__init__(*args, **options)
                self._got = int(options.get("initial") or 0)

            def update(self, n: float | None = 1) -> None:
                if download._end.is_set():
                    raise _Ended
                self._got += int(n or 0)
                size = download._sizes[path] or self._got
                # Two bars count a file that comes in pieces (network and disk): the further one.
                download._far[path] = max(download._far[path], min(size, self._got))

        return Counter

    def _leave_nothing(self, alive: bool) -> None:
        """Remove pieces of files that threads hold which didn't end: they may wait for a byte."""
        if not alive or len(_running) > 1:
            return
        _abort_xet()
        _shut_connections()  # who waits for a byte holds a file's lock, and the next try waits
        blobs = self._repository.folder.parents[1] / "blobs"
        with contextlib.suppress(psutil.Error, OSError):
            for opened in psutil.Process().open_files():
                piece = Path(opened.path)
                if piece.parent == blobs.resolve() and piece.suffix == ".incomplete":
                    piece.unlink(missing_ok=True)


def _sweep(repository: Repository) -> None:
    """Remove pieces of files that nobody fetches any longer: the library goes on with none.

    Who fetches a file holds its lock, in whichever process; a piece without one was left behind.
    """
    from filelock import FileLock, Timeout

    home = repository.folder.parents[1]
    for piece in (home / "blobs").glob("*.incomplete"):
        lock = home.parent / ".locks" / home.name / f"{piece.name.partition('.')[0]}.lock"
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
            piece.unlink(missing_ok=True)


def _join(threads: list[threading.Thread], seconds: float) -> None:
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _abort_xet() -> None:
    """End transfers of hf_xet, which run beside Python's threads, as its own Ctrl-C does."""
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:
        return
    abort_xet_session()


def _shut_connections() -> None:
    """Wake threads that wait for a byte: shut the sockets of the library's session.

    Closing them from another thread wouldn't wake anybody (``man 2 shutdown``). The pool that holds
    them has no public name; where it is another, threads wait until the library's own timeout.
    """
    from huggingface_hub import get_session

    with contextlib.suppress(AttributeError):
        for connection in get_session()._transport._pool.connections:
            stream = connection._connection._network_stream
            with contextlib.suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@contextmanager
def _small_chunks() -> Iterator[None]:
    """Have the library look up more often than each 10 MB, while a download may be ended."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = min(before, _CHUNK)
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


def _arrived(repository: Repository, path: str, file: Path) -> bool:
    """Return whether a file is what the hub's list says, as far as it says it by a digest."""
    from huggingface_hub.utils.sha import git_hash

    name = file.resolve().name  # a blob is named after its ETag
    if len(name) == 64:  # of what is kept apart from git: weights
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == name
    if len(name) == 40 and repository.blobs.get(path) == name:
        return git_hash(file.read_bytes()) == name
    return True


def _forget(file: Path) -> None:
    blob = file.resolve()
    file.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


# --- both ---------------------------------------------------------------------------------


def _patiently(call: Callable[[], Value], what: str, watch: FetchWatch) -> Value:
    """Return what a call returns, after the waits that a hub's rate limit tells."""
    for _ in range(_TRIES):
        try:
            return _in_background(call)
        except Exception as error:
            wait = told_to_wait(error)
            if wait is None or wait > _LONGEST_WAIT:
                raise
            watch(Fetching(what, 0, 0, 0, _limit_note(wait)))
            _sleep(wait, what)
    return _in_background(call)


def _limit_note(seconds: float) -> str:
    return f"{endpoint()} was asked too often and wants a wait of {format_seconds(seconds)}"


def _sleep(seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0:
        if asked_to_end():
            raise Cancelled(f"fetching {what} was cancelled")
        time.sleep(min(_POLL_SECONDS, rest))


def _in_background(call: Callable[[], Value]) -> Value:
    """Return what a call returns; Ctrl-C and cancel are heard while it waits for the network."""
    found: list[Value] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if asked_to_end():
            raise Cancelled("asking the Hub was cancelled")
    if errors:
        raise errors[0]
    return found[0]


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep the library from saying that nothing matched: repositories may lack an index."""
    import logging

    logger = logging.getLogger("huggingface_hub._snapshot_download")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No files matched")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
