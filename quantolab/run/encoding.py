"""Prompts encoded ahead: what a pipeline's ``encode_prompt`` returns is kept, and returned again.

Text encoders are as large as a denoiser, are needed for seconds, and say the same for every recipe
that leaves them alone. So the pipeline's own call runs once up to the encoded prompt, by itself and
with all arguments of the run; whatever `encode_prompt` returned is what later pipelines, which have
no text encoders, get from it. No class is known here by name. Whether a class can do without its
text encoders then is tried before anything depends on it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from ..errors import QuantolabError, is_out_of_memory
from ..loading.pipelines import assemble
from ..models.skeleton import build_skeleton, quiet_libraries
from ..models.source import Source
from ..planning.plan import other_components
from ..records import Workload


@dataclass(frozen=True)
class EncodedText:
    """What `encode_prompt` returned for one prompt, in all calls that one picture makes."""

    tensors: Mapping[str, torch.Tensor]
    """By their numbers among all values."""
    rest: str
    """JSON: how the values are arranged, and those that aren't tensors."""

    @classmethod
    def of(cls, calls: Sequence[Any]) -> EncodedText:
        """Return what was found in one call after the other.

        Raises
        ------
        TypeError, NotImplementedError
            If something in it is neither a tensor nor plain.
        """
        leaves, arrangement = tree_flatten(list(calls))
        tensors = {str(n): leaf for n, leaf in enumerate(leaves) if torch.is_tensor(leaf)}
        plain = {str(n): leaf for n, leaf in enumerate(leaves) if not torch.is_tensor(leaf)}
        rest = {"arrangement": treespec_dumps(arrangement), "values": plain}
        return cls(tensors, json.dumps(rest))

    def calls(self) -> list[Any]:
        """Return what each call is to return: tensors of its own, which a pipeline may change."""
        rest = json.loads(self.rest)
        held = {**rest["values"], **{name: value.clone() for name, value in self.tensors.items()}}
        leaves = [held[str(number)] for number in range(len(held))]
        return tree_unflatten(leaves, treespec_loads(rest["arrangement"]))

    def on(self, device: str) -> EncodedText:
        """Return a copy whose tensors lie on a device."""
        moved = {n: value.to(device=device, copy=True) for n, value in self.tensors.items()}
        return EncodedText(moved, self.rest)

    def widened(self) -> EncodedText:
        """Return the same in float32."""
        wide = {
            name: value.float() if value.is_floating_point() else value
            for name, value in self.tensors.items()
        }
        return EncodedText(wide, self.rest)


def joined(texts: Sequence[EncodedText]) -> EncodedText | None:
    """Return several prompts as one batch; None if they can't be made in one go.

    Tensors of one row become a batch; others, such as positions, must be the same for all.
    """
    first = texts[0]
    if len(texts) == 1:
        return first
    if any(text.rest != first.rest for text in texts):
        return None
    batch = {}
    for name, one in first.tensors.items():
        each = [text.tensors[name] for text in texts]
        if any(value.shape != one.shape for value in each):
            return None
        if one.ndim > 1 and len(one) == 1:
            batch[name] = torch.cat(each)
        elif all(torch.equal(value, one) for value in each):
            batch[name] = one
        else:
            return None
    return EncodedText(batch, first.rest)


class PromptReplay:
    """Stands in for a pipeline's `encode_prompt`: returns what it returned before.

    Parameters
    ----------
    pipe : DiffusionPipeline
        From now on it has no use for text encoders.
    """

    def __init__(self, pipe: Any) -> None:
        self._left: list[Any] = []
        pipe.encode_prompt = self

    def says(self, text: EncodedText) -> None:
        """Prepare for the next call of the pipeline."""
        self._left = text.calls()

    @property
    def used(self) -> bool:
        """Whether the pipeline has asked for everything."""
        return not self._left

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the pipeline's own method returned then; its arguments are the same."""
        if not self._left:
            raise RuntimeError("this pipeline encodes its prompt more often than was foreseen")
        return self._left.pop(0)


class _Enough(Exception):
    """The prompt is encoded; what comes next isn't wanted."""


def call_arguments(pipe: Any, workload: Workload) -> dict[str, Any]:
    """Return what a pipeline is called with for every picture of a workload, but for its text."""
    accepted = inspect.signature(pipe.__call__).parameters
    width, height = workload.size
    arguments: dict[str, Any] = {
        "num_inference_steps": workload.steps,
        "width": width,
        "height": height,
        "output_type": "np",
        "guidance_scale": workload.guidance,
        "num_frames": workload.frames,
        **text_length(pipe, accepted),
    }
    left_to_it = {n for n in ("guidance_scale", "num_frames") if arguments[n] is None}
    return {n: value for n, value in arguments.items() if n in accepted and n not in left_to_it}


def text_length(pipe: Any, accepted: Mapping[str, inspect.Parameter]) -> dict[str, int]:
    """Return the prompt length in tokens: the pipeline's own, or its tokenizer's if that is less.

    FLUX pads every prompt to 512 tokens, also for a model whose tokenizer says 32.
    """
    parameter = accepted.get("max_sequence_length")
    if parameter is None or not isinstance(parameter.default, int):
        return {}
    tokenizers = sorted(n for n in pipe.components if n.startswith("tokenizer"))
    if not tokenizers:
        return {}
    longest = getattr(getattr(pipe, tokenizers[-1], None), "model_max_length", None)
    return {"max_sequence_length": min(parameter.default, longest)} if longest else {}


def encode_with(
    pipe: Any, prompts: Iterable[str], workload: Workload
) -> dict[str, EncodedText] | None:
    """Return what a pipeline encodes prompts to; None where it encodes them some other way.

    Parameters
    ----------
    pipe : DiffusionPipeline
        With its text encoders.
    prompts : iterable of str
        Which.
    workload : Workload
        What else its pictures are made with.
    """
    if not hasattr(type(pipe), "encode_prompt"):
        return None
    arguments = call_arguments(pipe, workload)
    encoded = {}
    for prompt in prompts:
        calls: list[Any] = []
        with _recording(pipe, calls), _stopping(pipe):
            pipe(prompt=prompt, **arguments)
        if not calls:
            return None
        try:
            encoded[prompt] = EncodedText.of(calls)
        except (TypeError, NotImplementedError):
            return None
    return encoded


@contextmanager
def _recording(pipe: Any, calls: list[Any]) -> Iterator[None]:
    """Keep what a pipeline's own `encode_prompt` returns; where it asks itself, the whole."""
    inside = False

    def encode(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        outermost, inside = not inside, True
        try:
            found = type(pipe).encode_prompt(pipe, *args, **kwargs)
        finally:
            inside = not outermost
        if outermost:
            calls.append(found)
        return found

    with _instead(pipe, "encode_prompt", encode):
        yield


@contextmanager
def _stopping(pipe: Any) -> Iterator[None]:
    """End a pipeline's call where noise would be drawn, or else before its denoiser runs."""

    def enough(*_: Any, **__: Any) -> None:
        raise _Enough

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(quiet_libraries())
        stack.enter_context(suppress(_Enough))
        if hasattr(pipe, "prepare_latents"):
            stack.enter_context(_instead(pipe, "prepare_latents", enough))
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module) and _denoises(part):
                handle = part.register_forward_pre_hook(enough)
                stack.callback(handle.remove)
        yield


def _denoises(part: torch.nn.Module) -> bool:
    return "timestep" in inspect.signature(part.forward).parameters


@contextmanager
def _instead(pipe: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of a pipeline's method for a while."""
    before = vars(pipe).get(name)
    vars(pipe)[name] = function
    try:
        yield
    finally:
        if before is None:
            del vars(pipe)[name]
        else:
            vars(pipe)[name] = before


class _OnlyItsFacts:
    """In the place of a component that isn't there: its configuration and dtype, nothing else."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self.config = getattr(module, "config", None)
        self.dtype = dtype

    def __call__(self, *_: Any, **__: Any) -> None:
        raise _Enough


def encode_ahead(
    source: Source,
    workload: Workload,
    *,
    device: str,
    encoders: Mapping[str, torch.nn.Module] | None = None,
) -> dict[str, EncodedText] | None:
    """Return the encoded prompts of a workload, with nothing but the text encoders in memory.

    Parameters
    ----------
    source, workload : Source, Workload
        Of which model, and what its pictures are made with.
    device : str
        Where.
    encoders : mapping of str to torch.nn.Module, optional
        Text encoders that are loaded already, by name.

    Returns
    -------
    dict of str to EncodedText, or None
        By prompt; None if pictures can't be made from them without the text encoders, which is
        tried.
    """
    pipe = _without_denoiser(source, workload, device, encoders=encoders or {})
    if pipe is None:
        return None
    encoded = _unless_lacking(partial(encode_with, pipe, workload.prompts, workload))
    del pipe
    if not encoded or not does_without_encoders(source, workload, encoded):
        return None
    return encoded


def does_without_encoders(
    source: Source, workload: Workload, encoded: Mapping[str, EncodedText]
) -> bool:
    """Return whether a pipeline without text encoders takes prompts that were encoded before."""
    pipe = _without_denoiser(source, workload, "cpu", encoders=None)
    if pipe is None:
        return False
    replay = PromptReplay(pipe)

    def tried() -> bool:
        prompt, text = next(iter(encoded.items()))
        replay.says(text)
        with _stopping(pipe):
            pipe(prompt=prompt, **call_arguments(pipe, workload))
        return replay.used

    return bool(_unless_lacking(tried))


def _unless_lacking(run: Callable[[], Any]) -> Any:
    """Return what a function returns; None if it asks a component that isn't there."""
    try:
        return run()
    except QuantolabError:
        raise
    except Exception as error:  # each class notices in its own way
        if is_out_of_memory(error):
            raise
        return None


def _without_denoiser(
    source: Source,
    workload: Workload,
    device: str,
    *,
    encoders: Mapping[str, torch.nn.Module] | None,
) -> Any:
    """Return a pipeline with facts alone where its denoiser and VAE were.

    Those text encoders that aren't given are loaded; all are left out where they are None. None if
    this class encodes in some other way.
    """
    parts = {part.name: part for part in (*source.components, *other_components(source))}
    absent = {
        name: build_skeleton(part, dtype=workload.dtype)
        for name, part in parts.items()
        if name in source.denoisers or name == "vae"
    }
    pipe = assemble(
        source.folder,
        source.pipeline,
        {**absent, **(encoders or {})},
        dtype=workload.dtype,
        device=None,
        encoders=encoders is not None,
        variant=source.variant,
    )
    if not hasattr(type(pipe), "encode_prompt"):
        return None
    for name, module in absent.items():
        vars(pipe)[name] = _OnlyItsFacts(module, getattr(torch, workload.dtype))
    with quiet_libraries():
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_encoded(encoded: Mapping[str, EncodedText], path: Path) -> None:
    """Write encoded prompts to one safetensors file."""
    from safetensors.torch import save_file

    tensors = {
        f"{number}.{name}": value.to(
            "cpu", copy=True
        ).contiguous()  # some pipelines return one twice
        for number, text in enumerate(encoded.values())
        for name, value in text.tensors.items()
    }
    facts = {"prompts": list(encoded), "rest": [text.rest for text in encoded.values()]}
    save_file(tensors, path, metadata={name: json.dumps(fact) for name, fact in facts.items()})


def load_encoded(path: Path, device: str) -> dict[str, EncodedText]:
    """Return what `save_encoded` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = {name: json.loads(fact) for name, fact in file.metadata().items()}
        tensors: list[dict[str, torch.Tensor]] = [{} for _ in facts["prompts"]]
        for key in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
            number, _, name = key.partition(".")
            tensors[int(number)][name] = file.get_tensor(key).to(device=device, copy=True)
    texts = map(EncodedText, tensors, facts["rest"])
    return dict(zip(facts["prompts"], texts, strict=True))
