"""Pickles of float8 tensors, which torch writes so that it can't read them itself.

``pickle.loads(pickle.dumps(torch.zeros(1).to(torch.float8_e4m3fn)))`` ends in "type object
'torch.storage.UntypedStorage' has no attribute 'dtype'" (torch 2.13). `torch.save` isn't concerned.
"""

from __future__ import annotations

from typing import Any

import torch

from ..weights import weights_of


def cure(word: str) -> None:
    """Have torch pickle the memory of such tensors as bytes, which any torch reads.

    Parameters
    ----------
    word : str
        Of a layer that is made; nothing happens for words that store no float8.
    """
    weights = weights_of(word)
    if weights.floating and weights.bits == 8:
        torch.UntypedStorage.__reduce__ = _reduce  # type: ignore[method-assign]


def _reduce(storage: torch.UntypedStorage) -> Any:
    typed = torch.TypedStorage(wrap_storage=storage, dtype=torch.uint8, _internal=True)
    return typed.__reduce__()
