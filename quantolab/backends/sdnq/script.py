"""How a plain script quantizes with SDNQ. Never imports torch."""

from __future__ import annotations

from collections import Counter

from .settings import NO_SKIPS, settings

BEFORE = """\
# Without this switch, importing SDNQ compiles with torch.compile for half a minute and more.
os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"
"""
"""What must have happened before the imports."""


def imports(library: str, words: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Return what is imported from where, for components of a library."""
    return {"sdnq": ("SDNQConfig",)}


def config(library: str, words: dict[str, str], kept: tuple[str, ...]) -> list[str]:
    """Return the lines of a configuration for exactly these layers, to be assigned.

    Parameters
    ----------
    library : str
        ``"diffusers"`` or ``"transformers"``.
    words : dict
        Weights word of each quantized layer by its path.
    kept : tuple of str
        Paths of the Linear layers that stay as they are.
    """
    base = Counter(words.values()).most_common(1)[0][0]
    others = {path: word for path, word in words.items() if word != base}
    lines = ["SDNQConfig("]
    lines += [f"    {key}={_text(value)}," for key, value in _short(base).items()]
    lines += ["    # SDNQ's own lists of layers to skip, off: what is kept is named here."]
    lines += [f"    {key}={_text(value)}," for key, value in NO_SKIPS.items()]
    if kept:
        lines += ["    modules_to_not_convert=["]
        lines += [f"        {_text(path + '.weight')}," for path in kept]
        lines += ["    ],"]
    if others:
        lines += ["    modules_quant_config={"]
        for word in dict.fromkeys(others.values()):
            mine = [path for path in others if others[path] == word]
            lines += ["        **dict.fromkeys(", "            ["]
            lines += [f"                {_text(path + '.weight')}," for path in mine]
            lines += ["            ],", f"            {_options(word)},", "        ),"]
        lines += ["    },"]
    return [*lines, ")"]


def _short(word: str) -> dict[str, object]:
    """Return a word's options without those that say nothing."""
    said = settings(word)
    if not said["use_svd"]:
        said = {k: v for k, v in said.items() if k not in ("use_svd", "svd_rank")}
    return said


def _options(word: str) -> str:
    return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in _short(word).items()) + "}"


def _text(value: object) -> str:
    return repr(value) if not isinstance(value, str) else f'"{value}"'
