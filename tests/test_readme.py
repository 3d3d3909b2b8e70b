"""The README's commands and code, executed as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from exports import ROOT, Exported
from PIL import Image

from latentrt.runtime.cli import main

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_commands_run(sd1: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every latentrt command, with a small random checkpoint in the place of Stable Diffusion 1.5. The export is the
    one that the fixture made with the same command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "sd15").symlink_to(sd1.bundle)
    commands = [line[2:].split("  #")[0] for block in blocks("console") for line in block.splitlines()]
    ran = []
    for command in commands:
        words = shlex.split(command)
        if words[0] == "latentrt" and words[1] != "export":
            assert main(words[1:]) == 0, command
            ran.append(words[1])
    assert ran == ["verify", "info", "generate", "schedule", "schedule", "schedule"]
    assert Image.open(tmp_path / "astronaut.png").size == (64, 64)
    assert Image.open(tmp_path / "out" / "sigmas.png").width > 500
    export = shlex.split(next(c for c in commands if c.startswith("latentrt export")))
    help_text = subprocess.run(
        [sys.executable, "-m", "latentrt.runtime.cli", "export", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(word in help_text for word in export if word.startswith("--"))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\$ make (\w+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diamond.png", "heart.png"]


def test_extras_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"^\| .*? \| `([\w-]+)` \|", README, re.MULTILINE))
    assert named == set(extras) - {"test"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
