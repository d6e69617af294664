"""A hub on this machine that this process, and those it starts, take for the real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub_server import HubServer


@contextmanager
def local_hub(monkeypatch, cache: Path) -> Iterator[HubServer]:
    """Give a running `HubServer`, its cache in a folder; nothing of the machine's own is used."""
    import huggingface_hub
    from huggingface_hub import constants

    with HubServer() as hub:
        settings = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0",
                    "HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_DISABLE_TELEMETRY": "1",
                    "NO_PROXY": "127.0.0.1"}  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # of busy machines
            monkeypatch.setenv(name, "120")
            monkeypatch.setattr(constants, name, 120)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        yield hub
        huggingface_hub.close_session()


def offline(monkeypatch) -> None:
    """Forbid requests, as HF_HUB_OFFLINE does."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
