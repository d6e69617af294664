"""A LoRA over a pipeline: whether it fits, from shapes alone, and how it gets there.

Diffusers reads and renames what trainers write, and leaves out with a log line, or with none, what
it has no place for. Here a tensor without a place is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, QuantolabError, UnsupportedError, first_line, is_out_of_memory
from ..models.skeleton import build_skeleton, quiet_libraries
from ..models.source import Source
from ..units import format_count, format_list
from ..weights import COMPUTE_BYTES

ADAPTER = "lora"
"""What the adapter is called in the pipeline."""

_HARMLESS = "No LoRA keys associated to"  # of each component that a LoRA has nothing for


def lora_bytes(source: Source, path: Path, dtype: str) -> dict[str, int]:
    """Return how many bytes a LoRA adds to each component that it changes, without a weight.

    Parameters
    ----------
    source : Source
        A pipeline.
    path : Path
        Of the LoRA, checked by `quantolab.files.adapters.check_lora`.
    dtype : str
        Compute dtype, in which the pipeline holds it.

    Raises
    ------
    UnsupportedError
        If Diffusers loads no LoRA into a pipeline of this class.
    ArgumentError
        If it can't be read as one of this class, or a tensor of it has no place in the model.
    """
    import diffusers

    cls: Any = getattr(diffusers, str(source.pipeline), None)
    if not hasattr(cls, "load_lora_weights"):
        raise UnsupportedError(
            f"{source.model!r} is a {source.pipeline}, into which Diffusers loads no LoRA"
        )
    denoisers = {
        name: build_skeleton(source.component(name), dtype=dtype) for name in source.denoisers
    }
    tensors = _tensors(cls, path, denoisers.get("unet"))
    places = [n for n in cls._lora_loadable_modules if n in {p.name for p in source.components}]
    groups = {name: _under(name, tensors) for name in places}
    placed = [f"{name}.{rest}" for name, group in groups.items() for rest in group]
    _check_none_left(path, source.model, tensors, set(tensors) - set(placed), places)
    for name, module in denoisers.items():
        if groups.get(name):
            _check_fits(path, source.model, name, module, groups[name])
    each = COMPUTE_BYTES[dtype]
    return {
        name: each * sum(tensor.numel() for tensor in group.values())
        for name, group in groups.items()
        if group
    }


def add_lora(pipe: Any, path: Path, weight: float) -> list[str]:
    """Load a LoRA into a pipeline as `load_lora_weights` does, and return what is to be said.

    Parameters
    ----------
    pipe : DiffusionPipeline
        With all components that the LoRA changes.
    path : Path
        Of the LoRA.
    weight : float
        Scale of what it adds.

    Raises
    ------
    UnsupportedError
        If it can't be put over these weights, or only a part of it came to lie there.
    """
    tensors = _tensors(type(pipe), path, getattr(pipe, "unet", None))
    with _warnings() as said:
        try:
            pipe.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=ADAPTER,
                local_files_only=True,
                use_safetensors=True,
            )
            if weight != 1:
                pipe.set_adapters(ADAPTER, weight)
        except QuantolabError:
            raise
        except Exception as error:  # of whatever Diffusers, peft and the weights' library raise
            if is_out_of_memory(error):
                raise
            raise UnsupportedError(
                f"the LoRA can't be put over these weights: {first_line(error)}"
            ) from error
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    count = sum(len(_adapter_tensors(module)) for module in modules)
    if count != len(tensors):
        raise UnsupportedError(
            f"of the LoRA's {format_count(len(tensors), 'tensor')} {count} came to lie in the model"
        )
    return [f"LoRA: {text}" for text in said]


def _tensors(cls: Any, path: Path, unet: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """Return a LoRA's matrices by the names that Diffusers gives them, whoever wrote the file."""
    options = {} if unet is None else {"unet_config": unet.config}
    try:
        with _warnings():
            found = cls.lora_state_dict(
                str(path.parent),
                weight_name=path.name,
                local_files_only=True,
                use_safetensors=True,
                **options,
            )
    except Exception as error:  # of whatever converters raise
        raise ArgumentError(
            f"{str(path)!r} can't be read as a LoRA of a {cls.__name__}: {first_line(error)}"
        ) from error
    tensors = found[0] if isinstance(found, tuple) else found
    return {name: t for name, t in tensors.items() if torch.is_tensor(t) and t.ndim > 0}


def _under(component: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{component}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _check_fits(
    path: Path, model: str, name: str, module: torch.nn.Module, group: dict[str, torch.Tensor]
) -> None:
    """Load what is a component's into its skeleton, and see that all of it finds a place."""
    try:
        with _warnings():
            module.load_lora_adapter(
                {f"{name}.{rest}": tensor for rest, tensor in group.items()},
                prefix=name,
                adapter_name=ADAPTER,
                low_cpu_mem_usage=True,
            )
    except Exception as error:
        wrong = _without_layer(module, group)
        if wrong:
            _check_none_left(path, model, group, wrong, [name])
        raise ArgumentError(
            f"the LoRA {str(path)!r} doesn't fit {name} of {model!r}: {_reason(error)}"
        ) from error
    if len(_adapter_tensors(module)) != len(group):
        wrong = _without_layer(module, group) or set(group)
        _check_none_left(path, model, group, wrong, [name])


def _without_layer(module: torch.nn.Module, group: Iterable[str]) -> set[str]:
    """Return the tensors whose layer a component hasn't."""
    layers = {name for name, _ in module.named_modules()}
    return {name for name in group if name.partition(".lora")[0] not in layers}


def _reason(error: Exception) -> str:
    """Return what is wrong, without the heading that torch puts over several such lines."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return lines[0] if lines else first_line(error)


def _check_none_left(
    path: Path, model: str, tensors: Iterable[str], left: Iterable[str], places: list[str]
) -> None:
    names = sorted(left)
    if names:
        where = format_list(places, "or") if places else "any of its components"
        raise ArgumentError(
            f"the LoRA {str(path)!r} doesn't fit {model!r}: {len(names)} of its "
            f"{format_count(len(list(tensors)), 'tensor')}, {names[0]!r} for one, belong to no "
            f"layer of {where}"
        )


def _adapter_tensors(module: torch.nn.Module) -> list[str]:
    inside = f".{ADAPTER}."
    return [name for name, _ in module.named_parameters() if inside in f"{name}."]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what Diffusers' loaders warn of, instead of having it printed."""
    said: list[str] = []
    logger = logging.getLogger("diffusers.loaders")
    handler = _Collecting(said)
    level, propagate = logger.level, logger.propagate
    with quiet_libraries():
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            yield said
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _Collecting(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        text = first_line(record.getMessage())
        if not text.startswith(_HARMLESS) and text not in self._said:
            self._said.append(text)
