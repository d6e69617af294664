"""What a weights word means in SDNQ's own terms. Never imports torch."""

from __future__ import annotations

from typing import Any

from ...weights import weights_of

NO_SKIPS = {
    "add_skip_keys": False,
    "minimum_allowed_numel": 0,
    "minimum_allowed_channel_size": 0,
}
"""Options without which SDNQ keeps layers that nobody asked it to keep."""


def settings(word: str) -> dict[str, Any]:
    """Return a word's options, SDNQ's own skips apart."""
    weights = weights_of(word)
    group = -1 if weights.group == 0 else weights.group or 0
    said: dict[str, Any] = {"weights_dtype": weights.name, "group_size": group}
    return said | {"use_svd": weights.rank is not None, "svd_rank": weights.rank or 32}
