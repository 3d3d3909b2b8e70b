"""Functions and classes that settings name, as "module:name"."""

import importlib
from typing import Any

from latentrt.runtime.errors import BackendError


def named(place: str) -> Any:
    """What "module:name" names. Raises `BackendError` if it is not there."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackendError(f"{place!r} cannot be imported: {error}; expected module:function") from error
