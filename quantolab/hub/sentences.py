"""Every answer of a hub, or none at all, as one sentence that says what to do."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import (
    ModelNotFoundError,
    OutputError,
    QuantolabError,
    first_line,
    nearest,
)
from ..units import format_seconds
from .names import HubName, endpoint

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def sentence_for(error: BaseException, name: HubName, beside: Iterable[str] = ()) -> QuantolabError:
    """Return what is raised in place of an error of the hub's library.

    Parameters
    ----------
    error : BaseException
        What the library raised.
    name : HubName
        What was asked for.
    beside : iterable of str
        What else could have been meant, for a name that isn't there.
    """
    if isinstance(error, QuantolabError):
        return error
    for reason in _chain(error):
        said = _said(reason, name, beside)
        if said is not None:
            return said
    return ModelNotFoundError(f"{name} can't be had from {endpoint()}: {first_line(error)}")


def told_to_wait(error: BaseException) -> float | None:
    """Return the seconds that a hub says to wait before asking again; None if it says none."""
    from huggingface_hub.errors import HfHubHTTPError

    for reason in _chain(error):
        if isinstance(reason, HfHubHTTPError) and _status(reason) == 429:
            return _told(reason.response.headers)
    return None


def is_passing(error: BaseException) -> bool:
    """Return whether an error is one of a connection, that another try may not meet."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    if {"ConnectError", "ProxyError", "UnsupportedProtocol"} & kinds:
        return False
    return "TransportError" in kinds or "Consistency check failed" in str(error)


def cached_names() -> list[str]:
    """Return the models that have a place in the Hub's cache."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return sorted(p.name.removeprefix("models--").replace("--", "/") for p in folders)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, the library's own words for "not in the cache" last."""
    seen: list[BaseException] = []
    reason: BaseException | None = error
    while reason is not None and reason not in seen:
        seen.append(reason)
        reason = reason.__cause__ or reason.__context__
    wrappers = ("LocalEntryNotFoundError", "IncompleteSnapshotError", "RevisionResolutionError")
    yield from sorted(seen, key=lambda e: type(e).__name__ in wrappers)


def _said(error: BaseException, name: HubName, beside: Iterable[str]) -> QuantolabError | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HfHubHTTPError):
        return _answer(error, name, beside)
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError(f"{name} is no name that a hub can have: {first_line(error)}")
    not_cached = (errors.LocalEntryNotFoundError, errors.RevisionResolutionError)
    offline = isinstance(error, not_cached) and constants.is_offline_mode()
    if offline or isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFoundError(
            f"{name} isn't in the local cache, and HF_HUB_OFFLINE forbids to fetch it"
        )
    if isinstance(error, errors.FileMetadataError):
        return ModelNotFoundError(
            f"{endpoint()} doesn't answer as a hub does (no commit or no ETag with a file of "
            f"{name}): check HF_ENDPOINT, proxies and firewalls"
        )
    if isinstance(error, not_cached):
        return ModelNotFoundError(f"{name} isn't in the local cache, nor to be had from the Hub")
    if "TransportError" in {cls.__name__ for cls in type(error).__mro__}:
        return ModelNotFoundError(
            f"no connection to {endpoint()} ({_no_connection(error)}), and {name} isn't in the "
            "local cache"
        )
    if type(error).__name__ == "TooManyRedirects":
        return ModelNotFoundError(f"{endpoint()} sends requests for {name} in circles")
    if isinstance(error, (ValueError, KeyError, TypeError, AssertionError)):
        # No JSON, or another one: a page that somebody put in between, or another server.
        return ModelNotFoundError(
            f"{endpoint()} doesn't answer as a hub does when asked for {name}: check HF_ENDPOINT, "
            "and whether the network wants a login"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError(
            f"{name} can't be written into the Hub's cache, {_cache()}: {error.strerror} "
            "(another place: the environment variable HF_HUB_CACHE)"
        )
    return None


def _answer(error: Any, name: HubName, beside: Iterable[str]) -> QuantolabError:
    from huggingface_hub import errors

    headers, status = error.response.headers, _status(error)
    page, said = f"{endpoint()}/{name.repo}", (headers.get("X-Error-Message") or "").strip()
    if "Invalid credentials" in said or "invalid user token" in said.casefold():
        return ModelNotFoundError(
            f"{endpoint()} doesn't know the token that was sent for {name} ({_token_from()}): "
            "put a valid one there, or take it away where none is needed"
        )
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError(_gated(name, page, said))
    if isinstance(error, errors.RevisionNotFoundError):
        there = f"; there are: {', '.join(beside)}" if beside else ""
        hint = nearest(name.revision or "main", beside)
        return ModelNotFoundError(
            f"{name.repo} has no revision {name.revision or 'main'!r}{there}{hint}"
        )
    if isinstance(error, errors.DisabledRepoError):
        return ModelNotFoundError(f"{name.repo} was disabled by the hub, for everybody: see {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(_no_repository(name))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return ModelNotFoundError(f"{name} isn't there{nearest(name.path, beside)}")
    return ModelNotFoundError(_by_status(status, name, page, said, headers))


def _gated(name: HubName, page: str, said: str) -> str:
    ask = f"accept its licence, or ask for access, at {page}"
    if not _has_token():
        return (
            f"{name.repo} is gated and no token was sent: {ask}, then log in with `hf auth login` "
            "or put a token into the environment variable HF_TOKEN"
        )
    if "awaiting" in said or "pending" in said:
        return f"{name.repo} is gated, and the request for access is waiting for an answer: {page}"
    if "rejected" in said or "denied" in said:
        return f"{name.repo} is gated, and its owners refused the request for access: {page}"
    return (
        f"{name.repo} is gated, and the account of the token that was sent ({_token_from()}) has "
        f"no access: {ask} with that account; a fine-grained token must allow gated repositories"
    )


def _no_repository(name: HubName) -> str:
    who = (
        f"the account of the token that was sent ({_token_from()}) can't see it"
        if _has_token()
        else "it is private and no token was sent (`hf auth login`, or HF_TOKEN)"
    )
    return f"there is no model {name.repo!r} on {endpoint()}, or {who}"


def _by_status(status: int, name: HubName, page: str, said: str, headers: Any) -> str:
    more = f" ({_plain(said)})" if said else ""
    if status == 401:
        return (
            f"{endpoint()} wants a login for {name}{more}: `hf auth login`, or put a token into "
            "the environment variable HF_TOKEN"
        )
    if status == 403:
        return (
            f"{endpoint()} forbids {name} to the token that was sent ({_token_from()}){more}: a "
            f"fine-grained token must be allowed to read it; see {page}"
        )
    if status == 429:
        told = _told(headers)
        when = "later" if told is None else f"in {format_seconds(told)}"
        return (
            f"{endpoint()} was asked too often (its rate limit) and can be asked for {name} again "
            f"{when}; with a login the limit is higher"
        )
    if status in (404, 410):
        return f"{endpoint()} has nothing under {name}{more}"
    if status == 407:
        return f"the proxy on the way to {endpoint()} wants a login (HTTPS_PROXY)"
    if status == 451:
        return f"{endpoint()} may not give out {name} for legal reasons{more}: see {page}"
    if status == 416:
        return f"{endpoint()} has another file for {name} than a moment ago; try again"
    if status >= 500:
        return (
            f"{endpoint()} has trouble of its own (status {status}){more}: {name} may be there "
            "again in a while (https://status.huggingface.co says)"
        )
    return f"{endpoint()} refuses {name} with status {status}{more}"


def _no_connection(error: BaseException) -> str:
    text = str(error)
    kinds = {cls.__name__ for cls in type(error).__mro__}
    reasons = [type(e) for e in _chain(error)]
    if "CERTIFICATE_VERIFY_FAILED" in text or ssl.SSLCertVerificationError in reasons:
        return "its certificate can't be checked; a company's own goes into SSL_CERT_FILE"
    if "ProxyError" in kinds:
        return f"the proxy says: {_plain(text)}; see HTTPS_PROXY"
    if "TimeoutException" in kinds:
        return "it doesn't answer in time"
    if re.search(r"[Nn]ame or service|[Nn]ame resolution|getaddrinfo|nodename", text):
        return "its name isn't found"
    if "UnsupportedProtocol" in kinds:
        return "HF_ENDPOINT must begin with https:// or http://"
    return _plain(first_line(text)) or "it breaks off"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)).strip()[:200].rstrip(".")


def _told(headers: Any) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = (headers.get("Retry-After") or "").strip()
    return float(after) if after.isdigit() else None


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _token_from() -> str:
    """Return where the token comes from, never the token."""
    variable = next((name for name in _TOKENS if os.environ.get(name)), None)
    return f"from {variable}" if variable else "from `hf auth login`"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
