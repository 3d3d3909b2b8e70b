"""The command `latentrt serve`, as far as it does not serve."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.exports import ROOT

from latentrt.runtime.cli import main
from latentrt.serve import extra
from latentrt.serve.settings import SETTINGS, flag_of


def test_it_shows_settings_and_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "sd=a", "--port=1", "--print-settings"]) == 0
    shown = capsys.readouterr().out
    assert "port = 1  (--port)" in shown
    assert "host = 127.0.0.1  (default)" in shown
    assert "models = sd=a  (arguments)" in shown


def test_it_makes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert main(["serve", "--keys", str(file), "--new-key", "alice"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) > 32
    assert key not in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["serve", "--new-key", "bob"]) == 1
    assert "--new-key needs --keys FILE" in capsys.readouterr().err


def test_it_does_not_open_itself_to_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host=0.0.0.0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("latentrt: 0.0.0.0 (--host) can be reached from other machines")
    assert said.count("\n") == 1


def test_it_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve"]) == 1
    assert (
        capsys.readouterr().err == "latentrt: uvicorn not found: `latentrt serve` needs pip install 'latentrt[serve]'\n"
    )


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    assert "--[no-]auth" in shown or "--no-auth" in shown
    assert all(flag_of(name) in shown for name in SETTINGS)


def test_a_missing_bundle_is_one_line() -> None:
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT)))
    code = "import sys; from latentrt.runtime.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "serve", "sd=/nowhere/at/all"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert "/nowhere/at/all" in ended.stderr
    assert "Traceback" not in ended.stderr
