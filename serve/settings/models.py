"""Which models to serve: from words such as sd15=engines/sd15, or from the tables [[model]] of the settings file."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.serve.messages import ModelSpec

from .table import MODELS_TEXT, SETTINGS, Settings

EMBEDDED = "shapes"
# Names are part of addresses.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_KEYS = ("name", "path", "backend", "engines", "trust_engines", "sizes", "loras", "controls", "refiner")


def models_from_words(words: Any, settings: Settings, where: str, folder: Path) -> tuple[ModelSpec, ...]:
    """Models from words, or from one text with commas; raises `InputError`."""
    parts = [part for part in words.split(",") if part] if isinstance(words, str) else words
    return models_from_tables([_table_of(word, where) for word in parts], settings, where, folder)


def _table_of(word: str, where: str) -> dict[str, Any]:
    name, equals, path = word.partition("=")
    if not equals or "/" in name:  # a folder's name may hold a = too
        return {"path": word}
    if not name or not path:
        raise InputError(f"{where}={shown(word)}: expected {MODELS_TEXT}")
    return {"name": name, "path": path}


def models_from_tables(tables: Any, settings: Settings, where: str, folder: Path) -> tuple[ModelSpec, ...]:
    """Models from tables with the keys of `ModelSpec`; what they do not say is the server's. Raises `InputError`."""
    if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) for table in tables):
        raise InputError(f"{where}={shown(tables)}: expected tables [[model]]")
    if len(tables) > 1 and settings.engines is not None:
        raise InputError(
            f"engines={settings.engines} cannot be those of {len(tables)} models: say it in each [[model]]"
        )
    models = tuple(_model(table, settings, where, folder) for table in tables)
    _require_different((model.name for model in models), where)
    return models


def _model(table: Mapping[str, Any], settings: Settings, where: str, folder: Path) -> ModelSpec:
    values: dict[str, Any] = {
        "backend": settings.backend,
        "engines": settings.engines,
        "trust_engines": settings.trust_engines,
    }
    values |= {"sizes": settings.sizes or None, "loras": settings.loras, "path": None}
    for key, value in table.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {unknown('key', key, _KEYS)}")
        if key == "controls":
            values[key] = _controls(value, where, folder)
        elif key != "name":
            values[key] = _read(key, value, where, folder)
    path = values["path"]
    if path is None and table.get("name", EMBEDDED) != EMBEDDED:
        raise InputError(f"{where}: the model {shown(table['name'])} has no path: expected the folder of its bundle")
    name = table.get("name", EMBEDDED if path is None else Path(path).resolve().name)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise InputError(
            f"{where}: the name {shown(name)} of a model: expected letters, digits and . _ : -; "
            "NAME=FOLDER gives it another"
        )
    return ModelSpec(name=name, **values)


def _read(key: str, value: Any, where: str, folder: Path) -> Any:
    kind = SETTINGS["loras" if key in ("path", "refiner") else key].kind
    try:
        return kind.read(value, folder)
    except ValueError:
        raise InputError(f"{where}.{key}={shown(value)}: expected {kind.expected}") from None


def _controls(value: Any, where: str, folder: Path) -> tuple[tuple[str, Path], ...]:
    """Names and folders of control bundles."""
    if not isinstance(value, Mapping) or not all(NAME.fullmatch(name) for name in value):
        raise InputError(
            f'{where}.controls={shown(value)}: expected names and folders, such as {{canny = "controls/canny"}}'
        )
    return tuple((name, _read("path", one, where, folder)) for name, one in value.items())


def _require_different(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where}: two models are called {name!r}: NAME=FOLDER gives one another name")
        seen.add(name)
