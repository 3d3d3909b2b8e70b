"""Where settings come from: a flag, else an environment variable, else the settings file, else the default.

Each wrong value is refused with one line that says where it stands and what is allowed.
"""

import ipaddress
import logging
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError, nearest_names, shown, unknown
from latentrt.serve.messages import ModelSpec

from .kinds import DatabaseUrl, without_password
from .models import models_from_tables, models_from_words
from .table import PREFIX, SETTINGS, Setting, Settings, flag_of, variable_of

logger = logging.getLogger(__name__)

DEFAULT = "default"
FLAG = "--{}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where each came from: a flag, a variable, FILE:key, or "default"."""

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Source:
    """Values of one source by setting; `folder` is what relative paths are of."""

    values: Mapping[str, Any]
    folder: Path
    label: str  # "{}" is the setting's name there

    def where(self, name: str) -> str:
        return self.label.format(name)


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], *, label: str = FLAG) -> Resolved:
    """The settings that hold.

    Args:
        flags: by name, as `given_flags` returns them.
        environ: LATENTRT_SERVE_… variables; others are ignored.
        label: how messages call a flag; "{}" is the setting's name.

    Raises: InputError: a wrong value, an unknown key, or settings that do not go together.
    """
    sources = list(_sources(flags, environ, label))
    values: dict[str, Any] = {}
    origins = dict.fromkeys([*SETTINGS, "models"], DEFAULT)
    for name, row in SETTINGS.items():
        for source in sources:
            if name in source.values:
                values[name], origins[name] = _read(row, name, source), _shown_origin(source, name)
                break
    settings = Settings(**values)
    for source in sources:
        if source.values.get("models"):
            models, given = _models_reader(source), source.values["models"]
            values["models"] = models(given, settings, source.where("model"), source.folder)
            origins["models"] = _shown_origin(source, "models")
            break
    else:
        values["models"] = models_from_tables([{}], settings, DEFAULT, Path())
    settings = Settings(**values)
    _check_together(settings, origins)
    return Resolved(settings, origins)


def _models_reader(source: _Source) -> Callable[[Any, Settings, str, Path], tuple[ModelSpec, ...]]:
    """Files have tables; flags and variables have words, and where their values come from YAML, tables too."""
    given = source.values["models"]
    tables = isinstance(given, list) and any(isinstance(item, Mapping) for item in given)
    return models_from_tables if tables or source.label.endswith(":{}") else models_from_words


def _sources(flags: Mapping[str, Any], environ: Mapping[str, str], label: str) -> Iterator[_Source]:
    """From the strongest to the weakest."""
    yield _Source(flags, Path(), label)
    variables = {
        name: environ[variable_of(name)] for name in (*SETTINGS, "models", "config") if environ.get(variable_of(name))
    }
    _warn_of_unknown(environ)
    yield _Source(variables, Path(), PREFIX + "{}")
    given = flags.get("config", variables.get("config"))
    if given is not None:
        file = Path(given)
        yield _Source(_read_file(file), file.parent, f"{file}:{{}}")


def _shown_origin(source: _Source, name: str) -> str:
    if source.label == FLAG:
        return "arguments" if name == "models" else flag_of(name)
    if source.label.startswith(PREFIX):
        return variable_of(name)
    return source.where("model" if name == "models" else name)


def _read(row: Setting, name: str, source: _Source) -> Any:
    value = source.values[name]
    try:
        return row.kind.read(value, source.folder)
    except ValueError:
        given = value[-1] if isinstance(value, list) and len(value) == 1 else value
        given = without_password(given) if isinstance(given, str) else given
        hint = ""
        if source.label.startswith(PREFIX) and isinstance(value, str) and value.startswith("tcp://"):
            hint = ". Kubernetes sets this for a Service of that name: say enableServiceLinks: false in the Pod"
        raise InputError(f"{_shown_origin(source, name)}={shown(given)}: expected {row.kind.expected}{hint}") from None


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    """Only warn: Kubernetes makes variables such as LATENTRT_SERVE_SERVICE_HOST by itself."""
    known = {variable_of(name) for name in (*SETTINGS, "models", "config")}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            nearest = nearest_names(name, known)
            logger.warning("%s is no setting%s", name, f"; did you mean {nearest[0]}?" if nearest else "")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise InputError(f"the settings file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the settings file {file} is not TOML: {error}") from error
    for key in values:
        if key not in SETTINGS and key != "model":
            raise InputError(f"{file}: {unknown('key', key, [*SETTINGS, 'model'])}")
    if "model" in values:
        values["models"] = values.pop("model")
    return values


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    names = [model.name for model in settings.models]
    for alias, model in settings.alias.items():
        if model not in names:
            raise InputError(f"{origins['alias']}: {alias}={unknown('model', model, names)}")
        if alias in names:
            raise InputError(f"{origins['alias']}: {alias!r} is the name of a model; expected another name")
    if isinstance(settings.state, DatabaseUrl) and settings.state_files is None:
        raise InputError(
            f"{origins['state']}: {settings.state} needs --state-files, a folder that all servers of this database "
            "share, or an address such as s3://bucket/folder: pictures are kept there"
        )
    if not isinstance(settings.state, DatabaseUrl) and settings.state_files is not None:
        raise InputError(
            f"{origins['state_files']}: expected --state postgresql://…; a folder as --state holds its files itself"
        )
    if settings.auth and settings.keys is None and settings.uds is None and not is_loopback(settings.host):
        raise InputError(
            f"{settings.host} ({origins['host']}) can be reached from other machines, and no keys are asked for: "
            "make a key with `latentrt serve --keys FILE --new-key NAME` and serve with --keys FILE, "
            "or say --no-auth to serve everybody"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback
