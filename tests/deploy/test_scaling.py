"""docs/scaling.md: its commands, links and figures are those of the repository."""

import argparse
import json
import re
import shlex
from itertools import pairwise

import pytest
from support.deploy import DEPLOY, documents, settings_of
from support.exports import ROOT

from benchmarks.serving.fleet import __main__ as fleet
from benchmarks.serving.fleet.call_times import call_times
from benchmarks.serving.fleet.report import sizing_table
from benchmarks.serving.fleet.study import DEMAND, Plan

DOCUMENT = ROOT / "docs" / "scaling.md"
TEXT = DOCUMENT.read_text()
COMMANDS = [
    *re.findall(r"^\$ (.*?)(?:\s+#.*)?$", TEXT, re.MULTILINE),
    *re.findall(r"\| `(.*?)` \|$", TEXT, re.MULTILINE),
]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "fleet-shapes.json").read_text())["results"]


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOCUMENT.parent / link).exists(), link


def test_servers_are_started_with_flags_that_exist() -> None:
    servers = [words[2:] for words in map(shlex.split, COMMANDS) if words[:2] == ["latentrt", "serve"]]
    assert len(servers) == 3
    for words in servers:
        assert settings_of(words, {}).models[0].name == "sd15"
    for flag in set(re.findall(r"`(--[a-z-]+)[^`]*`", TEXT)) - {"--target"}:
        name = flag[2:].replace("-", "_")
        assert name in {"lazy", "max_wait", "drain_seconds", "state_files"}, flag
        assert hasattr(settings_of([], {}), name)


def test_files_and_targets_of_the_commands_exist() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for words in map(shlex.split, COMMANDS):
        for option, word in pairwise(words):
            if option in ("-f", "-k"):
                assert (ROOT / word).exists(), word
            if option == "--target":
                assert f" AS {word}\n" in dockerfile
    (service,) = documents("kubernetes/rayservice.yaml")
    application = next(words[2] for words in map(shlex.split, COMMANDS) if words[:2] == ["serve", "run"])
    assert f"import_path: {application}\n" in service["spec"]["serveConfigV2"]


def test_the_simulation_has_the_options_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (words for words in map(shlex.split, COMMANDS) if words[:2] == ["python", "-m"])
    monkeypatch.setattr("sys.argv", ["fleet", *command[3:]])
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda _, text: pytest.fail(text))
    assert command[2] == "benchmarks.serving.fleet"
    assert fleet.main() == 1  # there is no such file


def test_the_example_is_the_formulas_and_the_simulations() -> None:
    times, plan = call_times("shapes"), Plan()
    image = times.image_seconds(20)
    assert f"{times.calls[8]:.1f} ms, encoding {times.encode:.1f} and decoding {times.decode:.1f}" in " ".join(
        TEXT.split()
    )
    assert f"an image of 20 calls needs {image:.3f} s" in " ".join(TEXT.split())
    assert f"{plan.capacity(times) * DEMAND:.1f} images a second" in TEXT
    assert image == pytest.approx((times.encode + 20 * times.calls[8] / 8 + times.decode) / 1000)
    assert sizing_table(RESULTS) in TEXT
