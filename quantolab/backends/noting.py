"""How a model's own configuration comes to say that it is quantized, whichever backend did it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Declared:
    """A ``quantization_config`` that warns when it is written, if what is saved needs heeding.

    Both libraries call `to_dict` of such an object when they save.
    """

    values: dict[str, Any]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return what belongs into ``config.json``; warns if there is a note."""
        if self.note:
            warnings.warn(self.note, UserWarning, stacklevel=3)
        return copy.deepcopy(self.values)


def library_of_model(module: torch.nn.Module) -> str | None:
    """Return ``"diffusers"`` or ``"transformers"``: whose model it is; None for other modules."""
    bases = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__}
    for library, base in (("diffusers", "ModelMixin"), ("transformers", "PreTrainedModel")):
        if (library, base) in bases:
            return library
    return None


def put_declared(module: Any, library: str, declared: Declared) -> None:
    """Put a ``quantization_config`` into a model's configuration."""
    if library == "diffusers":
        module.register_to_config(quantization_config=declared)
    else:
        module.config = copy.deepcopy(module.config)  # other models may share it
        module.config.quantization_config = declared
