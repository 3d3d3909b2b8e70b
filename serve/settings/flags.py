"""Flags of the settings. Values stay text here: `resolve` reads them, so that all sources are refused alike."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .table import MODELS_TEXT, SETTINGS, default_text, flag_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the models, --config, and a flag for every setting."""
    parser.add_argument("models", nargs="*", metavar="NAME=FOLDER", help=f"{MODELS_TEXT}; default: the embedded model")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML, with a [[model]] for each model")
    add_setting_flags(parser, SETTINGS)


def add_setting_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a flag for each of these settings."""
    group = parser.add_argument_group("settings")
    for name in names:
        row = SETTINGS[name]
        text = f"{row.text}. Default: {default_text(name)}".replace("%", "%%")
        if not row.kind.metavar:
            group.add_argument(flag_of(name), dest=name, help=text, action=argparse.BooleanOptionalAction, default=None)
        else:
            action = "append" if row.kind.many else "store"
            group.add_argument(flag_of(name), dest=name, help=text, metavar=row.kind.metavar, action=action)


def given_flags(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The settings whose flags were given, and `models` and `config`; for `resolve`."""
    names = (*SETTINGS, "models", "config")
    return {name: value for name in names if (value := getattr(arguments, name, None)) not in (None, [])}
