"""How a plain script quantizes with torchao. Never imports torch."""

from __future__ import annotations

from collections import Counter

from ...weights import weights_of

BEFORE = ""
"""What must have happened before the imports."""

_OTHER = "TransformersTorchAoConfig"  # both libraries have a class of that name


def imports(library: str, words: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Return what is imported from where, for components of a library."""
    names = {"FqnToConfig"}
    for word in words:
        weights = weights_of(word)
        names.add("Float8WeightOnlyConfig" if weights.floating else "Int8WeightOnlyConfig")
        names |= {"PerGroup"} if weights.group else set()
    config = "TorchAoConfig" if library == "diffusers" else f"TorchAoConfig as {_OTHER}"
    return {library: (config,), "torchao.quantization": tuple(sorted(names))}


def config(library: str, words: dict[str, str], kept: tuple[str, ...]) -> list[str]:
    """Return the lines of a configuration for exactly these layers; arguments as for SDNQ's."""
    base = Counter(words.values()).most_common(1)[0][0]
    name = "TorchAoConfig" if library == "diffusers" else _OTHER
    lines = [f"{name}(", "    FqnToConfig(", "        {"]
    lines += [f'            "_default": {_own(base)},']
    lines += [
        f'            "{path}": {_own(word)},' for path, word in words.items() if word != base
    ]
    lines += [f'            "{path}": None,' for path in kept]
    return [*lines, "        }", "    )", ")"]


def _own(word: str) -> str:
    weights = weights_of(word)
    if weights.floating:
        return "Float8WeightOnlyConfig()"
    return (
        f"Int8WeightOnlyConfig({f'granularity=PerGroup({weights.group})' if weights.group else ''})"
    )
