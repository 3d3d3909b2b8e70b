"""docs/serving.md: its commands and code run as they stand, its tables are those of the code."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.exports import ROOT

from latentrt.serve.http import errors
from latentrt.serve.http.webui.fields import REFUSED
from latentrt.serve.metrics import metrics_table
from latentrt.serve.settings.table import settings_table

TEXT = (ROOT / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("LATENTRT_")},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "typings", ROOT))),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands(start: str) -> list[str]:
    """The commands of the consoles that begin so."""
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.startswith(start)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """`latentrt serve` as the docs have it, at a free port and on ONNX Runtime."""
    assert "latentrt serve" in commands("latentrt serve")
    command = [str(BIN / "latentrt"), "serve", "--port", "0", "--lazy", "--backend", "onnxruntime", "--devices", "cpu"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    assert child.stdout is not None
    address = child.stdout.readline().split()[-1]
    assert child.stdout.readline() == "latentrt is ready: shapes\n"
    yield address
    child.terminate()
    assert child.wait(60) == 0


def shell(command: str, folder: Path) -> str:
    child = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_the_first_picture_by_curl(address: str, tmp_path: Path) -> None:
    first, second = commands("curl")[0], commands("python -c")[0]
    shell(first.replace(ADDRESS, address), tmp_path)
    shell(second, tmp_path)
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.size == (128, 128)
        assert "large red star" in picture.info["latentrt"]


def test_the_readme_draws_the_same(address: str, tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shell(script.replace(ADDRESS, address), tmp_path)
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.size == (128, 128)


def test_a_native_job_by_curl(address: str, tmp_path: Path) -> None:
    shell(commands("curl")[2].replace(ADDRESS, address), tmp_path)
    assert '"status":"waiting"' in (tmp_path / "job.json").read_text()


def test_the_page_by_curl(address: str, tmp_path: Path) -> None:
    shell(commands("curl")[1].replace(ADDRESS, address), tmp_path)
    assert "<title>latentrt</title>" in (tmp_path / "page.html").read_text()


def test_openais_client(address: str, tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python") if "OpenAI" in block]
    (tmp_path / "client.py").write_text(script.replace(ADDRESS, address))
    told = shell(f"{sys.executable} client.py", tmp_path)
    assert re.fullmatch(r"(image_generation\.partial_image \d+\n){2}image_generation\.completed \d+\n", told), told
    with Image.open(tmp_path / "heart.png") as picture:
        assert picture.size == (128, 128)


def test_the_client_of_a_web_ui(address: str, tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python") if "webuiapi" in block]
    here = f"port={address.rpartition(':')[2]}"
    (tmp_path / "client.py").write_text(script.replace(f"port={ADDRESS.rpartition(':')[2]}", here))
    told = shell(f"{sys.executable} client.py", tmp_path)
    assert "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 5" in told
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.size == (128, 128)


def test_what_the_web_uis_api_refuses_is_told() -> None:
    section = TEXT.partition("AUTOMATIC1111's web UI\n")[2].partition("\n## ")[0]
    assert {*REFUSED} <= {*re.findall(r"`(\w+)`", section)}


def test_tritons_client(address: str, tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python") if "triton" in block]
    (tmp_path / "client.py").write_text(
        script.replace(ADDRESS.removeprefix("http://"), address.removeprefix("http://"))
    )
    assert shell(f"{sys.executable} client.py", tmp_path) == "(2, 128, 128, 3) uint8\n"
    for number in range(2):
        with Image.open(tmp_path / f"picture{number}.png") as picture:
            assert picture.size == (128, 128)


def test_a_new_key(tmp_path: Path) -> None:
    command = next(c for c in commands("latentrt serve") if "--new-key" in c)
    key = shell(command, tmp_path).strip()
    text = (tmp_path / "keys.toml").read_text()
    assert key.startswith("sk-")
    assert key not in text
    assert 'name = "alice"' in text


def test_the_tables_are_those_of_the_code() -> None:
    assert metrics_table() in TEXT
    assert settings_table() in TEXT


def test_every_code_of_an_error_is_told() -> None:
    rows = [*errors._REFUSED.values(), *errors._FAILED.values()]
    told = {code: int(status) for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]*)\|", TEXT, re.MULTILINE)
            for code in re.findall(r"`(\w+)`", codes)}  # fmt: skip
    for row in rows:
        if row.code not in ("cancelled", "model_changed"):  # of native jobs alone
            assert told[row.code] == row.status, row
