"""A component from disk, quantized while it is read: one layer in memory twice, never a model."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ...devices import resolve_device
from ...errors import BrokenModelError, one_of
from ...models.layers import kept_in_float32, linear_layers
from ...models.skeleton import build_skeleton, component_class, quiet_libraries
from ...models.source import Component, find_model, read_json
from ...recipes import COMPUTE_DTYPES, Recipe, as_recipe
from .declaring import declare
from .mapped import MappedWeights
from .quantize import (
    QuantizeReport,
    is_quantized,
    plan_layers,
    put_module,
    put_tensor,
    quantize,
    quantize_linear,
    resolve_layers,
)
from .tensors import weight_bytes


def load(
    model: str | Path | None = None,
    recipe: Recipe | str = "int8",
    component: str | None = None,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> torch.nn.Module:
    """Return one component of a model, quantized, ready for a pipeline.

    Weights are read, quantized and released layer by layer. What comes out is, bit for bit,
    what Diffusers' ``from_pretrained(quantization_config=QuantoConfig(...))`` gives, with the
    layers that would crash or fail cured (see `QuantizeReport.cures`).

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout (a pipeline's or a component's), or a Hub id.
    recipe : Recipe or str
        What to quantize to and which layers to keep.
    component : str, optional
        ``"transformer"``, ``"text_encoder_2"``, ...; by default the denoiser.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.

    Returns
    -------
    torch.nn.Module
        In eval mode. Its `quantize_report` attribute says what became of each layer. Its
        configuration says that it is quantized, so its own ``save_pretrained``, or a pipeline's,
        writes what plain Diffusers loads with equal weights, or refuses where its rules can't
        express the recipe (then a warning says why). Only `save` writes files whose weights lie
        where int8's kernel can read them straight from a mapped file.

    Raises
    ------
    ArgumentError
        Unknown recipe, component, dtype or device, or a skip pattern that matches nothing.
    ModelNotFoundError, BrokenModelError
        If the model isn't there or its files can't be read.

    Examples
    --------
    >>> transformer = load("demo", "int4", device="cpu")
    >>> pipe = FluxPipeline.from_pretrained(demo_model(), transformer=transformer,
    ...                                     dtype=torch.bfloat16)
    """
    recipe = as_recipe(recipe)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    part = find_model(model).component(component)
    return load_component(part, recipe, dtype=dtype, device=device)[0]


def load_component(
    part: Component, recipe: Recipe, *, dtype: str, device: str, strict_skip: bool = True
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Return a component and its report; arguments as for `load`, already resolved.

    Parameters
    ----------
    strict_skip : bool
        Whether a skip pattern that hits nothing here is an error; not so when several
        components share one recipe.
    """
    if part.library == "diffusers":
        module = build_skeleton(part, keep_buffers=True)
        if not is_quantized(module) and "quantization_config" not in module.config:
            loaded = _read_layer_by_layer(part, module, recipe, dtype, device, strict_skip)
            if loaded is not None:
                return loaded
    module = _read_whole(part, dtype).to(device)
    layers = linear_layers(module)
    resolve = plan_layers if strict_skip else resolve_layers
    kept = resolve(module, layers, recipe, part.name, dtype).kept
    # By full paths, since a pattern may be meant for another component than this one.
    paths = () if recipe.is_reference else tuple(path for path, _ in kept)
    module, report = quantize(module, Recipe(recipe.weights, paths))
    module.quantize_report = replace(report, recipe=recipe, kept=kept)
    release_memory()
    return module.eval(), module.quantize_report


def release_memory() -> None:
    """Give memory that quantizing has freed back to the system, where the C library can."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            pass  # another C library: it decides by itself


def _read_layer_by_layer(
    part: Component,
    module: torch.nn.Module,
    recipe: Recipe,
    dtype: str,
    device: str,
    strict_skip: bool,
) -> tuple[torch.nn.Module, QuantizeReport] | None:
    """Fill a skeleton from safetensors; None if names don't match and Diffusers must convert."""
    tensors = MappedWeights(weight_files(part.folder))
    expected = module.state_dict()
    if set(tensors) != set(expected):
        return None
    for name, like in expected.items():
        if tensors.spec(name).shape != tuple(like.shape):
            raise BrokenModelError(
                f"the weights in {part.folder} don't fit its config.json: {name!r} has the "
                f"shape {tensors.spec(name).shape}, not {tuple(like.shape)}"
            )
    return fill_skeleton(
        module,
        tensors,
        recipe,
        part.name,
        dtype=dtype,
        device=device,
        strict_skip=strict_skip,
        release=tensors.release,
    )


def fill_skeleton(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    recipe: Recipe,
    component: str,
    *,
    dtype: str,
    device: str,
    strict_skip: bool = True,
    release: Callable[[], None] = lambda: None,
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Fill a skeleton with tensors, each quantized and released before the next is read.

    Parameters
    ----------
    module : torch.nn.Module
        From `build_skeleton`, with its buffers kept.
    tensors : mapping of str to torch.Tensor
        Exactly the names of the module's state dict; each is asked for once.
    recipe, component, dtype, device, strict_skip
        As for `load_component`, already resolved.
    release : callable
        Called when no tensor that was read is needed any longer.

    Raises
    ------
    ArgumentError
        If a skip pattern matches no layer.
    BrokenModelError
        If a weight holds NaN or infinity.
    """
    layers = linear_layers(module)
    resolve = plan_layers if strict_skip else resolve_layers
    plan = resolve(module, layers, recipe, component, dtype)
    waiting = {f"{la.path}.weight": la for la in plan.quantized}
    owners = dict(module.named_modules(remove_duplicate=False))
    applied: list[tuple[str, str]] = []
    for name in tensors:
        layer = waiting.get(name)
        if layer is None:
            if not _belongs_to(name, waiting):  # a quantized layer's bias comes with its weight
                value = _cast(tensors[name], name, module, dtype, device)
                put_tensor(owners, name, value)
                release()
            continue
        bias = None
        if layer.bias:
            name = f"{layer.path}.bias"
            bias = _cast(tensors[name], name, module, dtype, device)
        weight = tensors[f"{layer.path}.weight"].to(device)  # cast while it is quantized
        if not weight.is_floating_point():
            raise BrokenModelError(
                f"the weight of layer {layer.path!r} is stored as {weight.dtype}: it is quantized "
                "already; an unquantized model was expected"
            )
        quantized, names = quantize_linear(
            layer, recipe.weights, weight, bias, dtype=getattr(torch, dtype)
        )
        del weight
        applied += [(layer.path, cure) for cure in names]
        put_module(module, layer.path, quantized)
        release()
    place_buffers(module, device)  # those that no file holds
    release_memory()
    quantized_paths = tuple(la.path for la in plan.quantized)
    kept_paths = [path for path, _ in plan.kept]
    declare(module, dict.fromkeys(quantized_paths, recipe.weights), kept_paths)
    report = QuantizeReport(
        recipe, quantized_paths, plan.kept, tuple(applied), weight_bytes(module)
    )
    module.quantize_report = report
    return module, report


def _belongs_to(name: str, waiting: dict) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "bias" and f"{owner}.weight" in waiting


def _cast(
    value: torch.Tensor, name: str, module: torch.nn.Module, dtype: str, device: str
) -> torch.Tensor:
    """Return a tensor cast as Diffusers casts, in memory of its own.

    Memory-mapped tensors may be misaligned, and would keep the file mapped.
    """
    target = value.dtype
    if value.is_floating_point():
        target = torch.float32 if kept_in_float32(module, name, dtype) else getattr(torch, dtype)
    return value.to(device=device, dtype=target, copy=True)


def place_buffers(module: torch.nn.Module, device: str) -> None:
    """Move buffers that lie elsewhere to a device."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta and buffer.device != torch.device(device):
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def _read_whole(part: Component, dtype: str) -> torch.nn.Module:
    """Return a component as its own library loads it: text encoders, renamed or tied weights."""
    cls = component_class(part)
    try:
        with quiet_libraries():
            module, info = cls.from_pretrained(
                str(part.folder),
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                dtype=getattr(torch, dtype),
            )
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise BrokenModelError(
            f"the weights in {part.folder} can't be read: {_first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise BrokenModelError(
            f"the weights in {part.folder} lack {len(missing)} tensors that {part.cls} needs, "
            f"{missing[0]!r} for one: a file for another class, or a quantized one without its "
            "configuration"
        )
    return module.eval().requires_grad_(False)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a component's weights.

    Raises
    ------
    BrokenModelError
        If there are none, or the index names a file that isn't there or lies elsewhere.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        shards = read_json(indexes[0]).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise BrokenModelError(f"{indexes[0]} has no 'weight_map' of tensor and file names")
        names = sorted(set(shards.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise BrokenModelError(f"{indexes[0]} names {name!r}, which isn't in its folder")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" (pickles such as {pickles[0]} are never loaded)" if pickles else ""
        raise BrokenModelError(f"{folder} holds no .safetensors file{hint}")
    plain = [f for f in files if f.name.count(".") == 1]  # variants have one dot more
    return plain[:1] or files[:1]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
