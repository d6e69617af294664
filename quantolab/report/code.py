"""A recipe as a plain Diffusers script: what quantolab does, for those who don't have it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import public
from ..backends import package_of, script_form
from ..devices import check_device
from ..errors import ArgumentError, one_of, whole_number
from ..measure.frames import MOST_FRAMES
from ..models.source import DEMO, Component, Source, check_size, find_model
from ..models.videos import makes_videos
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe, slug, weights_only
from ..run.carrying import file_and_weight
from ..weights import BACKENDS, HOME, backends_of, weights_of

if TYPE_CHECKING:
    from ..models.resolving import Resolved

_WIDTH = 100  # of a line, so that the script reads well where it is pasted

_NOT_CONTIGUOUS = ("SanaTransformer2DModel",)
"""Classes that feed their layers transposed tensors, which the CPU's kernels refuse."""

_UNPACK = """\
# Quanto compiles C++ at the first int4 or int2 forward: a minute, and it needs a compiler and
# ninja. This does the same in plain torch.
lib = types.SimpleNamespace(
    unpack=lambda t, bits: torch.cat([(t >> s) & (2**bits - 1) for s in range(0, 8, bits)])
)
for extension in extensions.values():
    extension._lib = lib
"""

_NO_CUDA_KERNELS = """\
# Quanto's fused CUDA kernels need nvcc; without them its generic classes run.
extensions.pop("quanto_cuda", None)
"""


@dataclass(frozen=True)
class _Part:
    """One component in the script: what is quantized and what plain Quanto needs help with."""

    component: Component
    kept: tuple[str, ...]
    """Patterns for Quanto's `exclude`."""
    words: dict[str, tuple[str, ...]]
    """For each weights word patterns of its layers; the first that hits a layer counts."""
    generic: tuple[str, ...]
    """Paths of layers that must not become TinyGemm weights."""
    plain: tuple[str, ...]
    """Paths of layers that the int8 kernel of CPUs can't compute."""
    contiguous: bool
    """Whether inputs must be made contiguous."""
    by_path: dict[str, str]
    """Weights word of each quantized layer."""
    kept_paths: tuple[str, ...]
    """Layers that stay as they are."""

    @property
    def backend(self) -> str:
        """Who quantizes it; empty if nobody does."""
        return next(iter(backends_of(self.by_path.values())), "")

    @property
    def is_plain_quanto(self) -> bool:
        """Whether it is quantized after it was loaded, by Quanto."""
        return self.backend == HOME


@public
def diffusers_code(
    recipe: Recipe | str,
    model: str | os.PathLike | None = None,
    *,
    component: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    prompt: str = "a photograph of a red fox in a snowy forest",
    steps: int | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    variant: str | None = None,
    revision: str | None = None,
    lora: str | os.PathLike | tuple[str | os.PathLike, float] | None = None,
    frames: int | None = None,
) -> str:
    """Return the plain Diffusers script that does what a recipe does here.

    Quanto's words are quantized with ``optimum.quanto`` itself, since Diffusers' ``QuantoConfig``
    is deprecated and knows only leaf names; SDNQ's and torchao's with their configuration, by the
    full name of each layer. It gives the same weights bit for bit (but for an SVD, which starts
    from random numbers). Skips are resolved against
    the real model, and written as globs where globs say the same.

    Parameters
    ----------
    recipe : Recipe or str
        What to quantize to, which layers to keep, which components.
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id (configuration files only).
    component : str, optional
        The one to quantize, if the recipe names none; by default the denoiser.
    dtype : str
        Compute dtype.
    device : str
        ``"auto"`` writes a script that takes CUDA if it is there, else the CPU.
    prompt : str
        Text that the script makes a picture of.
    steps : int, optional
        Denoising steps; by default the pipeline's own.
    seed : int
        Seed of the noise.
    size : tuple of int, optional
        (width, height) in pixels; by default the pipeline's own.
    guidance : float, optional
        Guidance scale; by default the pipeline's own.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.
    lora : str, path or (path, float), optional
        A LoRA as `compare` takes it; the file isn't looked for.
    frames : int, optional
        Frames of the video, for models that make videos; by default the pipeline's own.

    Returns
    -------
    str
        Python source, ready to be saved and run.

    Raises
    ------
    ArgumentError
        An unusable argument, or a skip pattern that matches no layer.
    ModelNotFoundError, BrokenModelError
        If the model isn't there or isn't one.
    UnsupportedError
        If the recipe has words of a backend that plain Diffusers runs with a GPU only.

    Examples
    --------
    >>> print(diffusers_code("int8", "black-forest-labs/FLUX.1-dev"))
    """
    recipe = as_recipe(recipe)
    for backend in backends_of(recipe.words):
        if backend != HOME:
            script_form(backend)
    weights_only([recipe], "a script of plain Diffusers")
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    check_device(device)
    whole_number("seed", seed, 0)
    if steps is not None:
        whole_number("steps", steps)
    source = find_model(model, weights=False, variant=variant, revision=revision)
    if size is not None:
        size = check_size(source, size)
    parts = _resolved(source, recipe, component, dtype, device)
    words = {word for part in parts if part.is_plain_quanto for word in part.words}
    if frames is not None:
        whole_number("frames", frames, most=MOST_FRAMES)
        if not makes_videos(source):
            raise ArgumentError(f"{source.model!r} makes pictures, which have no frames")
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "num_frames": frames}
    if size is not None:
        call |= {"width": size[0], "height": size[1]}
    blocks = [
        _heading(source, recipe, parts, lora is not None),
        _imports(source, words, parts),
        _settings(source, dtype, device),
        *_workarounds(words),
        *(_part_code(source, part) for part in parts),
    ]
    if source.pipeline:
        carried = [] if lora is None else _lora_code(source, parts, *file_and_weight(lora))
        blocks.append(_pipeline_code(source, recipe, parts, prompt, seed, call, carried))
    elif lora is not None:
        raise ArgumentError(
            f"lora is given, and {source.model!r} is one component: a pipeline loads LoRAs"
        )
    return "\n".join(blocks)


def _resolved(
    source: Source, recipe: Recipe, component: str | None, dtype: str, device: str
) -> tuple[_Part, ...]:
    """Return what becomes of each component, from shapes alone."""
    from ..models.resolving import check_recipe, reference_share, resolve, share_of, shares_in
    from ..models.skeleton import build_skeleton

    if recipe.is_reference:
        if source.pipeline:
            return ()  # the pipeline loads everything itself
        names = (component,) if component else source.default_components
        shares = {name: reference_share(name) for name in names}
    else:
        if component is not None and not recipe.named_components:
            shares = {component: share_of(recipe, source, component)}
        else:
            shares = shares_in(recipe, source)
    found = {}
    for name, share in shares.items():
        module = build_skeleton(source.component(name), dtype=dtype)
        found[name] = (share, resolve(module, share, dtype=dtype, strict=False))
    check_recipe(recipe, found)
    return tuple(
        _resolve(source.component(name), resolved, recipe, dtype, device)
        for name, (_, resolved) in found.items()
    )


def _resolve(
    component: Component, resolved: Resolved, recipe: Recipe, dtype: str, device: str
) -> _Part:
    import torch

    from ..backends.quanto import cures

    paths = tuple(layer.path for layer in resolved.layers)
    kept = tuple(path for path, _ in resolved.kept)
    words = resolved.words
    # What each layer needs on a CPU; int4's need is the same on CUDA.
    needs = {
        choice.layer.path: cures.cure_for(choice.layer, choice.word, getattr(torch, dtype), "cpu")
        for choice in resolved.quantized
    }
    on_cpu = device in ("auto", "cpu")
    has_kernel = any(word in cures.CPU_KERNELS for word in words.values()) and dtype == "bfloat16"
    patterns = tuple(term.name for term in recipe.terms)
    return _Part(
        component,
        globs_for(kept, paths, patterns, component.name),
        _words(words, paths, patterns, component.name),
        tuple(path for path, need in needs.items() if need == cures.INT4_GENERIC),
        tuple(path for path, need in needs.items() if need == cures.INT8_PLAIN and on_cpu),
        component.cls in _NOT_CONTIGUOUS and has_kernel and on_cpu,
        words,
        kept,
    )


def _words(
    words: dict[str, str], paths: tuple[str, ...], patterns: tuple[str, ...], component: str
) -> dict[str, tuple[str, ...]]:
    """Return patterns for the layers of each word, the commonest last: it gets what is left."""
    chosen = list(words.values())
    order = sorted(set(chosen), key=lambda word: (chosen.count(word), word))
    found = {
        word: globs_for([p for p in words if words[p] == word], paths, patterns, component)
        for word in order
    }
    return found | dict.fromkeys(order[-1:], ("*",))


def globs_for(
    kept: Iterable[str], paths: Iterable[str], patterns: Iterable[str], component: str = ""
) -> tuple[str, ...]:
    """Return globs that match exactly the kept ones of all paths, few if that is possible.

    Parameters
    ----------
    kept, paths : iterable of str
        Full paths of the layers that stay as they are, and of all layers.
    patterns : iterable of str
        As the user wrote them: the globs to try first.
    component : str
        Name that a pattern may begin with.

    Examples
    --------
    >>> globs_for(["proj_out", "a.proj_out"], ["proj_out", "a.proj_out", "a.q"], ["proj_out"])
    ('proj_out', '*.proj_out')
    """
    kept, paths = tuple(kept), tuple(paths)
    left = set(kept)
    chosen: list[str] = []
    for pattern in patterns:
        bare = pattern.removeprefix(component + ".") if component else pattern
        for glob in dict.fromkeys((bare, f"*.{bare}", f"{bare}.*", f"*.{bare}.*")):
            hit = {path for path in paths if fnmatchcase(path, glob)}
            if hit & left and hit <= set(kept):
                chosen.append(glob)
                left -= hit
    return (*chosen, *(path for path in kept if path in left))


def _heading(source: Source, recipe: Recipe, parts: tuple[_Part, ...], carries: bool) -> str:
    used = {part.backend for part in parts} - {""} or {HOME}
    packages = [package_of(backend) for backend in BACKENDS if backend in used]
    packages += ["peft"] if carries else []
    return (
        f"# {_model_words(source)}, {recipe}, without quantolab.\n"
        f"# Needs: pip install torch diffusers transformers accelerate {' '.join(packages)}\n"
    )


def _model_words(source: Source) -> str:
    return "The demo model of quantolab" if source.model == DEMO else source.model


def _imports(source: Source, words: set[str], parts: tuple[_Part, ...]) -> str:
    from_library: dict[str, set[str]] = {"diffusers": set(), "transformers": set()}
    for part in parts:
        from_library[part.component.library].add(part.component.cls)
    if source.pipeline:
        from_library["diffusers"].add(source.pipeline)
    others, before = _other_imports(parts)
    for library, names in others.items():
        from_library.setdefault(library, set()).update(names)
    standard = ["import os"] if before else []
    standard += ["import types"] if any(weights_of(word).is_packed for word in words) else []
    if any(len(part.words) > 1 for part in parts if part.is_plain_quanto):
        standard.append("from fnmatch import fnmatchcase")
    lines = [*standard, *([""] if standard else []), *before, "import torch"]
    lines += [
        f"from {library} import {', '.join(sorted(names))}"
        for library, names in sorted(from_library.items())
        if names
    ]
    if words:
        names = ["freeze", "quantize"]
        if any(part.generic for part in parts):
            names.append("quantize_weight")
        quanto = [f"from optimum.quanto import {', '.join(names)}"]
        if _workarounds(words):
            quanto.append(
                "from optimum.quanto.library.extensions.extension import _extensions as extensions"
            )
        at = 1 + next(i for i, line in enumerate(lines) if line.startswith("from diffusers"))
        lines[at:at] = quanto
    if makes_videos(source):
        at = 1 + next(i for i, line in enumerate(lines) if line.startswith("from diffusers"))
        lines.insert(at, "from diffusers.utils import export_to_video")
    return "\n".join(lines) + "\n"


def _other_imports(parts: tuple[_Part, ...]) -> tuple[dict[str, set[str]], list[str]]:
    """Return what other backends' components need imported, and what must come before."""
    found: dict[str, set[str]] = {}
    before: list[str] = []
    for part in parts:
        if part.backend in ("", HOME):
            continue
        form = script_form(part.backend)
        asked = form.imports(part.component.library, frozenset(part.by_path.values()))
        for library, names in asked.items():
            found.setdefault(library, set()).update(names)
        if form.BEFORE and form.BEFORE not in before:
            before.append(form.BEFORE)
    return found, before


def _settings(source: Source, dtype: str, device: str) -> str:
    on_hub = source.hub is not None and not source.hub.path
    where = source.hub.repo if on_hub else str(source.folder.resolve())
    chosen = '"cuda" if torch.cuda.is_available() else "cpu"' if device == "auto" else None
    return (
        f"model = {_quoted(where)}\ndtype = torch.{dtype}\ndevice = {chosen or _quoted(device)}\n"
    )


def _workarounds(words: Iterable[str]) -> tuple[str, ...]:
    if any(weights_of(word).is_packed for word in words):
        return (_UNPACK + _NO_CUDA_KERNELS,)
    return (_NO_CUDA_KERNELS,) if any(map(_stores_nan, words)) else ()


def _part_code(source: Source, part: _Part) -> str:
    from ..models.skeleton import dtype_keyword

    name = part.component.name
    arguments = ["model", f"{dtype_keyword(part.component.library)}=dtype"]
    if source.pipeline:
        arguments.insert(1, f"subfolder={_quoted(name)}")
    arguments += _chosen_files(source, part.component.variant)
    if part.backend not in ("", HOME):
        return _configured_code(part, arguments)
    lines = [
        *_called(f"{name} = {part.component.cls}.from_pretrained(", arguments, ")"),
        f"{name}.to(device)",
    ]
    if not part.words:
        return "\n".join(lines) + "\n"
    # `include`: on its own Quanto would also quantize convolutions.
    lines += [
        f"linear = [n for n, m in {name}.named_modules() if isinstance(m, torch.nn.Linear)]",
        *_listed("keep", part.kept),
        *_quantize_code(part),
        *_generic_code(part),
        f"freeze({name})",
        *_after_freezing(part),
    ]
    return "\n".join(lines) + "\n"


def _configured_code(part: _Part, arguments: list[str]) -> str:
    """Return the lines that load a component with another backend's configuration."""
    name, form = part.component.name, script_form(part.backend)
    first, *rest = form.config(part.component.library, part.by_path, part.kept_paths)
    start = f"{name} = {part.component.cls}.from_pretrained("
    lines = [
        f"{name}_config = {first}",
        *rest,
        *_called(start, [*arguments, f"quantization_config={name}_config"], ")"),
        f"{name}.to(device)",
    ]
    return "\n".join(lines) + "\n"


def _quantize_code(part: _Part) -> list[str]:
    name = part.component.name
    if len(part.words) == 1:
        (word,) = part.words
        return [f'quantize({name}, weights="q{word}", include=linear, exclude=keep)']
    lines = [
        "left = [n for n in linear if not any(fnmatchcase(n, glob) for glob in keep)]",
        "words = {  # the first that hits a layer counts",
    ]
    for word, patterns in part.words.items():
        inner = _called(f'"q{word}": [', [_quoted(glob) for glob in patterns], "],")
        lines += [f"    {line}" for line in inner]
    return [
        *lines,
        "}",
        "for word, globs in words.items():",
        "    mine = [n for n in left if any(fnmatchcase(n, glob) for glob in globs)]",
        f"    quantize({name}, weights=word, include=mine)",
        "    left = [n for n in left if n not in mine]",
    ]


def _generic_code(part: _Part) -> list[str]:
    if not part.generic:
        return []
    return [
        "# TinyGemm refuses heights that aren't multiples of 16: these stay in the generic class.",
        *_listed("generic", part.generic),
        "for path in generic:",
        f"    m = {part.component.name}.get_submodule(path)",
        "    kind = dict(qtype=m.weight_qtype, axis=0, group_size=m.weight_group_size)",
        "    scale, shift = m.optimizer(m.weight.detach(), **kind)",
        "    packed = quantize_weight("
        "m.weight.detach(), scale=scale, shift=shift, optimized=False, **kind)",
        "    m.weight = torch.nn.Parameter(packed, requires_grad=False)",
    ]


def _after_freezing(part: _Part) -> list[str]:
    name, lines = part.component.name, []
    if any(map(_stores_nan, part.words)):
        is_one = 'hasattr(m, "weight_qtype")'
        if len(part.words) > 1:
            is_one += " and m.weight_qtype.is_floating_point"
        lines += [
            "# A row of zeros has the scale 0, and 0/0 would be NaN in every picture.",
            f"for m in {name}.modules():",
            f"    if {is_one}:",
            "        raw, empty = m.weight._data.view(torch.uint8), m.weight._scale == 0",
            "        raw.masked_fill_(empty.expand_as(raw), 0)",
        ]
    if part.plain:
        lines += [
            "# The int8 kernel of CPUs crashes on widths that aren't multiples of 16.",
            *_listed("odd", part.plain),
            'for path in odd if device == "cpu" else ():',
            f"    m = {name}.get_submodule(path)",
            "    m.forward = lambda x, m=m: torch.nn.functional.linear(",
            "        x, m.weight.dequantize(), m.bias",
            "    )",
        ]
    if part.contiguous:
        lines += [
            "# The kernels of CPUs refuse the transposed inputs of this model.",
            f"for m in {name}.modules():",
            '    if hasattr(m, "weight_qtype"):',
            "        m.register_forward_pre_hook(lambda m, x: (x[0].contiguous(), *x[1:]))",
        ]
    return lines


def _pipeline_code(
    source: Source,
    recipe: Recipe,
    parts: tuple[_Part, ...],
    prompt: str,
    seed: int,
    call: dict[str, object],
    carried: list[str],
) -> str:
    from ..models.skeleton import dtype_keyword

    arguments = [
        "model",
        *(f"{part.component.name}={part.component.name}" for part in parts),
        f"{dtype_keyword('diffusers')}=dtype",
        *_chosen_files(source, source.variant),
    ]
    lines = [
        *_called(f"pipe = {source.pipeline}.from_pretrained(", arguments, ").to(device)"),
        *carried,
        f'noise = torch.Generator("cpu").manual_seed({seed})  # the same on every device',
        "result = pipe(",
        f"    prompt={_quoted(prompt)},",
        *(f"    {key}={value!r}," for key, value in call.items() if value is not None),
        "    generator=noise,",
        ")",
    ]
    file = slug(recipe.shown)
    if makes_videos(source):
        lines.append(f'export_to_video(result.frames[0], "{file}.mp4")')
    else:
        lines.append(f'result.images[0].save("{file}.png")')
    return "\n".join(lines) + "\n"


def _lora_code(source: Source, parts: tuple[_Part, ...], file: str, weight: float) -> list[str]:
    """Return the lines that load a LoRA over a pipeline."""
    path = Path(file)
    lines = []
    if (source.pipeline or "").startswith("Flux") and any(p.is_plain_quanto for p in parts):
        lines += [
            "# Diffusers looks shapes up by names that quantized weights haven't; Control LoRAs",
            "# alone need that.",
            "pipe._maybe_expand_lora_state_dict = lambda transformer, lora_state_dict: "
            "lora_state_dict",
        ]
    arguments = [
        _quoted(str(path.parent)), f"weight_name={_quoted(path.name)}", 'adapter_name="lora"',
    ]  # fmt: skip
    lines += _called("pipe.load_lora_weights(", arguments, ")")
    if weight != 1:
        lines.append(f'pipe.set_adapters("lora", {weight})')
    return lines


def _chosen_files(source: Source, variant: str | None) -> list[str]:
    """Return the arguments that say which revision and which variant is meant."""
    revision = None if source.hub is None or source.hub.path else source.hub.revision
    said = {"revision": revision, "variant": variant or source.asked_variant}
    return [f"{key}={_quoted(value)}" for key, value in said.items() if value is not None]


def _stores_nan(word: str) -> bool:
    """Whether a row of zeros becomes NaN: 0/0 does, and floating-point weights keep it."""
    return weights_of(word).floating


def _listed(name: str, values: tuple[str, ...]) -> list[str]:
    """Return the lines of an assignment of names, in one line if it fits."""
    return _called(f"{name} = [", [_quoted(value) for value in values], "]")


def _called(start: str, arguments: list[str], end: str) -> list[str]:
    """Return the lines of a call or a list, one line if that fits."""
    line = start + ", ".join(arguments) + end
    if len(line) <= _WIDTH:
        return [line]
    return [start, *(f"    {argument}," for argument in arguments), end]


def _quoted(text: str) -> str:
    """Return a string literal in double quotes, as formatters write it."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
