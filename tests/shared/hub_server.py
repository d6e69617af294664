"""A small hub on this machine: what huggingface_hub asks of one, and a record of what was sent.

It answers as the real one does: API of models, trees and refs, files with ETag, commit and ranges,
``X-Error-Code`` with errors. A repository is a folder; switches make it gated, slow or broken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "GoodToken" * 4


@dataclass
class Answer:
    """What a hub says instead of what was asked for."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "no"}'
    times: float = float("inf")


@dataclass
class Repo:
    """One repository and how it behaves."""

    folder: Path
    gated: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """By file, after how many bytes of each answer the connection breaks; one a request."""
    bytes_per_second: float | None = None
    stall_after: int | None = None
    """After how many bytes of a file nothing more comes."""
    changed: dict[str, int] = field(default_factory=dict)
    """By file, how often it arrives changed."""
    files_answer: Answer | None = None
    api_answer: Answer | None = None
    tags: tuple[str, ...] = ("v1",)

    @property
    def files(self) -> list[str]:
        """Paths of all files."""
        paths = (p for p in self.folder.rglob("*") if p.is_file())
        return sorted(p.relative_to(self.folder).as_posix() for p in paths)

    @property
    def commit(self) -> str:
        """A commit that changes with the files."""
        said = [f"{f}:{_digest(self.folder / f)}" for f in self.files]
        return hashlib.sha1("\n".join(said).encode()).hexdigest()


class HubServer:
    """The hub; use as a context manager.

    Attributes
    ----------
    repos : dict
        `Repo` by ``OWNER/NAME``.
    sent : Counter
        Bytes of each file that were sent, by (repo, path).
    requests : list
        (method, path, range, whether a token came).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.sent: Counter[tuple[str, str]] = Counter()
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.lock = threading.Lock()
        self.everything: Answer | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, folder: Path, **switches) -> Repo:
        """Put a folder up as a repository."""
        self.repos[name] = Repo(folder, **switches)
        return self.repos[name]

    def forget(self) -> None:
        """Begin the record anew."""
        self.sent.clear()
        self.requests.clear()

    def sent_of(self, name: str) -> dict[str, int]:
        """Return the bytes that were sent of each file of a repository."""
        return {path: n for (repo, path), n in self.sent.items() if repo == name}


def _digest(path: Path) -> str:
    """Return a file's ETag: SHA-256 where it is kept apart from git, else git's own digest."""
    seen = path.stat()
    return _digest_of(path, seen.st_mtime_ns, seen.st_size)


@cache
def _digest_of(path: Path, changed: int, size: int) -> str:
    data = path.read_bytes()
    if _is_lfs(path.name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".msgpack", ".png", ".onnx"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        """The hub that this answers for."""
        return self.server.hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range"), token))
        if self.hub.everything is not None:
            self.answer(self.hub.everything)
            return
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:], token)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), token)
        else:
            self.error(404, "EntryNotFound", "Entry not found")

    do_HEAD = do_GET

    def api(self, name: str, rest: list[str], token: str | None) -> None:
        repo = self.hub.repos.get(name)
        if token is not None and token != TOKEN:
            self.error(401, None, "Invalid credentials in Authorization header")
        elif repo is None:
            status = 404 if token else 401
            self.error(status, "RepoNotFound", "Repository not found")
        elif self.instead(repo.api_answer):
            pass
        elif rest[:1] == ["refs"]:
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}]
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": repo.commit}
                for tag in repo.tags
            ]
            self.json({"branches": branches, "tags": tags, "converts": []})
        elif len(rest) > 1 and rest[1] not in ("main", repo.commit, *repo.tags):
            self.error(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        elif rest[:1] == ["tree"]:
            self.json([_entry(repo.folder, path) for path in repo.files])
        else:
            siblings = [{"rfilename": path} for path in repo.files]
            self.json({"_id": "1", "id": name, "sha": repo.commit, "siblings": siblings,
                       "private": False, "gated": repo.gated, "tags": [], "downloads": 0,
                       "likes": 0})  # fmt: skip

    def file(self, name: str, revision: str, path: str, token: str | None) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self.error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif token is not None and token != TOKEN:
            self.error(401, None, "Invalid credentials in Authorization header")
        elif repo.gated and token is None:
            said = (
                f"Access to model {name} is restricted. You must have access to it and be "
                "authenticated to access it. Please log in."
            )
            self.error(401, "GatedRepo", said)
        elif self.instead(repo.files_answer):
            pass
        elif path not in repo.files:
            self.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
        else:
            self.send_file(name, repo, path)

    def send_file(self, name: str, repo: Repo, path: str) -> None:
        data = (repo.folder / path).read_bytes()
        etag, size, start = _digest(repo.folder / path), len(data), 0
        end = size - 1
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        for key, value in {
            "ETag": f'"{etag}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes",
            "Content-Length": str(end + 1 - start),
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if repo.changed.get(path, 0) > 0:
            repo.changed[path] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.body(name, repo, path, data[start : end + 1])

    def body(self, name: str, repo: Repo, path: str, data: bytes) -> None:
        with self.hub.lock:
            cuts = repo.cuts.get(path)
            cut = cuts.pop(0) if cuts else None
        rate, at = repo.bytes_per_second, 0
        step = 1 << 16 if rate is None else max(1, int(rate / 20))
        while at < len(data):
            if repo.stall_after is not None and at >= repo.stall_after:
                time.sleep(60)
            piece = data[at : at + step]
            if cut is not None:
                piece = piece[: max(0, cut - at)]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            with self.hub.lock:
                self.hub.sent[(name, path)] += len(piece)
            at += len(piece)
            if cut is not None and at >= cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if rate is not None:
                time.sleep(step / rate)

    # -- ways of answering

    def instead(self, answer: Answer | None) -> bool:
        if answer is None or answer.times <= 0:
            return False
        answer.times -= 1
        self.answer(answer)
        return True

    def answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def json(self, value: object) -> None:
        self.answer(Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode()))

    def error(self, status: int, code: str | None, said: str, more: dict | None = None) -> None:
        headers = {"X-Error-Message": said, **(more or {})}
        if code:
            headers["X-Error-Code"] = code
        self.answer(Answer(status, headers, json.dumps({"error": said}).encode()))


def _entry(folder: Path, path: str) -> dict:
    size, digest = (folder / path).stat().st_size, _digest(folder / path)
    entry: dict = {"type": "file", "path": path, "size": size, "oid": digest}
    if _is_lfs(path):
        pointer = hashlib.sha1(digest.encode()).hexdigest()
        entry |= {"oid": pointer, "lfs": {"oid": digest, "size": size, "pointerSize": 130}}
    return entry


# -- repositories in the layouts that people publish


def layouts(pipeline: Path, home: Path) -> dict[str, Path]:
    """Return ten repositories made of one tiny pipeline, by what is peculiar about each."""
    make: dict[str, Callable[[Path], None]] = {
        "variants": lambda f: _each(f, _add_half),
        "sharded": lambda f: _shard(f / "transformer"),
        "both-formats": lambda f: _each(f, _add_pickle),
        "extra-folders": _add_folders,
        "fp16-only": lambda f: _each(f, _add_half, alone=True),
        "sharded-fp16-only": _only_half_shards,
        "single-files": _add_single_files,
        "gated": lambda f: None,
        "renamed": lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").rename(
            f / "transformer" / "tiny-denoiser.safetensors"
        ),
        "two-denoisers": _second_denoiser,
    }
    found = {}
    for name, change in make.items():
        found[name] = home / name
        shutil.copytree(pipeline, home / name)
        (home / name / "README.md").write_text("# a model\n")
        change(home / name)
    return found


def weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a pipeline's parts."""
    return sorted(folder.glob("*/*.safetensors"))


def _half(path: Path) -> dict:
    from safetensors.torch import load_file

    return {name: t.half() for name, t in load_file(path).items()}


def _each(folder: Path, change, **options) -> None:
    for path in weights(folder):
        change(path, **options)


def _add_half(path: Path, alone: bool = False) -> None:
    from safetensors.torch import save_file

    save_file(
        _half(path), path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"}
    )
    if alone:
        path.unlink()


def _add_pickle(path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path), path.with_name(f"{path.stem}.bin"))


def _shard(folder: Path, variant: str = "") -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = _half(path) if variant else load_file(path)
    size = sum(t.nbytes for t in tensors.values()) // 3
    word = f".{variant}" if variant else ""
    split = split_torch_state_dict_into_shards(
        tensors,
        max_shard_size=size,
        filename_pattern="diffusion_pytorch_model" + word + "{suffix}.safetensors",
    )
    for name, keys in split.filename_to_tensors.items():
        save_file({k: tensors[k] for k in keys}, folder / name, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / f"diffusion_pytorch_model.safetensors.index{word}.json").write_text(json.dumps(index))
    path.unlink()


def _only_half_shards(folder: Path) -> None:
    _shard(folder / "transformer", "fp16")
    for path in weights(folder):
        if "fp16" not in path.name:
            _add_half(path, alone=True)


def _another(folder: Path, name: str) -> None:
    """Put another model of the same kind beside one: a cache keeps the same content once."""
    from safetensors.torch import load_file, save_file

    beside = folder.with_name(name)
    shutil.copytree(folder, beside)
    for path in beside.glob("*.safetensors"):
        tensors = {key: t + 1 for key, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _add_folders(folder: Path) -> None:
    _another(folder / "vae", "vae_1_0")
    _another(folder / "transformer", "unused_lora")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"\0" * 50_000)
    (folder / "text_encoder" / "openvino_model.bin").write_bytes(b"\0" * 30_000)
    (folder / "transformer" / "nested").mkdir()
    (folder / "transformer" / "nested" / "model.safetensors").write_bytes(b"\0" * 20_000)
    (folder / "assets").mkdir()
    (folder / "assets" / "teaser.png").write_bytes(b"\0" * 40_000)


def _add_single_files(folder: Path) -> None:
    weights_file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights_file, folder / "tiny.safetensors")
    (folder / "other.safetensors").write_bytes(b"\0" * 60_000)


def _second_denoiser(folder: Path) -> None:
    _another(folder / "transformer", "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
