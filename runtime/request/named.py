"""Options of ControlNets: a value, or one for each net by its name."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentrt.runtime.bundle import Manifest
from latentrt.runtime.limits import MAX_IMAGES

from .kinds import Kind, refuse


def named(kind: Kind) -> Kind:
    """A value of a kind, or a mapping from names to such values; as a flag, VALUE or NAME=VALUE."""

    def check(name: str, value: Any, manifest: Manifest) -> Any:
        if not isinstance(value, Mapping):
            return kind.check(name, value, manifest)
        if not 1 <= len(value) <= MAX_IMAGES or not all(isinstance(key, str) for key in value):
            raise refuse(name, value, f"a mapping of 1 to {MAX_IMAGES} names of ControlNets")
        return {
            str.__str__(key): kind.check(f"{name}[{str.__str__(key)[:40]!r}]", one, manifest)
            for key, one in value.items()
        }

    def to_json(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: kind.to_json(one) for key, one in value.items()}
        return kind.to_json(value)

    schema = {"anyOf": [dict(kind.schema), {"type": "object", "additionalProperties": dict(kind.schema)}]}
    parse: Callable[[str], Any] = kind.flag.get("type", str)
    flag = {
        "action": NamedValues,
        "type": lambda text: _named_value(text, parse),
        "metavar": f"[NAME=]{kind.flag['metavar']}",
    }
    return Kind(check, schema, flag, to_json)


def _named_value(text: str, parse: Callable[[str], Any]) -> tuple[str | None, Any]:
    """NAME=VALUE, or a value alone; an existing file may have an equals sign in its name."""
    name, equals, value = text.partition("=")
    if equals and name.replace("-", "").replace("_", "").isalnum() and not Path(text).exists():
        return name, parse(value)
    return None, parse(text)


class NamedValues(argparse.Action):
    """Collects the flags of a `named` kind: one value, or a mapping."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        flag: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        name, value = values
        known = getattr(namespace, self.dest)
        if known is not None and (name is None or not isinstance(known, dict) or name in known):
            parser.error(f"{flag}: give one value, or one for each name as NAME=VALUE")
        setattr(namespace, self.dest, value if name is None else {**(known or {}), name: value})
