"""Bytes of a component under a recipe, as planning predicts them."""

from quantolab.models.resolving import resolve
from quantolab.planning.predict import predict_weight_bytes
from quantolab.recipes import Recipe


def predicted_bytes(module, weights, dtype, kept=()):
    """Every layer in one weights word, but for those that are kept, by their full paths."""
    recipe = Recipe(weights, tuple(f"[{path[0]}]{path[1:]}" for path in kept))
    return predict_weight_bytes(
        module, resolve(module, recipe, dtype=dtype, strict=False).words, dtype
    )
