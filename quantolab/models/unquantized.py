"""Whether a component's files hold unquantized weights: the same refusal at every door."""

from __future__ import annotations

from ..errors import BrokenModelError
from ..files.choosing import SUFFIXES, weight_files
from ..files.foreign import ForeignModelError, check_config, check_plain, foreign
from ..files.headers import stored_dtypes
from ..files.json_objects import read_object
from .source import Component

_MODELOPT = "hf_quant_config.json"


def check_configured(part: Component) -> None:
    """Refuse a component whose configuration says that it is quantized. Never imports torch.

    Raises
    ------
    BrokenModelError
        With the method that it names.
    """
    check_config(part.folder, read_object(part.folder / "config.json"))
    if (part.folder / _MODELOPT).exists():
        raise foreign(part.folder, "modelopt (nvfp4)", repr(_MODELOPT))


def check_unquantized(part: Component) -> None:
    """Refuse a component that is quantized, by its configuration and by what its files name.

    Files that aren't there, or can't be read, are for those who need them. Never imports torch.

    Raises
    ------
    BrokenModelError
        With the kind, where that is known, and what tells.
    """
    check_configured(part)
    if not any(path.suffix in (*SUFFIXES, ".gguf") for path in part.folder.iterdir()):
        return
    files = weight_files(part.folder, part.library, variant=part.variant)
    dtypes: dict[str, str] = {}
    for path in files.paths:
        try:
            dtypes |= stored_dtypes(path)
        except ForeignModelError:
            raise
        except BrokenModelError:
            return
    check_plain(part.folder, dtypes)
