"""What quantizing some layers of a component changes in its output, in a child process.

The component runs unquantized on inputs that a real picture gave it. Then, again and again, some
of its layers are replaced by quantized ones, it runs on the same inputs, and the layers are put
back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch

from ..backends import door
from ..errors import UnsupportedError
from ..loading.placing import put_module
from ..measure.conditions import describe_conditions
from ..measure.held_bytes import weight_bytes
from ..models.layers import linear_layers
from ..models.resolving import resolve
from ..models.skeleton import build_skeleton
from ..plain_values import to_dict
from ..processes.jobs import Desk
from ..recipes import Recipe
from ..records import Workload
from ..run.encoding import encode_with
from ..run.studio import Prepared, Studio, prepare
from ..shapes import Layer
from ..weights import REFERENCE
from .jobs import (
    LayersFound,
    LayersJob,
    SetError,
    Sets,
    SetsFound,
    SetsJob,
    SetsReady,
    typical,
)
from .replaying import Call, Replay, copied, first_output_of

_KEPT_BYTES = 1 << 30  # of quantized layers; more are quantized anew each time
_AT_ONCE, _MOST_AT_ONCE = 4, 12  # pictures of a small denoiser, which is quicker so
_SMALL_BYTES, _SMALL_PIXELS = 1 << 28, 1 << 18  # such a denoiser's, and of all of more pictures
_ROUNDED = 2  # pictures that tell what rounding to the compute dtype does


class _Enough(Exception):
    """Raised inside a pipeline once the inputs that were wanted have been seen."""


def list_layers(asked: LayersJob, desk: Desk) -> LayersFound:
    """Return the layers that each recipe quantizes in a component, from shapes alone."""
    part = asked.source.component(asked.component)
    module = build_skeleton(part)
    resolved = (resolve(module, r, part.name, asked.dtype, strict=False) for r in asked.recipes)
    return LayersFound(tuple(tuple(choice.layer for choice in r.quantized) for r in resolved))


def measure_sets(asked: SetsJob, desk: Desk) -> SetsReady:
    """Load what is to be measured, and answer as long as somebody asks about sets of layers."""
    desk.stage("loading")
    names = (asked.component, *asked.others)
    reference = Recipe(REFERENCE, (), names)
    with desk.signs_of_life():
        prepared = prepare(
            dataclasses.replace(asked.trial, recipe=reference, components=names),
            encoders_stay=True,
        )
    ready = SetsReady(describe_conditions(asked.trial.workload.device, None))
    desk.hold(ready, _Measuring(prepared, asked, desk).measure, Sets)
    return ready


class _Measuring:
    """Everything that stays loaded between questions."""

    def __init__(self, prepared: Prepared, asked: SetsJob, desk: Desk) -> None:
        self._prepared, self._asked, self._desk = prepared, asked, desk
        self._rounding = _in_float32(prepared, asked, desk) if asked.in_float32 else None
        self._layers = _layers(prepared, asked)
        self._quantized = _Quantized(_compute_dtype(asked) if asked.in_float32 else None)
        self._probes: dict[int, tuple[_Probe, float]] = {}

    def measure(self, asked: Sets) -> SetsFound:
        """Return the errors that quantizing each set of layers causes, by itself."""
        probe, floor = self._probe(asked.pictures)
        self._desk.stage("trying recipes" if asked.pictures else "quantizing layer by layer")
        results = []
        for entry in asked.sets:
            words = entry.words or (entry.weights,) * len(entry.paths)
            chosen = dict(zip(entry.paths, words, strict=True))
            results.append(_errors(chosen, self._layers, probe, self._quantized))
            if self._asked.results is not None:
                with self._asked.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**to_dict(entry), **to_dict(results[-1])}) + "\n")
            self._desk.picture()
        return SetsFound(tuple(results), probe.count, floor, self._rounding)

    def _probe(self, pictures: int) -> tuple[_Probe, float]:
        """Return what tells errors, and the floor below which it tells nothing."""
        if pictures not in self._probes:
            self._desk.stage("making pictures to compare" if pictures else "capturing inputs")
            if pictures:
                probe = _picture_probe(self._prepared, self._asked, pictures, self._desk)
            else:
                probe = _probe(self._prepared, self._asked, self._desk)
            self._probes[pictures] = probe, _floor(self._layers, probe)
        return self._probes[pictures]


@dataclass(frozen=True)
class _Place:
    """A Linear layer, and the module in which it lies."""

    owner: torch.nn.Module
    layer: Layer
    is_first: bool
    """Whether it belongs to the first of the components."""


def _layers(prepared: Prepared, asked: SetsJob) -> dict[str, _Place]:
    """Return every layer of the components under the name by which sets call it."""
    found = {}
    for name in (asked.component, *asked.others):
        module, first = getattr(prepared.pipe, name), name == asked.component
        for layer in linear_layers(module):
            path = layer.path if first else f"{name}/{layer.path}"
            found[path] = _Place(module, layer, first)
    return found


Run = Callable[[Collection[str]], "torch.Tensor | list[torch.Tensor]"]
"""Gives one output, or several, with some layers changed."""


def _several(made: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return made if isinstance(made, list) else [made]


class _Probe:
    """What is run again and again: the same inputs, and how far outputs are from the first."""

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        absolute: bool = False,
    ) -> None:
        self._runs, self._absolute = runs, absolute
        self._outputs = self._made(())
        self._norms = [
            float(output.numel()) if absolute else output.square().sum().item()
            for output in self._outputs
        ]

    def _made(self, changed: Collection[str]) -> list[torch.Tensor]:
        return [output.double() for run in self._runs for output in _several(run(changed))]

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(self._outputs)

    def errors(self, changed: Collection[str]) -> tuple[float, tuple[float, ...]]:
        """Return the error of all outputs, and of each, with some layers changed.

        Relative L2 norms; of absolute errors, root mean squares, the geometric mean.
        """
        squares = [
            (made - output).square().sum().item()
            for made, output in zip(self._made(changed), self._outputs, strict=True)
        ]
        each = tuple(map(_relative, squares, self._norms))
        if self._absolute:
            return typical(each), each
        return _relative(sum(squares), sum(self._norms)), each


def _probe(prepared: Prepared, asked: SetsJob, desk: Desk) -> _Probe:
    """Return what tells the errors of sets: the component on its own inputs, or the denoiser.

    The denoiser's output for the same noise tells what a text encoder's errors do, in the same
    measure as its own.
    """
    module = getattr(prepared.pipe, asked.component)
    if asked.component.startswith("text_encoder"):
        texts = _captured_texts(module, prepared, asked)
        return _Probe([Replay(module, call).output for call in texts])
    studio = Studio(prepared, asked.trial.workload, desk)
    captured = _captured(module, studio, asked)
    if not asked.others:
        return _Probe([Replay(module, call).output for _, call in captured])
    workload = asked.trial.workload
    return _Probe([_FromText(module, prepared, workload, *found).output for found in captured])


def _compute_dtype(asked: SetsJob) -> torch.dtype:
    return getattr(torch, asked.trial.workload.dtype)


def _in_float32(prepared: Prepared, asked: SetsJob, desk: Desk) -> float | None:
    """Go on in float32 from here; return what the other dtype's rounding does to pictures.

    What quantizing changes is then seen by itself, however little it is, and processors without
    arithmetic in bfloat16 are many times as fast. None if it was float32 before.
    """
    if _compute_dtype(asked) == torch.float32:
        return None
    before = _few_pictures(prepared, asked, desk)
    for part in prepared.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(torch.float32)
    if hasattr(prepared.pipe, "vae"):  # a third less work for processors
        prepared.pipe.vae.to(memory_format=torch.channels_last)
    if prepared.encoded is not None:
        prepared.encoded = {p: text.widened() for p, text in prepared.encoded.items()}
    after = _few_pictures(prepared, asked, desk)
    pairs = zip(before, after, strict=True)
    return typical([math.sqrt((a - b).square().mean().item()) for a, b in pairs])


def _few_pictures(prepared: Prepared, asked: SetsJob, desk: Desk) -> list[torch.Tensor]:
    workload = asked.trial.workload
    desk.stage("making pictures to compare")
    few = dataclasses.replace(workload, steps=asked.picture_steps or workload.steps)
    studio = Studio(prepared, few, desk)
    pairs = _varied(workload.prompts, workload.seeds, _ROUNDED)
    return [torch.from_numpy(studio.pixels(*pair).copy()).double() for pair in pairs]


def _picture_probe(prepared: Prepared, asked: SetsJob, count: int, desk: Desk) -> _Probe:
    """Return what tells the errors of sets in whole pictures.

    Small denoisers make several at once.
    """
    workload = asked.trial.workload
    steps = asked.picture_steps or workload.steps
    studio = Studio(prepared, dataclasses.replace(workload, steps=steps), desk)
    pairs = _varied(workload.prompts, workload.seeds, count)
    text = asked.component.startswith("text_encoder")
    small = weight_bytes(prepared.denoiser) < _SMALL_BYTES
    width, height = workload.size
    several = min(max(_AT_ONCE, _SMALL_PIXELS // (width * height)), _MOST_AT_ONCE)
    at_once = several if small and studio.makes_several else 1
    if at_once > 1 and hasattr(prepared.pipe.vae, "enable_slicing"):
        prepared.pipe.vae.enable_slicing()  # decoded one by one, which processors' caches like

    def maker(some: list[tuple[str, int]]) -> Run:
        def make(changed: Collection[str]) -> list[torch.Tensor]:
            anew = text or any("/" in path for path in changed)
            with ExitStack() as stack:
                for prompt in {prompt for prompt, _ in some} if anew else ():
                    stack.enter_context(studio.encoding(prompt))
                return [torch.from_numpy(pixels.copy()) for pixels in studio.several(some)]

        return make

    starts = range(0, count, at_once)
    return _Probe([maker(pairs[at : at + at_once]) for at in starts], absolute=True)


def _varied(prompts: Sequence[str], seeds: Sequence[int], count: int) -> list[tuple[str, int]]:
    """Return pairs of prompts and seeds; of seeds that were named none is left out, if possible.

    Each picture has a seed of its own, so that none of them matters too much.
    """
    found = []
    for i in range(count):
        seed = seeds[i % len(seeds)] + i // len(seeds)
        found.append((prompts[i % len(prompts)], seed))
    return found


class _FromText:
    """A denoiser's call whose text is encoded anew where a text encoder is changed."""

    def __init__(
        self,
        module: torch.nn.Module,
        prepared: Prepared,
        workload: Workload,
        prompt: str,
        call: Call,
    ) -> None:
        self._module, self._pipe, self._prompt, self._call = module, prepared.pipe, prompt, call
        self._replay = Replay(module, call)
        self._workload = workload
        self._places = [
            (key, start, name)
            for name, text in self._encoded().items()
            for key, value in call[1].items()
            for start in _rows_of(text, value)
        ]
        if not self._places:
            raise UnsupportedError(
                f"where the text goes in a {type(module).__name__} can't be seen, so that errors "
                "of text encoders can't be told: advise one component at a time"
            )

    def output(self, changed: Collection[str]) -> torch.Tensor:
        """Return the denoiser's output with some layers changed."""
        if not any("/" in path for path in changed):
            return self._replay.output(changed)
        encoded, given = self._encoded(), copied(self._call[1])
        for key, start, name in self._places:
            given[key][start : start + len(encoded[name])] = encoded[name]
        return first_output_of(self._module, (self._call[0], given))

    def _encoded(self) -> Mapping[str, torch.Tensor]:
        encoded = encode_with(self._pipe, [self._prompt], self._workload)
        return encoded[self._prompt].tensors if encoded else {}


def _rows_of(text: torch.Tensor, value: object) -> list[int]:
    """Return where an encoded text stands among the rows of an argument."""
    if not torch.is_tensor(value) or value.ndim != text.ndim or value.shape[1:] != text.shape[1:]:
        return []
    starts = range(0, len(value) - len(text) + 1, len(text))
    return [at for at in starts if torch.equal(value[at : at + len(text)], text.to(value.dtype))]


def _captured(module: torch.nn.Module, studio: Studio, asked: SetsJob) -> list[tuple[str, Call]]:
    """Return prompts and arguments of some of the denoiser's calls.

    They are dealt over prompts and seeds and spread over the steps: of as many equal parts of the
    steps as inputs are wanted the middle is taken, each of another picture than the one before.
    """
    workload, wanted = asked.trial.workload, asked.inputs
    pairs = workload.pairs
    numbers: dict[tuple[str, int], set[int]] = {}
    for i in range(wanted):
        step = int((i + 0.5) * workload.steps / wanted)
        numbers.setdefault(pairs[i % len(pairs)], set()).add(step)
    seen: list[tuple[str, Call]] = []
    for (prompt, seed), own in numbers.items():
        with _watched(module, own) as calls, suppress(_Enough):
            studio.make(prompt, seed)
        seen += [(prompt, call) for call in calls]
    if not seen:
        raise UnsupportedError(f"{asked.component} is not called while a picture is made")
    return seen


def _captured_texts(module: torch.nn.Module, prepared: Prepared, asked: SetsJob) -> list[Call]:
    """Return arguments of a text encoder's first call for each prompt."""
    seen: list[Call] = []
    for prompt in asked.trial.workload.prompts[: asked.inputs]:
        with _watched(module, {0}) as calls, suppress(_Enough):
            encode_with(prepared.pipe, [prompt], asked.trial.workload)
        seen += calls
    if not seen:
        raise UnsupportedError(f"{asked.component} is not called while a prompt is encoded")
    return seen


@contextmanager
def _watched(module: torch.nn.Module, numbers: set[int]) -> Iterator[list[Call]]:
    """Collect the arguments of some of a module's calls; after the last of them `_Enough`."""
    seen: list[Call] = []
    count = 0

    def look(module, args, kwargs) -> None:
        nonlocal count
        if count in numbers:
            seen.append((copied(args), copied(kwargs)))
            if len(seen) == len(numbers):
                raise _Enough
        count += 1

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _floor(layers: dict[str, _Place], probe: _Probe) -> float:
    """Return the output error that rounding alone makes: all layers' sums in another order.

    What quantizing a layer changes can't be told from rounding below it; in bfloat16 that is much,
    since later layers amplify what differs in the last bit. (One layer's sums in another order
    often round to the same values, and tell nothing.)
    """
    originals = {
        path: place.owner.get_submodule(place.layer.path) for path, place in layers.items()
    }
    try:
        for path, place in layers.items():
            put_module(place.owner, place.layer.path, _reordered(originals[path]))
        return probe.errors(list(layers))[0]
    finally:
        for path, place in layers.items():
            put_module(place.owner, place.layer.path, originals[path])


def _reordered(linear: torch.nn.Linear) -> torch.nn.Linear:
    """Return a layer that adds the same products in another order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(linear.in_features, generator=generator).to(linear.weight.device)
    new = torch.nn.Linear(linear.in_features, linear.out_features, device="meta")
    new.weight = torch.nn.Parameter(linear.weight[:, order], requires_grad=False)
    new.bias = linear.bias
    new.register_forward_pre_hook(lambda module, args: (args[0][..., order], *args[1:]))
    return new.eval()


class _Quantized:
    """Layers that were quantized once, as long as there is room for them.

    With a compute dtype they are plain float32 layers, of the values that weights quantized from
    that dtype stand for.
    """

    def __init__(self, values_of: torch.dtype | None = None, room: int = _KEPT_BYTES) -> None:
        self._values_of, self._room = values_of, room
        self._found: dict[tuple[str, str], tuple[torch.nn.Module, float, float]] = {}

    def get(
        self, path: str, word: str, place: _Place, linear: torch.nn.Linear
    ) -> tuple[torch.nn.Module, float, float]:
        """Return a layer in a word, and the squared norms of its error and of its weight."""
        if (path, word) in self._found:
            return self._found[path, word]
        backend, form = door(word, "layers"), door(word, "stored_form")
        weight, bias = linear.weight, linear.bias
        if self._values_of is not None:
            weight = weight.to(self._values_of)
            bias = None if bias is None else bias.to(self._values_of)
        module, _ = backend.quantize_linear(place.layer, word, weight, bias)
        plain = form.plain_weight(module)
        if self._values_of is not None:
            module = _plain_layer(linear, plain)
        delta = plain.double() - linear.weight.double()
        norm = linear.weight.double().square().sum().item()
        found = module, delta.square().sum().item(), norm
        self._room -= weight_bytes(module)
        if self._room > 0:
            self._found[path, word] = found
        return found


def _plain_layer(linear: torch.nn.Linear, weight: torch.Tensor) -> torch.nn.Linear:
    """Return a layer with other values as its weight."""
    new = torch.nn.Linear(linear.in_features, linear.out_features, device="meta")
    new.weight = torch.nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
    new.bias = linear.bias
    return new.eval()


def _errors(
    words: dict[str, str], layers: dict[str, _Place], probe: _Probe, quantized: _Quantized
) -> SetError:
    """Return the relative error of some layers' weights, and of the output with them quantized."""
    squares = norms = 0.0
    originals = {}
    try:
        for path, word in words.items():
            place = layers[path]
            linear = originals[path] = place.owner.get_submodule(place.layer.path)
            module, error, norm = quantized.get(path, word, place, linear)
            put_module(place.owner, place.layer.path, module)
            squares += error
            norms += norm
        output_error, by_input = probe.errors(list(words))
    finally:
        for path, linear in originals.items():
            put_module(layers[path].owner, layers[path].layer.path, linear)
    return SetError(_relative(squares, norms), output_error, by_input)


def _relative(squares: float, norms: float) -> float:
    """Return a relative L2 norm; infinite if the output is no number any more."""
    value = math.sqrt(squares / norms) if norms > 0 else math.nan
    return value if math.isfinite(value) else math.inf
