"""`latentrt triton`: which folders it writes, and what it refuses."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from latentrt.runtime.cli import main
from latentrt.runtime.errors import InputError
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.settings import SETTINGS
from latentrt.serve.triton import repository
from latentrt.serve.triton.parameters import FORWARDED, settings_of

SHAPES = embedded_bundle()


def parameters(model: Path) -> dict[str, str]:
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


def files(folder: Path) -> Mapping[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_of_each_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "models"
    assert main(["triton", f"first={SHAPES}", f"second={SHAPES}", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{out}/first\n{out}/second\n"
    for name in ("first", "second"):
        assert files(out / name).keys() == {"config.pbtxt", "1/model.py"}
        assert parameters(out / name) == {"bundle": str(SHAPES)}
    assert sorted(one.name for one in out.iterdir()) == ["first", "second"]


def test_the_model_is_nothing_but_an_import(tmp_path: Path) -> None:
    assert main(["triton", str(SHAPES), str(tmp_path)]) == 0
    text = (tmp_path / "shapes" / "1" / "model.py").read_text()
    assert "from latentrt.serve.triton.backend import TritonPythonModel" in text
    assert len(text.splitlines()) == 5


def test_a_forgotten_repository_is_not_the_last_bundle(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(SHAPES, tmp_path / "bundle"))
    with pytest.raises(SystemExit):
        main(["triton", str(bundle)])
    assert files(bundle) == files(SHAPES)


def test_a_copied_bundle_moves_with_its_model(tmp_path: Path) -> None:
    assert main(["triton", str(SHAPES), str(tmp_path / "a"), "--copy", "--name", "red"]) == 0
    moved = (tmp_path / "a" / "red").rename(tmp_path / "blue")
    assert files(moved / "1" / "bundle") == files(SHAPES)
    (spec,) = settings_of("blue", parameters(moved), moved / "1").models
    assert (spec.name, spec.path) == ("blue", moved / "1" / "bundle")


def test_settings_reach_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inks").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {
        "loras": "inks",
        "sizes": "64x64,128x64",
        "max_wait": "90",
        "batch": "3",
        "filter": "math:sqrt",
        "backend": "onnxruntime",
        "picture_pixels": "4096",
        "drain_seconds": "2m",
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["triton", str(SHAPES), "out", "--lazy", *flags]) == 0
    monkeypatch.chdir("/")
    settings = settings_of("shapes", parameters(tmp_path / "out" / "shapes"), tmp_path)
    assert settings.loras == tmp_path / "inks"
    assert settings.sizes == ((64, 64), (128, 64))
    assert (settings.max_wait, settings.drain_seconds, settings.batch) == (90, 120, 3)
    assert (settings.backend, settings.filter, settings.lazy) == ("onnxruntime", "math:sqrt", True)
    assert (settings.picture_pixels, settings.max_queue) == (4096, 1000)


def test_every_forwarded_setting_is_one() -> None:
    assert {*FORWARDED} <= SETTINGS.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_wiat": "3"}, "config.pbtxt: unknown parameter 'max_wiat'; did you mean 'max_wait'"),
        ({"port": "80"}, "unknown parameter 'port'"),
        ({"bundle": ""}, "the parameter bundle is missing: expected the folder"),
        ({"max_wait": "soon"}, "max-wait='soon': expected a time such as"),
    ],
)
def test_a_changed_config_is_checked(given: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        settings_of("m", {"bundle": "b", **given}, tmp_path)


def test_tritons_own_parameters_are_left_to_it(tmp_path: Path) -> None:
    own = {"bundle": "b", "EXECUTION_ENV_PATH": "/env"}
    assert settings_of("m", own, tmp_path) == settings_of("m", {"bundle": "b"}, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "c", "a=x", "b=y"], "--name c is for one bundle: NAME=FOLDER names each of several"),
        ([f"a={SHAPES}", f"a={SHAPES}"], "two models are called 'a'"),
        (["nowhere"], "nowhere"),
        (["--devices", "tpu", str(SHAPES)], "--devices='tpu': expected devices such as cpu or cuda:0"),
        (["--loras", "nowhere", str(SHAPES)], "nowhere is not a folder"),
        (["--name", "a b", str(SHAPES)], "expected letters, digits"),
    ],
)
def test_wrong_calls(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", *words, str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_there_is_replaced_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", f"b={SHAPES}", str(tmp_path), "--copy"]) == 0
    before = files(tmp_path)
    assert main(["triton", f"a={SHAPES}", f"b={SHAPES}", str(tmp_path)]) == 1
    assert "b is there already: --overwrite replaces it" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert main(["triton", f"a={SHAPES}", f"b={SHAPES}", str(tmp_path), "--overwrite"]) == 0
    assert files(tmp_path).keys() == {f"{name}/{file}" for name in "ab" for file in ("config.pbtxt", "1/model.py")}


def test_what_is_no_model_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "thesis.txt").write_text("years of work")
    assert main(["triton", str(SHAPES), str(tmp_path), "--overwrite"]) == 1
    assert "has no config.pbtxt: it is not replaced" in capsys.readouterr().err
    assert files(tmp_path) == {"shapes/thesis.txt": b"years of work"}


def test_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full while the second bundle is copied."""
    assert main(["triton", f"b={SHAPES}", str(tmp_path)]) == 0
    before = files(tmp_path / "b")
    copy = shutil.copyfile

    def fills(source: Path, target: Path) -> None:
        copy(source, target)
        if "/.b." in str(target) and target.suffix == ".data":
            raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(repository.shutil, "copyfile", fills)
    assert main(["triton", f"a={SHAPES}", f"b={SHAPES}", str(tmp_path), "--copy", "--overwrite"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]
    assert files(tmp_path / "b") == before
    assert files(tmp_path / "a" / "1" / "bundle") == files(SHAPES)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".shapes.0123abcd"
    (left / "1").mkdir(parents=True)
    assert main(["triton", str(SHAPES), str(tmp_path)]) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["shapes"]


def test_the_command_tells_what_is_missing_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latentrt.serve.extra.find_spec", lambda name: None if name == "fastapi" else name)
    assert main(["triton", str(SHAPES), str(tmp_path / "out")]) == 1
    assert "fastapi not found: `latentrt triton` needs pip install 'latentrt[serve]'" in capsys.readouterr().err
