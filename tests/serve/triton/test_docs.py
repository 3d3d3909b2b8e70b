"""docs/triton.md: its commands write what it shows, and its tables are those of the code. The clients in it are called
in test_tritonserver.py."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.exports import ROOT

from latentrt.runtime.cli import main
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.triton.outputs import outputs_of

TEXT = (ROOT / "docs" / "triton.md").read_text()


def test_the_commands_write_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(embedded_bundle(), tmp_path / "engines" / "sd15")
    (console,) = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for command in console.splitlines():
        assert main(shlex.split(command)[2:]) == 0
    (shown,) = re.findall(r"```\n(models/.*?)```", TEXT, re.DOTALL)
    for path in shown.split():
        assert (tmp_path / path).exists()
    assert sorted(one.name for one in (tmp_path / "models").iterdir()) == ["sd15", "sd15-http"]


def test_the_outputs_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) `\((.*?)\)`", TEXT, re.MULTILINE)
    told = {name: (kind, re.sub("n|height|width", "-1", shape)) for name, kind, shape in rows}
    known = {
        name: (output.datatype, ", ".join(map(str, output.shape))) for name, output in outputs_of(progress=True).items()
    }
    assert told == known
