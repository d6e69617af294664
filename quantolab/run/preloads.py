"""What jobs on a model need, imported once for all of them."""

from __future__ import annotations

from ..models.source import Source
from ..processes.jobs import Preload
from ..weights import HOME


def preload_of(source: Source) -> Preload:
    """Return what jobs on a model need: its classes, and our own rooms."""
    classes = tuple((part.library, part.cls) for part in source.components)
    if source.pipeline:
        classes = (("diffusers", source.pipeline), *classes)
    # What another backend's words need is imported in the children that use them, by themselves.
    backends = (f"quantolab.backends.{HOME}.layers",)
    return Preload(classes, ("quantolab.run.child",), backends)
