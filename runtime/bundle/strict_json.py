"""Decode JSON into frozen dataclasses, strictly: a missing, unknown or mistyped key raises an error with its path.

Fields with a default are optional keys. Also writes the JSON schema of a dataclass. Knows nothing about bundles.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from latentrt.runtime.errors import shown, unknown

T = TypeVar("T")


class StrictJSONError(ValueError):
    """The JSON does not match the dataclass."""


def decode(cls: type[T], data: object, where: str) -> T:
    """Build `cls` from parsed JSON. `where` is the root of the path in error messages. Raises `StrictJSONError`."""
    return typing.cast(T, _decode(cls, data, where))


def encode(value: object) -> Any:
    """The reverse of `decode`: dataclasses, tuples and mappings to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _is_left_out(f, value)}
        return {name: encode(entry) for name, entry in fields.items()}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    return value


def schema(cls: type) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a dataclass; the first lines of docstrings become descriptions."""
    definitions: dict[str, Any] = {}
    root = _schema(cls, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _decode(hint: Any, data: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, data, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = _expect(list, data, where)
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(dict, data, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, data, where)
    if hint is Any:
        return data
    if hint is float and isinstance(data, int) and not isinstance(data, bool) and abs(data) < 2**1000:
        return float(data)
    return _expect(hint, data, where)


def _decode_union(choices: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and types.NoneType in choices:
        return None
    scalars = [c for c in choices if c is not types.NoneType]
    for choice in scalars:
        if isinstance(choice, type) and type(data) is choice:
            return data
    return _decode(scalars[0], data, where)


def _decode_dataclass(cls: type, data: object, where: str) -> Any:
    items = _expect(dict, data, where)
    hints = _hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in items:
        if key not in names:
            raise StrictJSONError(f"{where} has an {unknown('key', key, names)}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in items and not _is_optional(f)]
    if missing:
        raise StrictJSONError(f"{where} is missing {', '.join(map(repr, missing))}")
    return cls(**{name: _decode(hints[name], items[name], f"{where}.{name}") for name in names if name in items})


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields, cached: resolving them takes longer than decoding a whole manifest."""
    return typing.get_type_hints(cls)


def _is_optional(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING


def _is_left_out(field: "dataclasses.Field[Any]", value: object) -> bool:
    """Optional keys at their default are not written, so that files without them stay unchanged."""
    return _is_optional(field) and getattr(value, field.name) == field.default


def _expect(kind: type, data: object, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise StrictJSONError(f"{where}: expected {kind.__name__}, got {type(data).__name__} {shown(data, 60)}")
    return data


_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            hints = _hints(hint)
            names = [f.name for f in dataclasses.fields(hint)]
            definitions[hint.__name__] = {
                "type": "object",
                "description": (hint.__doc__ or "").strip().split("\n")[0],
                "properties": {name: _schema(hints[name], definitions) for name in names},
                "required": [f.name for f in dataclasses.fields(hint) if not _is_optional(f)],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(a, definitions) for a in arguments]}
    return {}
