# ruff: noqa: E501 - a table of answers, a line each
"""Each answer that a hub can give becomes one sentence, without a traceback or a token."""

import pytest
from hub_server import TOKEN, Answer
from local_hub import local_hub

from quantolab.errors import ModelNotFoundError, QuantolabError
from quantolab.hub.names import HubName
from quantolab.hub.repository import fetch, open_repository

OTHER = "hf_" + "Wrong7oken" * 3
RESTRICTED = "Access to model owner/some is restricted. You must have access to it."
HTML = b"<html><body>Sign in to the hotel's network</body></html>"


def said(code=None, message=None, **more):
    headers = {"X-Error-Code": code, "X-Error-Message": message, **more}
    return {key: value for key, value in headers.items() if value is not None}


# (whose answer: the API's, that for a file, or everybody's; token; status; headers; body; words)
ANSWERS = {
    "not found": ("api", None, 401, said("RepoNotFound", "Repository not found"), b"{}",
                  "there is no model 'owner/some' on .* no token was sent"),
    "not found, logged in": ("api", TOKEN, 404, said("RepoNotFound", "Repository not found"), b"{}",
                             r"there is no model .*from HF_TOKEN\) can't see it"),
    "wrong token": ("real", OTHER, 0, {}, b"", r"doesn't know the token .* \(from HF_TOKEN\)"),
    "wrong token, file": ("file", OTHER, 401, said(None, "Invalid credentials in Authorization header"),
                          b"{}", "doesn't know the token"),
    "gated, no token": ("file", None, 401, said("GatedRepo", RESTRICTED), b"{}",
                        "is gated and no token was sent: accept its licence.*hf auth login.*HF_TOKEN"),
    "gated, no access": ("file", TOKEN, 403, said("GatedRepo", RESTRICTED), b"{}",
                         "is gated, and the account of the token .* has no access"),
    "gated, waiting": ("file", TOKEN, 403, said("GatedRepo", "Your request to access model owner/some "
                       "is awaiting a review from the repo authors."), b"{}", "is waiting for an answer"),
    "gated, refused": ("file", TOKEN, 403, said("GatedRepo", "Your request to access model owner/some "
                       "has been rejected by the repo's authors."), b"{}", "refused the request"),
    "no such revision": ("revision", None, 0, {}, b"", "has no revision 'v2'; there are: main, v1"),
    "no such file": ("file", None, 404, said("EntryNotFound", "Entry not found"), b"{}", "isn't there"),
    "disabled": ("api", None, 403, said(None, "Access to this resource is disabled."), b"{}",
                 "was disabled by the hub"),
    "forbidden": ("file", TOKEN, 403, said(None, "This token lacks the scope"), b"{}",
                  r"forbids owner/some .*This token lacks the scope.*fine-grained"),
    "forbidden, api": ("api", TOKEN, 403, {}, b"{}", "forbids owner/some"),
    "login wanted": ("file", None, 401, {}, b"{}", "wants a login|no token was sent"),
    "bad request": ("api", None, 400, said(None, "bad"), b'{"error": "bad"}', "refuses .* status 400"),
    "teapot": ("api", None, 418, {}, b"", "refuses owner/some with status 418"),
    "gone": ("api", None, 410, {}, b"", "has nothing under owner/some"),
    "plain 404": ("api", None, 404, {}, HTML, "has nothing under owner/some"),
    "proxy login": ("api", None, 407, {}, b"", "proxy on the way .* wants a login"),
    "legal reasons": ("api", None, 451, {}, b"", "for legal reasons"),
    "rate limit, told": ("api", None, 429, {"ratelimit": '"api";r=0;t=3600', "ratelimit-policy":
                         '"fixed window";"api";q=500;w=300'}, b"", "asked too often .* again in"),
    "rate limit, date": ("api", None, 429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"",
                         "asked too often .* again later"),
    "rate limit, not told": ("api", None, 429, {}, b"", "asked too often .* again later"),
    "broken": ("api", None, 500, said(None, "Internal Error - We're working hard"), b"{}",
               r"trouble of its own \(status 500\)"),
    "bad gateway": ("api", None, 502, {}, HTML, "status 502"),
    "unavailable": ("api", None, 503, {}, b"", "status 503"),
    "timeout of a gateway": ("api", None, 504, {}, b"", "status 504"),
    "a hotel's page": ("all", None, 200, {"Content-Type": "text/html"}, HTML, "as a hub does"),
    "other JSON": ("all", None, 200, {"Content-Type": "application/json"}, b"[]", "as a hub does"),
    "in circles": ("all", None, 302, {"Location": "/api/models/owner/some"}, b"", "in circles"),
    "no connection": ("closed", None, 0, {}, b"", "no connection to .*isn't in the local cache"),
    "no name": ("nowhere", None, 0, {}, b"", "no connection to .*its name isn't found"),
    "no address": ("nonsense", None, 0, {}, b"", "HF_ENDPOINT must begin"),
    "no commit": ("file", None, 200, {"ETag": '"x"', "Content-Type": "text/html"}, HTML, "as a hub does"),
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a.safetensors").write_bytes(b"0" * 1000)
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        server.add("owner/some", tmp_path / "up")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


def prepare(hub, who, answer, monkeypatch):
    from huggingface_hub import constants

    repo = hub.repos["owner/some"]
    if who == "api":
        repo.api_answer = answer
    elif who == "file":
        repo.files_answer = answer
    elif who == "all":
        hub.everything = answer
    address = {"closed": "http://127.0.0.1:9", "nowhere": "http://no-such-host.invalid",
               "nonsense": "ftp://127.0.0.1"}.get(who)  # fmt: skip
    if address is not None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_a_sentence(hub, monkeypatch, kind, capfd):
    who, token, status, headers, body, words = ANSWERS[kind]
    prepare(hub, who, Answer(status, headers, body), monkeypatch)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    name = HubName("owner/some", "v2" if who == "revision" else None)
    with pytest.raises(QuantolabError, match=words) as caught:
        fetch(open_repository(name), ["a.safetensors"])
    text = str(caught.value)
    assert isinstance(caught.value, ModelNotFoundError)
    assert ("\n" not in text and "owner/some" in text) or "proxy" in text
    assert caught.value.__cause__ is None  # requests, and the tokens in them, are not shown
    everything = text + "".join(capfd.readouterr())
    assert not any(secret in everything for secret in (TOKEN, OTHER))


def test_there_are_thirty():
    assert len(ANSWERS) >= 30


def test_an_error_never_holds_a_token():
    assert TOKEN not in str(QuantolabError(f"https://user:{TOKEN}@host/x"))
