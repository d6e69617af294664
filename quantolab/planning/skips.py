"""What a skip list really hits in a model, and what it costs, before any weight is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..arguments import public
from ..backends import check_supported, layer_bytes
from ..errors import ArgumentError, one_of
from ..models.layers import KEEP_FP32, check_patterns, kept_in_float32, linear_layers, match_layers
from ..models.resolving import (
    Share,
    check_recipe,
    reference_share,
    resolve_layers,
    share_of,
    shares_in,
    shares_of,
)
from ..models.source import Source, find_model
from ..recipes import COMPUTE_DTYPES, Recipe, as_recipe
from ..shapes import Layer
from ..weights import QUANTIZED, REFERENCE, WORDS

if TYPE_CHECKING:
    import pandas


@public
def skip_report(
    model: str | os.PathLike | None = None,
    skip: Iterable[str] | str = (),
    *,
    component: str | None = None,
    components: Iterable[str] | str = (),
    dtype: str = "bfloat16",
    recipe: Recipe | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> pandas.DataFrame:
    """Return one row a Linear layer: its shape, its bytes, and whether a skip list keeps it.

    With a recipe instead of a skip list: which word each layer gets, and which of its terms gave
    it.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"``, a folder in Diffusers layout, or a Hub id (configuration files only).
    skip : iterable of str
        Leaf names, full paths, containers' paths or globs.
    component, components : str, iterable of str, optional
        Which parts to look at; by default the denoiser.
    dtype : str
        Compute dtype, in which kept weights and scales are held.
    recipe : Recipe or str, optional
        A whole recipe to look at; its components are the ones, unless others are named.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.

    Returns
    -------
    pandas.DataFrame
        Columns ``component, path, in_features, out_features, skipped, pattern`` (what hit it, or
        why the model itself keeps it), ``diffusers_skips`` (whether the same list given to
        Diffusers' ``modules_to_not_convert`` keeps the layer: it compares leaf names only), and
        ``bytes_none, bytes_float8, ...``: bytes of the weight in each dtype. ``attrs["totals"]``
        holds, for each dtype, the bytes of all layers and what the skip list adds. With a recipe
        also ``word``, ``term`` and ``bytes``, and ``attrs["bytes"]``, those of all layers.

    Raises
    ------
    ArgumentError
        If a pattern matches no layer, with the nearest names, or both a skip list and a recipe
        are given.

    Examples
    --------
    >>> skip_report("demo", recipe="int4 *.attn.*=int8")[["path", "word", "term", "bytes"]]
    >>> report = skip_report("demo", ["proj_out"])
    >>> report[report.skipped].path.tolist()[:1]
    ['single_transformer_blocks.0.proj_out']
    """
    import pandas as pd

    from ..models.skeleton import build_skeleton
    from ..models.unquantized import check_unquantized

    one_of("compute dtype", dtype, COMPUTE_DTYPES)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    source = find_model(model, weights=False, variant=variant, revision=revision)
    named = (components,) if isinstance(components, str) else tuple(components)
    names = named or ((component,) if component else ())
    if recipe is not None:
        if skip:
            raise ArgumentError("a recipe says itself what it skips: give one or a skip list")
        return _with_words(source, as_recipe(recipe), names, dtype)
    names = names or source.default_components
    for name in names:
        check_unquantized(source.component(name))
    modules = {name: build_skeleton(source.component(name)) for name in names}
    rows = [
        _row(name, module, layer, dtype)
        for name, module in modules.items()
        for layer in linear_layers(module)
    ]
    return with_skips(pd.DataFrame(rows), skip)


def _with_words(
    source: Source, recipe: Recipe, names: tuple[str, ...], dtype: str
) -> pandas.DataFrame:
    """Return the report of a whole recipe."""
    import pandas as pd

    from ..models.skeleton import build_skeleton

    shares = {name: share_of(recipe, source, name) for name in names} or shares_in(recipe, source)
    shares = shares or {source.denoiser: reference_share(source.denoiser)}
    modules = {name: build_skeleton(source.component(name)) for name in shares}
    rows = [
        _row(name, module, layer, dtype, [word for word in recipe.words if word not in WORDS])
        for name, module in modules.items()
        for layer in linear_layers(module)
    ]
    return _worded(pd.DataFrame(rows), recipe, shares, dtype)


def with_recipe(
    report: pandas.DataFrame, recipe: Recipe, defaults: Iterable[str], dtype: str = "bfloat16"
) -> pandas.DataFrame:
    """Return a report of a whole recipe, without building the model again.

    Parameters
    ----------
    report : pandas.DataFrame
        From `skip_report` without a skip list, of the model's quantizable components; of those
        that the recipe quantizes rows are left.
    recipe : Recipe
        What is looked at.
    defaults : iterable of str
        Components that a word for all is meant for: the denoisers.
    dtype : str
        Compute dtype that the report is of.

    Raises
    ------
    ArgumentError
        If some of it takes no effect, as for `skip_report`.
    """
    shares = shares_of(recipe, report["component"].unique(), defaults)
    return _worded(report[report["component"].isin(list(shares))], recipe, shares, dtype)


def _worded(
    report: pandas.DataFrame, recipe: Recipe, shares: Mapping[str, Share], dtype: str
) -> pandas.DataFrame:
    """Return a report's rows with the word of each layer, and what gave it."""
    import pandas as pd

    layers, records = layers_of(report), report.to_dict("records")
    own: dict[str, dict[str, str]] = {name: {} for name in shares}
    for row in records:
        if row["skipped"]:
            own[row["component"]][row["path"]] = row["pattern"]
    found = {
        name: (share, resolve_layers(share, layers[name], own[name]))
        for name, share in shares.items()
    }
    check_recipe(recipe, found)
    for _, resolved in found.values():
        check_supported(((c.layer, c.word) for c in resolved.quantized), dtype)
    choices = {
        (name, choice.layer.path): choice
        for name, (_, resolved) in found.items()
        for choice in resolved
    }
    rows = []
    for row in records:
        choice = choices[row["component"], row["path"]]
        held = row.get(f"bytes_{choice.word}")
        if held is None:  # another backend's word
            held = layer_bytes(choice.layer, choice.word, dtype)
        row["skipped"] = choice.word == REFERENCE
        row["pattern"] = (choice.term or choice.why or None) if row["skipped"] else None
        said = {"word": choice.word, "term": choice.term or choice.why}
        rows.append(row | said | {"bytes": held})
    table = pd.DataFrame(rows)
    table.attrs["totals"] = _totals(table)
    table.attrs["bytes"] = int(table["bytes"].sum())
    return table


def with_skips(report: pandas.DataFrame, skip: Iterable[str]) -> pandas.DataFrame:
    """Return a report for another skip list, without building the model again.

    Parameters
    ----------
    report : pandas.DataFrame
        From `skip_report` without a skip list.
    skip : iterable of str
        Leaf names, full paths, containers' paths or globs.

    Raises
    ------
    ArgumentError
        If a pattern matches no layer, with the nearest names.
    """
    import pandas as pd

    skip = tuple(skip)
    layers = layers_of(report)
    check_patterns(skip, layers)
    hits = {name: match_layers(skip, layers[name], name) for name in layers}
    rows = report.to_dict("records")
    for row in rows:
        row["diffusers_skips"] |= row["path"].rpartition(".")[2] in skip
        if not row["skipped"]:  # by the model itself
            row["pattern"] = hits[row["component"]].get(row["path"])
            row["skipped"] = row["pattern"] is not None
    table = pd.DataFrame(rows)
    table.attrs["totals"] = _totals(table)
    return table


def layers_of(report: pandas.DataFrame) -> dict[str, tuple[Layer, ...]]:
    """Return the layers that a report lists, by component; patterns don't look at their bias."""
    found: dict[str, list[Layer]] = {}
    columns = report[["component", "path", "in_features", "out_features"]]
    for name, *shape in columns.itertuples(index=False):
        found.setdefault(name, []).append(Layer(*shape, bias=False))
    return {name: tuple(layers) for name, layers in found.items()}


def _row(name: str, module, layer: Layer, dtype: str, others: Iterable[str] = ()) -> dict:
    in_float32 = kept_in_float32(module, layer.path, dtype)
    # What Diffusers compares: the leaf name with the list, and with the model's own names.
    own = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    row = {
        "component": name,
        "path": layer.path,
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "skipped": in_float32,
        "pattern": KEEP_FP32 if in_float32 else None,
        "diffusers_skips": layer.leaf in own,
    }
    kept_dtype = "float32" if in_float32 else dtype
    for weights in (*WORDS, *others):
        row[f"bytes_{weights}"] = layer_bytes(layer, weights, kept_dtype)
    return row


def _totals(table: pandas.DataFrame) -> dict[str, dict[str, int]]:
    """Bytes of the Linear weights a dtype: as the list leaves them, and what the list adds."""
    totals = {}
    for weights in QUANTIZED:
        column = table[f"bytes_{weights}"]
        kept = table["bytes_none"].where(table["skipped"], column)
        totals[weights] = {"bytes": int(kept.sum()), "added": int((kept - column).sum())}
    return totals
