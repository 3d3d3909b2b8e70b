"""Settings come from flags, variables and a file, in this order, and wrong ones are refused with their place."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.exports import ROOT

from latentrt.runtime.errors import InputError
from latentrt.serve.messages import ModelSpec
from latentrt.serve.settings import (
    SETTINGS,
    DatabaseUrl,
    Resolved,
    add_flags,
    flag_of,
    given_flags,
    resolve,
    shown_value,
    variable_of,
)
from latentrt.serve.settings.sources import is_loopback
from latentrt.serve.settings.table import DEFAULTS, settings_table

# Setting -> three texts that it takes, different from each other and from the default.
_TEXTS: Mapping[str, tuple[str, str, str]] = {
    "host": ("localhost", "127.0.0.2", "::1"),
    "root_path": ("/a", "/b", "/a/b"),
    "cors": ("https://a.example", "*", "http://localhost:3000,https://b.example"),
    "proxies": ("127.0.0.1", "*", "10.0.0.0/8,::1"),
    "backend": ("onnxruntime", "openvino", "tensorrt"),
    "devices": ("cpu", "cuda:0,cuda:1", "cpu,cpu"),
    "sizes": ("512x512", "64x64,128x64", "8x8"),
    "alias": ("a=shapes", "b=shapes", "a=shapes,b=shapes"),
    "state": ("/a", "/b", "/c"),
    "state_files": ("/a", "s3://bucket/jobs", "/c"),
    "max_batch": ("1", "2", "3"),
    "batch": ("1", "2", "3"),
    "filter": ("a:b", "a.b:c", "d:e"),
    "log_format": ("json", "json", "json"),
}
_BY_METAVAR: Mapping[str, tuple[str, str, str]] = {
    "": ("", "", ""),
    "N": ("65", "66", "67"),
    "BYTES": ("2KiB", "3MiB", "4GiB"),
    "TIME": ("11s", "12m", "13h"),
    "FILE": ("/a/b", "/c", "/d"),
    "DIR": ("/a/b", "/c", "/d"),
}
# What a setting goes with, in the file.
_BESIDE: Mapping[str, str] = {"state_files": 'state = "postgresql://host/jobs"\n'}
# What no setting of this metavar takes.
_WRONG: Mapping[str, str] = {
    "": "maybe", "N": "-1", "BYTES": "3 apples", "TIME": "soon", "NAME": "nothing", "HOST": "a b", "PATH": "draw",
    "ORIGINS": "example.com", "ADDRESSES": "a b",
    "PLACE": "http:///a b", "DEVICES": "toaster", "SIZES": "512", "NAME=MODEL": "a", "MODULE:FUNCTION": "a",
}  # fmt: skip


def texts(name: str) -> tuple[str, str, str]:
    if not SETTINGS[name].kind.metavar:
        other = str(not getattr(DEFAULTS, name)).lower()
        return (other, other, other)
    return _TEXTS.get(name) or _BY_METAVAR[SETTINGS[name].kind.metavar]


def words(name: str, text: str) -> list[str]:
    """A flag, as on the command line."""
    if SETTINGS[name].kind.metavar:
        return [f"{flag_of(name)}={text}"]
    return [flag_of(name) if text == "true" else f"--no-{flag_of(name)[2:]}"]


def resolved(*arguments: str, environ: Mapping[str, str] | None = None) -> Resolved:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return resolve(given_flags(parser.parse_args(arguments)), environ or {})


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "server.toml"
    file.write_text(text, encoding="utf-8")
    return file


def read(name: str, text: str) -> Any:
    return SETTINGS[name].kind.read(text, Path())


@pytest.mark.parametrize("name", SETTINGS)
def test_flag_beats_variable_beats_file_beats_default(name: str, tmp_path: Path) -> None:
    by_flag, by_variable, by_file = texts(name)
    file = settings_file(tmp_path, f'{name} = "{by_file}"\n{_BESIDE.get(name, "")}')
    environ = {variable_of(name): by_variable}
    cases = [
        (resolved("--config", str(file), *words(name, by_flag), environ=environ), by_flag, flag_of(name)),
        (resolved("--config", str(file), environ=environ), by_variable, variable_of(name)),
        (resolved("--config", str(file)), by_file, f"{file}:{name}"),
    ]
    for found, text, source in cases:
        assert getattr(found.settings, name) == read(name, text)
        assert found.sources[name] == source
    default = resolved()
    assert getattr(default.settings, name) == getattr(DEFAULTS, name)
    assert default.sources[name] == "default"
    assert read(name, by_flag) != getattr(DEFAULTS, name)


@pytest.mark.parametrize("name", [name for name in SETTINGS if SETTINGS[name].kind.metavar not in ("FILE", "DIR")])
def test_a_wrong_value_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    wrong = _WRONG[SETTINGS[name].kind.metavar]
    file = settings_file(tmp_path, f'{name} = "{wrong}"\n')
    cases = [(f"{file}:{name}", ["--config", str(file)], {}), (variable_of(name), [], {variable_of(name): wrong})]
    if SETTINGS[name].kind.metavar:
        cases.append((flag_of(name), words(name, wrong), {}))
    for place, arguments, environ in cases:
        with pytest.raises(InputError) as caught:
            resolved(*arguments, environ=environ)
        message = str(caught.value)
        assert message.startswith(place)
        assert wrong in message
        assert SETTINGS[name].kind.expected in message
        assert "\n" not in message


def test_shown_values_are_read_back() -> None:
    for name, row in SETTINGS.items():
        for text in texts(name):
            value = read(name, text)
            assert read(name, row.kind.show(value)) == value


ADDRESS = "postgresql://jobs:s%40cret@db.example:5432/jobs?sslmode=require"


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "postgresql:///jobs?host=/run/postgresql&password=s%40cret",
        "postgres://jobs:s%40cret@a.example,b.example:5433/jobs?target_session_attrs=any",
        "postgresql://jobs:s%40cret@[2001:db8::1]:5432",
        "postgresql://jobs:s%40:c/ret?@db.example/jobs",
    ],
)
def test_the_address_of_a_database_never_shows_its_password(address: str) -> None:
    found = resolved(f"--state={address}", "--state-files=s3://bucket/jobs").settings
    assert isinstance(found.state, DatabaseUrl)
    assert found.state.secret == address
    assert found.state_files == "s3://bucket/jobs"
    for text in (str(found.state), repr(found), shown_value("state", found.state)):
        assert "cret" not in text
        assert "s%40" not in text
    assert "jobs" in str(found.state)


@pytest.mark.parametrize(
    "address",
    ["postgresql://jobs:se@cret@db.example/jobs", "mysql://jobs:cret@db/jobs", "postgresql://jobs:cret@db:port/jobs"],
)
def test_nor_does_the_refusal_of_a_wrong_one(address: str) -> None:
    for arguments, environ in (([f"--state={address}"], {}), ([], {"LATENTRT_SERVE_STATE": address})):
        with pytest.raises(InputError, match=r"jobs:\*\*\*@db.*expected a path, or postgresql://") as caught:
            resolved(*arguments, environ=environ)
        assert "cret" not in str(caught.value)


def test_toml_holds_numbers_lists_and_tables(tmp_path: Path) -> None:
    text = (
        'port = 0\nmax_wait = 2.5\nlazy = true\ncors = ["https://a", "https://b"]\nalias = { "gpt-image-1" = "sd" }\n'
    )
    text += (
        'keys = "keys.toml"\nstate = "kept"\n[[model]]\nname = "sd"\npath = "sd15"\nsizes = ["512x512"]\n[[model]]\n'
    )
    settings = resolved("--config", str(settings_file(tmp_path, text))).settings
    assert (settings.port, settings.max_wait, settings.lazy) == (0, 2.5, True)
    assert settings.cors == ("https://a", "https://b")
    assert settings.alias == {"gpt-image-1": "sd"}
    assert settings.keys == tmp_path / "keys.toml"  # of the file's folder
    assert settings.state == tmp_path / "kept"
    assert settings.models == (
        ModelSpec("sd", tmp_path / "sd15", sizes=((512, 512),)),
        ModelSpec("shapes"),
    )


def test_models_are_named_by_their_folder_or_by_their_word(tmp_path: Path) -> None:
    assert resolved().settings.models == (ModelSpec("shapes"),)
    settings = resolved("sd=a/b", "c/d", "--backend=openvino", "--sizes=64x64", "--sizes=128x64").settings
    sizes = ((64, 64), (128, 64))
    assert settings.models == (
        ModelSpec("sd", Path("a/b"), backend="openvino", sizes=sizes),
        ModelSpec("d", Path("c/d"), backend="openvino", sizes=sizes),
    )
    by_variable = resolved(environ={"LATENTRT_SERVE_MODELS": "x=a,b"})
    assert [model.name for model in by_variable.settings.models] == ["x", "b"]
    assert by_variable.sources["models"] == "LATENTRT_SERVE_MODELS"
    file = settings_file(tmp_path, "[[model]]\npath='of_file'\n")
    assert [m.name for m in resolved("--config", str(file), "of_flag").settings.models] == ["of_flag"]


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ([], "prot = 1", "did you mean 'port'"),
        ([], "port = ", "is not TOML"),
        ([], "port = true", "an integer from 0 to 65535"),
        ([], "[[model]]\npaht = 'a'", "did you mean 'path'"),
        ([], "[[model]]\npath = 'a'\nbackend = 'torch'", "server.toml:model.backend='torch': expected one of auto"),
        ([], "[model]\npath = 'a'", "expected tables [[model]]"),
        (["sd=a", "sd=b"], "", "two models are called 'sd'"),
        (["=a"], "", "expected NAME=FOLDER"),
        (["a b=c"], "", "the name 'a b' of a model"),
        (["a", "b", "--engines=c"], "", "say it in each [[model]]"),
        (["sd=a", "--alias=b=sd14"], "", "unknown model 'sd14'; did you mean 'sd'?"),
        (["sd=a", "--alias=sd=sd"], "", "is the name of a model"),
        (["--state=postgresql://me:secret@db/jobs"], "", "postgresql://me:***@db/jobs needs --state-files"),
        ([], "state_files = '/a'", "state_files: expected --state postgresql://"),
        (["--state=/a", "--state-files=/b"], "", "a folder as --state holds its files itself"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], text: str, message: str, tmp_path: Path) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        resolved("--config", str(file), *arguments)
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        resolved("--config", str(tmp_path / "none.toml"))


def test_an_address_that_others_reach_needs_keys_or_no_auth(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.com"):
        with pytest.raises(InputError, match="--no-auth"):
            resolved(f"--host={host}")
        assert resolved(f"--host={host}", "--no-auth").settings.host == host
        assert resolved(f"--host={host}", "--keys=keys").settings.host == host
        assert resolved(f"--host={host}", f"--uds={tmp_path}/socket").settings.host == host
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("localhost.example", "127.0.0.1.nip.io", "", "0")))


def test_unknown_variables_are_named(caplog: pytest.LogCaptureFixture) -> None:
    resolved(environ={"LATENTRT_SERVE_PROT": "1", "LATENTRT_MAX_STEPS": "10", "PATH": "/"})
    assert [record.getMessage() for record in caplog.records] == [
        "LATENTRT_SERVE_PROT is no setting; did you mean LATENTRT_SERVE_PORT?"
    ]


def test_what_kubernetes_sets_is_explained() -> None:
    with pytest.raises(InputError, match="enableServiceLinks"):
        resolved(environ={"LATENTRT_SERVE_PORT": "tcp://10.0.0.1:80"})


def test_every_setting_is_in_the_table() -> None:
    lines = settings_table().splitlines()
    assert len(lines) == len(SETTINGS) + 2
    assert all(line.count(" | ") == 4 for line in lines[2:])


def test_the_docs_hold_the_table() -> None:
    file = ROOT / "docs" / "serving.md"
    command = "python -c \"from latentrt.serve.settings import settings_table; print(settings_table(), end='')\""
    assert settings_table() in file.read_text(encoding="utf-8"), command


def test_a_model_may_have_a_refiner(tmp_path: Path) -> None:
    file = settings_file(tmp_path, '[[model]]\nname = "xl"\npath = "xl"\nrefiner = "refiner"\n')
    (model,) = resolved("--config", str(file)).settings.models
    assert (model.path, model.refiner) == (tmp_path / "xl", tmp_path / "refiner")
    file = settings_file(tmp_path, '[[model]]\nname = "xl"\npath = "xl"\nrefiner = 3\n')
    with pytest.raises(InputError, match=r"refiner=3: expected"):
        resolved("--config", str(file))
