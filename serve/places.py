"""Functions and classes that settings name, as "module:name"."""

import importlib
from collections.abc import Callable
from typing import Any, cast

from latentrt.runtime.errors import BackendError


def named(place: str) -> Any:
    """What "module:name" names. Raises `BackendError` if it is not there."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackendError(f"{place!r} cannot be imported: {error}; expected module:function") from error


def function_named(place: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises `BackendError` if it is not there, or not a function."""
    function = named(place)
    if not callable(function):
        raise BackendError(f"{place!r} is of type {type(function).__name__}: expected a function")
    return cast(Callable[..., Any], function)
