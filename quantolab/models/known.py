"""Configurations of well-known models, so that they can be looked at before anything is downloaded.

The data lie in ``known/``: ``models.json`` lists pipelines and their parts, ``parts/`` holds one
configuration a file, each with the public source that it was taken from. The tests build every
part and compare its parameters with published counts. Never imports torch.
"""

from __future__ import annotations

import atexit
import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..files.whole import scratch_folder

_DATA = Path(__file__).with_suffix("")  # known.py, known/
_KEPT = ExitStack()  # folders that go when Python ends
atexit.register(_KEPT.close)


@dataclass(frozen=True)
class KnownModel:
    """One pipeline whose configuration is built in."""

    name: str
    """As one writes it: ``FLUX.1-dev``."""
    hub_ids: tuple[str, ...]
    """Hub models of this configuration."""
    pipeline: str
    """Class name in Diffusers."""
    components: tuple[tuple[str, str], ...]
    """(name in the pipeline, name of the part), the VAE included."""
    source: str
    """Where it is public which parts belong together."""


@dataclass(frozen=True)
class KnownPart:
    """The configuration of one component."""

    library: str
    """``diffusers`` or ``transformers``; a pipeline's own folder for parts that it brings along."""
    cls: str
    source: str
    """Where the configuration is public."""
    config: dict

    def to_file(self) -> dict:
        """Return what the component's ``config.json`` holds."""
        if self.library == "transformers":
            return {"architectures": [self.cls], **self.config}
        return {"_class_name": self.cls, **self.config}


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return every model whose configuration is built in."""
    return tuple(
        KnownModel(
            entry["name"],
            tuple(entry["hub"]),
            entry["pipeline"],
            tuple(entry["components"].items()),
            entry["source"],
        )
        for entry in json.loads((_DATA / "models.json").read_text(encoding="utf-8"))
    )


@cache
def known_part(name: str) -> KnownPart:
    """Return a part by the name that `KnownModel.components` gives."""
    entry = json.loads((_DATA / "parts" / f"{name}.json").read_text(encoding="utf-8"))
    return KnownPart(entry["library"], entry["class"], entry["source"], entry["config"])


def find_known(name: str) -> KnownModel | None:
    """Return the model of a name or Hub id, upper and lower case alike; None if it isn't known."""
    asked = name.casefold()
    for model in known_models():
        if asked in (word.casefold() for word in (model.name, *model.hub_ids)):
            return model
    return None


@cache
def known_folder(model: KnownModel) -> Path:
    """Return a folder in Diffusers layout with a known model's configuration and no weights.

    It is written once a process and removed when that ends; a killed one's by the next.
    """
    folder = _KEPT.enter_context(scratch_folder("known"))
    index: dict = {"_class_name": model.pipeline}
    for name, part_name in model.components:
        part = known_part(part_name)
        index[name] = [part.library, part.cls]
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(part.to_file()), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
