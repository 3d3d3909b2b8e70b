"""The files of deploy/, as data, and what they may say."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from support.exports import ROOT

from latentrt.serve.cli import add_parser
from latentrt.serve.http.operations import operations_router
from latentrt.serve.metrics import Metrics
from latentrt.serve.settings import SETTINGS, Settings, given_flags, resolve
from latentrt.serve.settings.table import variable_of

DEPLOY = ROOT / "deploy"
LAST_ANSWERS = 10  # seconds; see serve/server.py


def documents(file: str) -> list[dict[str, Any]]:
    """Those of a YAML file."""
    return [found for found in yaml.safe_load_all((DEPLOY / file).read_text()) if found is not None]


def settings_of(words: Iterable[str], variables: Mapping[str, str]) -> Settings:
    """What a server would make of its arguments and variables; unknown ones fail."""
    known = {variable_of(name) for name in (*SETTINGS, "models", "config")}
    unknown = {name for name in variables if name.startswith("LATENTRT_")} - known
    assert not unknown, f"no settings of the server: {sorted(unknown)}"
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_parser(parser.add_subparsers())
    return resolve(given_flags(parser.parse_args(["serve", *words])), variables).settings


def probe_paths() -> set[str]:
    """Paths of the server that need no key."""
    return {str(getattr(route, "path", "")) for route in operations_router(None, Metrics()).routes}  # type: ignore[arg-type]


def seconds(text: str) -> float:
    """Of a duration such as 90s."""
    return float(text.removesuffix("s"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile: (word, the rest), with lines joined and comments left out."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in words]
