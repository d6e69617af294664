"""A component as its class builds it, on the meta device: shapes without weights."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import wraps

import torch

from ..errors import BrokenModelError, UnsupportedError
from .source import LIBRARIES, Component


def component_class(component: Component) -> type:
    """Return the class of a component from Diffusers or transformers.

    Raises
    ------
    UnsupportedError
        If the installed version has no such class. Code that comes with a model is never run.
    """
    import importlib

    if component.library not in LIBRARIES:  # a model's files may name any module at all
        raise UnsupportedError(
            f"{component.folder} asks for a class of {component.library!r}; only those of "
            f"{' and '.join(LIBRARIES)} are ever imported"
        )
    library = importlib.import_module(component.library)
    cls = getattr(library, component.cls, None)
    if not isinstance(cls, type):
        raise UnsupportedError(
            f"{component.library} {library.__version__} has no class {component.cls!r}, which "
            f"{component.folder} asks for"
        )
    return cls


def build_skeleton(component: Component, *, keep_buffers: bool = False) -> torch.nn.Module:
    """Return a component with its parameters on the meta device, in eval mode.

    Parameters
    ----------
    component : Component
        From `find_model`.
    keep_buffers : bool
        Whether buffers are really computed, as loading needs those that no file holds.

    Raises
    ------
    BrokenModelError
        If the configuration doesn't build the class.
    """
    cls = component_class(component)
    try:
        with quiet_libraries():
            if component.library == "diffusers":
                # Only the class's own arguments: a saved `quantization_config` isn't one.
                config = cls.load_config(str(component.folder), local_files_only=True)
                config.pop("quantization_config", None)
                with without_random_init(), _empty_weights(keep_buffers):
                    module = cls.from_config(config)
            else:
                from transformers import AutoConfig

                config = AutoConfig.from_pretrained(
                    str(component.folder), local_files_only=True, trust_remote_code=False
                )
                with without_random_init(), _empty_weights(keep_buffers):
                    module = cls(config)
    except (TypeError, ValueError, KeyError, AttributeError, OSError, ZeroDivisionError) as error:
        raise BrokenModelError(
            f"{component.folder / 'config.json'} doesn't build a {component.cls}: {error}"
        ) from error
    return module.eval().requires_grad_(False)


def dtype_keyword(library: str) -> str:
    """Return what ``from_pretrained`` of a library calls the compute dtype.

    transformers says ``dtype``. Diffusers said ``torch_dtype`` and follows: newer versions warn
    about the old name, older ones don't know the new one.
    """
    if library == "transformers":
        return "dtype"
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


@contextmanager
def without_random_init():
    """Leave out the initialization of parameters on the meta device, which have no values.

    Without an effect it still takes longer there than building the modules. Tensors that have
    values are initialized as ever.
    """
    init = torch.nn.init
    with _BUILDING:
        originals = {
            name: getattr(init, name)
            for name in dir(init)
            if name.endswith("_") and not name.startswith("_")
        }
        try:
            for name, function in originals.items():
                setattr(init, name, _for_real_tensors(function))
            yield
        finally:
            for name, function in originals.items():
                setattr(init, name, function)


_BUILDING = threading.RLock()  # torch.nn.init is every thread's


def _for_real_tensors(function):
    @wraps(function)
    def initialize(*args, **kwargs):
        tensor = args[0] if args else kwargs.get("tensor")
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return function(*args, **kwargs)

    return initialize


@contextmanager
def quiet_libraries():
    """Keep Diffusers' and transformers' log lines away from the user for a while."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bar:
            transformers_logging.enable_progress_bar()


def _empty_weights(keep_buffers: bool):
    if not keep_buffers:
        return torch.device("meta")
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)
