"""A component runs again on one input: what lies before the first changed layer isn't computed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

Call = tuple[tuple, dict]
"""Arguments of a call of a component's forward."""

_KEPT_BYTES = 1 << 28  # of blocks' outputs, an input; more aren't kept


class Replay:
    """A module's call, and the outputs that its blocks gave when nothing was changed.

    Blocks are what lies in a ``ModuleList``. With layers changed, those that had ended before the
    first of these began give what they gave: on average half of the work.

    Parameters
    ----------
    module : torch.nn.Module
        As it is before anything is changed.
    call : (tuple, dict)
        The arguments of its forward.
    """

    def __init__(self, module: torch.nn.Module, call: Call) -> None:
        self._module, self._call = module, call
        self._began: dict[str, int] = {}
        """When each layer began first."""
        self._ended: dict[str, int] = {}
        self._gave: dict[str, Any] = {}
        self._record()

    def output(self, changed: Collection[str]) -> torch.Tensor:
        """Return the first output with some layers, by their paths, changed."""
        first = min((self._began.get(path, 0) for path in changed), default=0)
        skipped = [name for name, end in self._ended.items() if end < first and name in self._gave]
        for name in skipped:
            block = self._module.get_submodule(name)
            block.forward = _giving(self._gave[name])
        try:
            return first_output_of(self._module, self._call)
        finally:
            for name in skipped:
                del self._module.get_submodule(name).forward

    def _record(self) -> None:
        handles, clock, room = [], 0, _KEPT_BYTES

        def begin(path: str) -> None:
            nonlocal clock
            clock += 1
            self._began.setdefault(path, clock)

        def end(name: str, output: Any) -> None:
            nonlocal clock, room
            clock += 1
            again, size = name in self._ended, _bytes(output)
            self._ended[name] = clock
            self._gave.pop(name, None)
            if not again and size <= room:  # a block that runs twice gives two things
                self._gave[name] = copied(output)
                room -= size

        for path, part in self._module.named_modules():
            if isinstance(part, torch.nn.Linear):
                handles.append(part.register_forward_pre_hook(lambda m, a, path=path: begin(path)))
        for name in blocks_of(self._module):
            block = self._module.get_submodule(name)
            handles.append(block.register_forward_hook(lambda m, a, out, n=name: end(n, out)))
        try:
            first_output_of(self._module, self._call)
        finally:
            for handle in handles:
                handle.remove()


def first_output_of(module: torch.nn.Module, call: Call) -> torch.Tensor:
    """Return the first output of a call."""
    with torch.no_grad():
        output = module(*call[0], **call[1])
    return (output if torch.is_tensor(output) else output[0]).float()


def blocks_of(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the paths of a module's outermost repeated blocks."""
    found: list[str] = []
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.ModuleList) and not any(
            path.startswith(block + ".") for block in found
        ):
            found += [f"{path}.{number}" for number in range(len(part))]
    return tuple(found)


def copied(value: Any) -> Any:
    """Return arguments whose tensors no later step overwrites."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v) for v in value)
    return value


def _giving(value: Any) -> Any:
    return lambda *args, **kwargs: copied(value)


def _bytes(value: Any) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    return sum(map(_bytes, value)) if hasattr(value, "__iter__") else 0
