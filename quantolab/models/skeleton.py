"""A component as its class builds it, on the meta device: shapes without weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import torch

from ..errors import BrokenModelError, QuantolabError, UnsupportedError, first_line
from ..files.json_objects import read_object
from ..quietly import quiet_imports
from ..units import format_bytes
from .source import LIBRARIES, Component

# No published model comes near these; a configuration that does is broken, or means harm.
_MOST_LAYERS = 10_000
_MOST_MODULES = 100_000
_MOST_BUFFER_BYTES = 4 << 30
_LARGE = 100_000  # only with numbers beyond it can buffers be so large

_COUNTS = ("layers", "blocks", "depth", "n_layer")
"""Parts of the names by which configurations count their layers."""


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
    with quiet_imports():  # both import what is installed for quantizing, which has things to say
        library = importlib.import_module(component.library)
        cls = getattr(library, component.cls, None)
    if not isinstance(cls, type):
        raise UnsupportedError(
            f"{component.library} {library.__version__} has no class {component.cls!r}, which "
            f"{component.folder} asks for"
        )
    return cls


def build_skeleton(
    component: Component, *, keep_buffers: bool = False, dtype: str | None = None
) -> torch.nn.Module:
    """Return a component with its parameters on the meta device, in eval mode.

    Parameters
    ----------
    component : Component
        From `find_model`.
    keep_buffers : bool
        Whether buffers are really computed, as loading needs those that no file holds. Where
        files hold all of them they are on the meta device all the same: SD3's table of positions
        takes five times its bytes while it is computed.
    dtype : str, optional
        Compute dtype, in which constructors make buffers for which they name none: so it is while
        ``from_pretrained`` of both libraries builds a model. By default torch's own.

    Raises
    ------
    BrokenModelError
        If the configuration doesn't build the class.
    """
    cls = component_class(component)
    written = read_object(component.folder / "config.json")
    check_counts(component.folder / "config.json", written)
    try:
        with quiet_libraries(), without_random_init(), _default_dtype(dtype), _few_modules():
            build = _builder(cls, component)
            with torch.device("meta"):
                module = build()
            if keep_buffers and _computes(module):
                if _largest(written) > _LARGE:
                    _check_buffers(module)
                with _empty_weights():
                    module = build()
    except QuantolabError:
        raise
    except Exception as error:  # a malformed configuration fails in as many ways as it has
        raise BrokenModelError(
            f"{component.folder / 'config.json'} doesn't build a {component.cls}: "
            f"{first_line(error)}"
        ) from error
    return module.eval().requires_grad_(False)


def check_counts(
    where: Path, config: Mapping, limit: int = _MOST_LAYERS, allowed: str = ""
) -> None:
    """Refuse a configuration that asks for more layers than can be: building it might never end.

    Parameters
    ----------
    where : Path
        Its file.
    config : mapping
        What that holds.
    limit : int
        The most layers of one kind.
    allowed : str
        Why that is the limit; by default that there is no larger model.

    Raises
    ------
    BrokenModelError
        With the entry that asks for more.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_counts(where, value, limit, allowed)
        if not any(word in str(key) for word in _COUNTS):
            continue
        for count in value if isinstance(value, list) else [value]:
            if isinstance(count, (int, float)) and not count <= limit:
                raise BrokenModelError(
                    f"{where} asks for {key}={count}, and {allowed or f'{limit} is the most'}"
                )


def _builder(cls: type, component: Component) -> Callable[[], torch.nn.Module]:
    """Return what builds a component from its configuration, which is read once."""
    if component.library == "diffusers":
        # Only the class's own arguments: a saved `quantization_config` isn't one.
        config = cls.load_config(str(component.folder), local_files_only=True)
        config.pop("quantization_config", None)
        return lambda: cls.from_config(config)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        str(component.folder), local_files_only=True, trust_remote_code=False
    )
    return lambda: cls(config)


def _largest(value: object) -> float:
    """Return the largest number in a configuration."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, (int, float)) else 0


def _check_buffers(module: torch.nn.Module) -> None:
    held = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    if held > _MOST_BUFFER_BYTES:
        raise ValueError(f"its buffers would take {format_bytes(held)}")


@contextmanager
def _default_dtype(dtype: str | None):
    with _BUILDING:
        before = torch.get_default_dtype()
        if dtype is not None:
            torch.set_default_dtype(getattr(torch, dtype))
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def _few_modules():
    """Stop a constructor that makes modules without end."""
    made = 0

    def count(*_) -> None:
        nonlocal made
        made += 1
        if made > _MOST_MODULES:
            raise ValueError(f"it has more than {_MOST_MODULES} modules")

    handle = torch.nn.modules.module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


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


def _computes(module: torch.nn.Module) -> bool:
    """Whether a constructor computes tensors that no file holds: buffers, or plain attributes."""
    return any(
        part._non_persistent_buffers_set or any(map(_holds_tensor, _plain_attributes(part)))
        for part in module.modules()
    )


def _plain_attributes(part: torch.nn.Module) -> list[object]:
    own = ("_parameters", "_buffers", "_modules")
    return [value for name, value in vars(part).items() if name not in own]


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


def _empty_weights():
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)
