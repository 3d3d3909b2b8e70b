"""Checkpoints with random faults are opened or refused in one line: never a bare exception."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.model_facts import golden_scheduler
from latentrt.runtime.errors import LatentRTError

CONFIGS = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")
CONFIGS += ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
OTHERS = ("tokenizer/vocab.json", "tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors")
VALUES = (None, True, -1, 0, 3, 10**49, 1e308, -0.5, "", "x", [], [1, "a"], {}, {"a": []}, [[[]]], "\x00é")


def change_value(file: Path, draw: random.Random) -> None:
    """Replace, remove or add a value somewhere in a JSON file."""
    content = json.loads(file.read_text())
    place: Any = content
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or draw.random() < 0.5:
            break
        place = inner
    kind = draw.random()
    if kind < 0.7:
        place[key] = draw.choice(VALUES)
    elif kind < 0.9:
        del place[key]
    elif isinstance(place, dict):
        place[f"new_{draw.randrange(9)}"] = draw.choice(VALUES)
    file.write_text(json.dumps(content))


def spoil_bytes(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(draw.randrange(1, 5)):
        content[draw.randrange(min(len(content), 3000))] = draw.randrange(256)
    file.write_bytes(content)


def cut(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def replace(file: Path, draw: random.Random) -> None:
    """By a folder, a loop of links, nested brackets, or nothing."""
    file.unlink()
    kind = draw.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to(file)
    elif kind == 2:
        file.write_text("[" * 100_000)


KINDS: tuple[Callable[[Path, random.Random], None], ...] = (change_value, spoil_bytes, cut, replace)


def alter(folder: Path, draw: random.Random) -> str:
    """Alter one file; returns what was done."""
    kind = draw.choices(KINDS, (6, 1, 1, 1))[0]
    name = draw.choice(CONFIGS if kind is change_value else CONFIGS + OTHERS)
    kind(folder / name, draw)
    return f"{kind.__name__} in {name}"


def try_one(template: Path, folder: Path, seed: int) -> str:
    """Open an altered copy; returns a line about a bare exception, or ""."""
    shutil.copytree(template, folder, copy_function=shutil.copyfile)
    what = "nothing"
    try:
        what = alter(folder, random.Random(seed))
        checkpoint = Checkpoint.open(folder)
        golden_scheduler(checkpoint.configs["scheduler"], 5)
    except LatentRTError as error:
        return "" if "\n" not in str(error) else f"seed {seed}: {what}: several lines"
    except Exception as error:  # what the test looks for
        return f"seed {seed}: {what}: {type(error).__name__}: {str(error)[:100]}"
    finally:
        shutil.rmtree(folder)
    return ""


@pytest.mark.parametrize("first", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_altered_checkpoints_are_opened_or_refused(folders: dict[str, Path], tmp_path: Path, first: int) -> None:
    count = 25 if first == 0 else 400
    bare = [try_one(folders["sd1"], tmp_path / "x", first + number) for number in range(count)]
    assert not [line for line in bare if line]
