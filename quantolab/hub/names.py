"""What people paste to name something on the Hub, read as one kind of name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import ArgumentError

_PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_AROUND = "'\"`<>\u2018\u2019\u201c\u201d,; \t\r\n"  # what is copied along, seen from both sides
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?P<path>/[^?#@]*)?")
_BAD_REVISION = re.compile(rf"{_PART}/{_PART}\s*@(?P<said>.*)", re.DOTALL)
_WITH_REVISION = re.compile(rf"(?P<repo>{_PART}/{_PART})@(?P<revision>[^@\s?#/]+(?:/[^@?#\n]+)?)")
_REFS = re.compile(r"(refs/(?:pr|convert|heads|tags)/[^/]+)(/.*)?")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_VIEWS = ("blob", "resolve", "raw", "tree", "blame", "edit", "commit", "commits")
_TABS = ("discussions", "settings", "branches")  # of a repository's page: none of its files
_OTHER_KINDS = ("datasets", "spaces", "collections", "papers", "docs", "api", "kernels", "models")
_ONE_FILE = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, or something in it."""

    repo: str
    """``OWNER/NAME``."""
    revision: str | None = None
    """Branch, tag or commit, if one was named."""
    path: str = ""
    """Folder or file inside it; empty for the repository itself."""

    @property
    def is_file(self) -> bool:
        """Whether it names one weights file."""
        return self.path.casefold().endswith(_ONE_FILE)

    def __str__(self) -> str:
        free = "/" if _REFS.fullmatch(self.revision or "") else ""  # else it would end at a slash
        at = f"@{quote(self.revision, safe=free)}" if self.revision else ""
        return f"{self.repo}{at}{'/' if self.path else ''}{self.path}"


def read_hub_name(text: str, revision: str | None = None) -> HubName | None:
    """Return what a text names on the Hub; None if it can't be meant so.

    Understood are ``OWNER/NAME``, ``OWNER/NAME@REVISION``, ``OWNER/NAME/PATH``, both together,
    the same after ``hf://``, and the address of a repository's page, or of a folder or file in
    it (``/tree/``, ``/blob/``, ``/resolve/``), as a browser shows it.

    Parameters
    ----------
    text : str
        As it was pasted.
    revision : str, optional
        As an argument of its own says it.

    Raises
    ------
    ArgumentError
        If it is the address of something that is no model, or two revisions are named.
    """
    text = _core(text)
    scheme = _scheme(text)
    if scheme in ("https", "http"):
        found = _from_address(text)
    elif scheme == "hf":
        found = _from_words(text.partition("://")[2].removeprefix("models/"))
    elif scheme:
        raise ArgumentError(
            f"{_shown(text)!r} begins with {scheme}://; models are read from folders, and from a "
            "hub by OWNER/NAME or an address with https://, http:// or hf://"
        )
    elif _begins_with_host(text):
        found = _from_address(f"https://{text}")
    else:
        found = _from_words(text)
    return None if found is None else with_revision(found, revision)


def with_revision(name: HubName, revision: str | None) -> HubName:
    """Return a name at a revision that an argument says, which must not be another one.

    Raises
    ------
    ArgumentError
        If the name says another one, or it is no revision.
    """
    if revision is None:
        return name
    if not isinstance(revision, str) or not _is_revision(revision):
        raise ArgumentError(f"revision {revision!r} is no branch, tag or commit of a Hub model")
    if name.revision not in (None, revision):
        raise ArgumentError(
            f"two revisions are named: {name.revision!r} in {str(name)!r} and "
            f"revision={revision!r}; one was expected"
        )
    return replace(name, revision=revision)


def is_address(text: str) -> bool:
    """Return whether a text can only be meant for the Hub: no path of a file begins so."""
    text = _core(text)
    return bool(_scheme(text)) or _begins_with_host(text)


def endpoint() -> str:
    """Return the address of the Hub that is asked, as huggingface_hub has it."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT).rstrip("/")


def _core(text: str) -> str:
    """Return a text without what is copied along with a name: quotes, spaces, git's own words."""
    text = re.sub(r"^git\s+clone\s+", "", text.strip(_AROUND)).strip(_AROUND)
    return re.sub(r"^git@([\w.-]+):", r"https://\1/", text)


def _scheme(text: str) -> str:
    found = _SCHEME.match(text)
    return found["scheme"].casefold() if found else ""


def _begins_with_host(text: str) -> bool:
    """Return whether a text is an address without its scheme, as some browsers copy it."""
    host, slash, _ = text.partition("/")
    return bool(slash) and host.casefold() in (*_HOSTS, _split(endpoint()).netloc.casefold())


def _is_revision(text: str) -> bool:
    """Return whether git lets a branch or tag be called so, or it is a commit."""
    return bool(re.fullmatch(r"[^\s@?#:~^\\]+", text)) and ".." not in text and text[0] not in "/.-"


def _from_words(text: str) -> HubName | None:
    if text.startswith(("datasets/", "spaces/")):
        raise ArgumentError(f"{text!r} is no model: it is under {text.partition('/')[0]!r}")
    found = _WITH_REVISION.fullmatch(text)
    wrong = _BAD_REVISION.fullmatch(text)
    if wrong and not (found and _is_revision(unquote(found["revision"]).partition("/")[0])):
        raise ArgumentError(
            f"{text!r} names no revision: {wrong['said']!r} is no branch, tag or commit "
            "(OWNER/NAME@REVISION was expected)"
        )
    if found:  # a revision may hold slashes, as in refs/pr/3; where a file follows, it ends there
        repo, rest = found["repo"], found["revision"]
        refs = _REFS.fullmatch(rest)
        revision, _, path = rest.partition("/")
        if refs:
            revision, path = refs[1], (refs[2] or "").strip("/")
        return HubName(repo, unquote(revision), _clean(path, text))
    found = _ID.fullmatch(text)
    if found is None:
        return None
    return HubName(found["repo"], None, _clean(found["path"] or "", text))


def _from_address(text: str) -> HubName:
    parts = [part for part in _path_on_hub(text).split("/") if part]
    if parts and parts[0] in _OTHER_KINDS:
        raise ArgumentError(f"{_shown(text)!r} is no model's address: it is under {parts[0]!r}")
    repo = "/".join(map(unquote, parts[:2])).removesuffix(".git")
    if not re.fullmatch(f"{_PART}/{_PART}", repo):
        raise ArgumentError(f"{_shown(text)!r} names no repository (OWNER/NAME)")
    view, *rest = parts[2:] or [""]
    if view not in ("", *_VIEWS, *_TABS):
        raise ArgumentError(f"{_shown(text)!r} is no page of a model, its folders or its files")
    if not rest or view in _TABS:
        return HubName(repo)
    refs = _REFS.fullmatch("/".join(map(unquote, rest)))
    if not _is_revision(unquote(rest[0])):
        raise ArgumentError(f"{_shown(text)!r} names no branch, tag or commit: {rest[0]!r}")
    if refs:
        return HubName(repo, refs[1], _clean(refs[2] or "", text))
    inside = "" if view in ("commit", "commits") else "/".join(map(unquote, rest[1:]))
    return HubName(repo, unquote(rest[0]), _clean(inside, text))


def _path_on_hub(text: str) -> str:
    """Return the path of an address, which must be one of the Hub that is asked."""
    address, own = _split(text), _split(endpoint())
    host = (address.hostname or "").casefold()
    if not host:
        raise ArgumentError(
            f"{_shown(text)!r} names no host (https://HOST/OWNER/NAME was expected)"
        )
    if host in _HOSTS:
        return address.path
    if address.netloc.casefold() != own.netloc.casefold():
        raise ArgumentError(
            f"{_shown(text)!r} lies on {host!r}; models are fetched from {endpoint()} "
            "(another hub: the environment variable HF_ENDPOINT)"
        )
    below = own.path.strip("/")  # a hub may lie below a path of its server
    return address.path.strip("/").removeprefix(below)


def _clean(path: str, text: str) -> str:
    """Return a path inside a repository; one that leads out of it is refused."""
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or (os.sep != "/" and os.sep in part) for part in parts):
        raise ArgumentError(f"{_shown(text)!r} leads out of its repository")
    return "/".join(parts)


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:  # brackets, say, that aren't an IPv6 address
        raise ArgumentError(f"{text.partition('@')[2] or text!r} is no address: {error}") from None


def _shown(text: str) -> str:
    """Return an address without what could be secret in it: a user's name, a signed query."""
    if not _scheme(text):
        return text
    address = _split(text)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
