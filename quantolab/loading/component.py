"""A component from disk, quantized while it is read: one layer in memory twice, never a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ..arguments import public
from ..backends import check_installed, check_supported
from ..devices import resolve_device
from ..errors import BrokenModelError, first_line, is_out_of_memory, one_of
from ..files.choosing import weight_files
from ..files.foreign import check_plain
from ..files.mapped import MappedWeights
from ..models.resolving import Share, as_share, check_recipe, resolve, share_of, shares_in
from ..models.skeleton import build_skeleton, component_class, quiet_libraries
from ..models.source import Component, Source, find_model
from ..models.unquantized import check_configured
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..weights import DEFAULT
from .filling import fill_skeleton
from .in_memory import quantize_resolved
from .placing import release_memory
from .report import QuantizeReport, finish


@public
def load(
    model: str | Path | None = None,
    recipe: Recipe | str = DEFAULT,
    component: str | None = None,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    variant: str | None = None,
    revision: str | None = None,
) -> torch.nn.Module:
    """Return one component of a model, quantized, ready for a pipeline.

    Weights are read, quantized and released layer by layer. What comes out is, bit for bit,
    what Diffusers' ``from_pretrained(quantization_config=QuantoConfig(...))`` gives, with the
    layers that would crash or fail cured (see `QuantizeReport.cures`).

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout (a pipeline's or a component's), or a Hub model
        (``OWNER/NAME``, ``OWNER/NAME@REVISION``, its address), of which this component is fetched.
    recipe : Recipe or str
        What to quantize to and which layers to keep.
    component : str, optional
        ``"transformer"``, ``"text_encoder_2"``, ...; by default the denoiser. A recipe's word for
        all is meant for it.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.

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
    check_installed(recipe.words)
    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    device = resolve_device(device)
    source = find_model(model, weights=(component,), variant=variant, revision=revision)
    part = source.component(component)
    share = share_of(recipe, source, part.name)
    alone = len(shares_in(recipe, source)) < 2
    if not alone:
        check_shares(recipe, source, dtype)
    return load_component(part, share, dtype=dtype, device=device, strict_skip=alone)[0]


def check_shares(recipe: Recipe, source: Source, dtype: str) -> dict[str, Share]:
    """Return a recipe's share of each component, after a look at whether all of it takes effect.

    Raises
    ------
    ArgumentError
        If it doesn't, or names a component that the model hasn't.
    """
    shares = shares_in(recipe, source)
    found = {}
    for name, share in shares.items():
        module = build_skeleton(source.component(name), dtype=dtype)
        found[name] = (share, resolve(module, share, dtype=dtype, strict=False))
    check_recipe(recipe, found)
    return shares


def load_component(
    part: Component, recipe: Recipe | Share, *, dtype: str, device: str, strict_skip: bool = True
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Return a component and its report; arguments as for `load`, already resolved.

    Parameters
    ----------
    recipe : Recipe or Share
        A recipe by itself is meant for this component; of several, each has its share.
    strict_skip : bool
        Whether a pattern that hits nothing here is an error; not so when several components
        share one recipe.
    """
    check_configured(part)
    share = as_share(recipe, part.name)
    check_installed(share.recipe.words)
    files = weight_files(part.folder, part.library, variant=part.variant)
    tensors = MappedWeights(files.paths)
    check_plain(part.folder, {name: tensors.spec(name).dtype for name in tensors})
    if part.library == "diffusers":
        module = build_skeleton(part, keep_buffers=True, dtype=dtype)
        loaded = _read_layer_by_layer(part, module, tensors, share, dtype, device, strict_skip)
        if loaded is not None:
            return _with_note(part, *loaded)
    del tensors  # its own library reads them anew
    module = _read_whole(part, dtype)
    resolved = resolve(module, share, dtype=dtype, strict=strict_skip)
    check_supported(((c.layer, c.word) for c in resolved.quantized), dtype, device)
    if not resolved.quantized:  # nor need it be, of several components that share a recipe
        report = finish(module.to(device), share.recipe, resolved, ())
    else:
        module, report = quantize_resolved(module, share.recipe, resolved, device)
    release_memory()
    return _with_note(part, module.eval(), report)


def _with_note(
    part: Component, module: torch.nn.Module, report: QuantizeReport
) -> tuple[torch.nn.Module, QuantizeReport]:
    """Return a component whose report says where its weights are from, if that is to be said."""
    if part.note is not None:
        report = dataclasses.replace(report, said=(*report.said, part.note))
        module.quantize_report = report
    return module, report


def _read_layer_by_layer(
    part: Component,
    module: torch.nn.Module,
    tensors: MappedWeights,
    share: Share,
    dtype: str,
    device: str,
    strict_skip: bool,
) -> tuple[torch.nn.Module, QuantizeReport] | None:
    """Fill a skeleton from safetensors; None if names don't match and Diffusers must convert."""
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
        share,
        part.name,
        dtype=dtype,
        device=device,
        strict_skip=strict_skip,
        release=tensors.release,
    )


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
                **({} if part.variant is None else {"variant": part.variant}),
            )
    except Exception as error:  # malformed files fail in as many ways as there are libraries
        if is_out_of_memory(error):
            raise
        raise BrokenModelError(
            f"the weights in {part.folder} can't be read: {first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise BrokenModelError(
            f"the weights in {part.folder} lack {len(missing)} tensors that {part.cls} needs, "
            f"{missing[0]!r} for one: a file for another class, or a quantized one without its "
            "configuration"
        )
    _check_unused(part, module, sorted(info["unexpected_keys"]))
    return module.eval().requires_grad_(False)


def _check_unused(part: Component, module: torch.nn.Module, unused: list[str]) -> None:
    """Refuse weights some of which would stay unread: scales of the others, or another model's.

    Files for transformers may hold more than the class, as a whole T5 where the encoder is asked
    for; there only tensors of the class's own layers count.
    """
    if part.library == "transformers":
        own = {path for path, layer in module.named_modules() if [*layer.parameters(recurse=False)]}
        own |= {name for name, _ in module.named_parameters(remove_duplicate=False)}
        unused = [name for name in unused if own.intersection(_above(name))]
    if unused:
        raise BrokenModelError(
            f"the weights in {part.folder} hold {len(unused)} tensors that {part.cls} has no place "
            f"for, {unused[0]!r} for one, and would be read without them: a file for another "
            "class, or one that is quantized in a way that isn't known here"
        )


def _above(name: str) -> list[str]:
    """Return the paths above a name, the root left out."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
