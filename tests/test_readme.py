"""The README's commands and code, executed as they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.exports import ROOT, Exported
from support.lora_files import kohya_file
from support.simulator import machine

from benchmarks.reports.readme_table import readme_block
from latentrt.runtime.cli.main import main

README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_commands_run(sd1: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every latentrt command, with a small random checkpoint in the place of Stable Diffusion 1.5, at its 64 pixels,
    and a simulated GPU. The export is the one that the fixture made with the same command."""
    monkeypatch.chdir(tmp_path)
    bundle = Path(shutil.copytree(sd1.bundle, tmp_path / "engines" / "sd15"))
    for name in ("sdxl", "sdxl-refiner"):  # any model of the same latents may refine
        (tmp_path / "engines" / name).symlink_to(bundle)
    for seed, name in enumerate(("ink", "castle")):
        kohya_file(tmp_path / f"{name}.safetensors", bundle, seed=10 * seed)
    (jobs,) = blocks("jsonl")
    (tmp_path / "jobs.jsonl").write_text(jobs)
    Image.effect_noise((64, 48), 90).save(tmp_path / "photo.jpg")
    Image.linear_gradient("L").save(tmp_path / "hill.png")
    commands = [line[2:].split("  #")[0] for block in blocks("console") for line in block.splitlines()]
    ran = []
    with machine():
        for command in commands:
            words = shlex.split(command.replace(" 512", " 64").replace(" 2048", " 128"))
            if words[0] == "latentrt" and words[1] != "export":
                assert main(words[1:]) == 0, command
                ran.append(words[1])
    assert ran == ["verify", "info", *["generate"] * 9, *["build", "generate"] * 2, *["schedule"] * 3, "plans"]
    assert Image.open(tmp_path / "astronaut.png").size == (64, 64)
    assert Image.open(tmp_path / "castle.png").size == (128, 128)
    assert Image.open(tmp_path / "large.png").size == (128, 128)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["fox-0002-0.png", "fox-0002-1.png"]
    assert Image.open(tmp_path / "out" / "sigmas.png").width > 500
    exports = [word for c in commands if c.startswith("latentrt export") for word in shlex.split(c)]
    help_text = subprocess.run(
        [sys.executable, "-m", "latentrt.runtime.cli", "export", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(word in help_text for word in exports if word.startswith("--"))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\$ make (\w+)", README, re.MULTILINE)
    assert targets == ["demo", "test", "serve", "bench"]
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


def test_numbers_are_those_of_committed_results() -> None:
    """Every measured number: those in tables that are made from JSON, and those in sentences, which are listed here."""
    results = ROOT / "benchmarks" / "results"
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for device in re.findall(r"<!-- figures of (\S+) -->", README):
        block = readme_block(results / device)
        assert block in text, f"python -m benchmarks.reports.readme_table benchmarks/results/{device} README.md"
        text = text.replace(block, "")
    shares = json.loads((results / "shapes.json").read_text())
    told = {f"{100 * shares[f'{kind}/all']:.3g} %" for kind in ("single", "double")}
    assert set(re.findall(r"\d[\d.,]* (?:%|ms|s|seconds|minutes|MB|GB|MiB|GiB|dB|times)(?![\w-])", text)) == told
