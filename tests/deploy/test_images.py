"""deploy/Dockerfile and compose.yaml: linted, and what they name is there."""

import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from support.deploy import (
    DEPLOY,
    LAST_ANSWERS,
    documents,
    instructions,
    probe_paths,
    seconds,
    settings_of,
)
from support.exports import ROOT

DOCKERFILE = DEPLOY / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage."""
    found, inside = [], False
    for word, rest in instructions(DOCKERFILE):
        inside = rest.endswith(f" AS {name}") if word == "FROM" else inside
        found += [(word, rest)] if inside else []
    return found


def value(stage_name: str, word: str) -> str:
    return [rest for found, rest in stage(stage_name) if found == word][-1]


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(HADOLINT), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_the_dockerfile_has_no_faults() -> None:
    child = lint(DOCKERFILE.read_text())
    assert child.returncode == 0, child.stdout


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ('ENTRYPOINT ["latentrt", "serve"]', "ENTRYPOINT latentrt serve", "DL3025"),
        ("--no-install-recommends ", "", "DL3015"),
        ("COPY serve serve", "COPY serve serve\nRUN cd serve && ls", "DL3003"),
    ],
)
def test_the_linter_finds_faults(before: str, after: str, rule: str) -> None:
    assert before in DOCKERFILE.read_text()
    child = lint(DOCKERFILE.read_text().replace(before, after))
    assert child.returncode != 0
    assert rule in child.stdout


@pytest.mark.parametrize("name", ["serve", "export"])
def test_images_run_as_nobody_in_particular_and_get_signals(name: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", value(name, "USER"))
    assert json.loads(value(name, "ENTRYPOINT")) == ["latentrt", name]  # the exec form: no shell swallows SIGTERM
    assert "/var/cache/latentrt" in json.loads(value(name, "VOLUME"))


def test_a_build_without_a_target_makes_the_server() -> None:
    assert [rest for word, rest in instructions(DOCKERFILE) if word == "FROM"][-1].endswith(" AS serve")


def test_the_server_listens_beyond_its_container_and_only_with_keys() -> None:
    environment = dict(word.split("=", 1) for word in value("serve", "ENV").split())
    settings = settings_of(["--keys", "keys.toml"], environment)
    assert (settings.host, settings.auth, str(settings.port)) == ("0.0.0.0", True, value("serve", "EXPOSE"))


def extras() -> Iterator[str]:
    """That the images install: of pip's lines, with the arguments' defaults, and those of compose.yaml."""
    lines = instructions(DOCKERFILE)
    defaults = dict(rest.split("=", 1) for word, rest in lines if word == "ARG")
    found = [
        match for word, rest in lines if word == "RUN" for match in re.findall(r'pip install [^"&]*"\.\[(.*?)\]"', rest)
    ]
    assert len(found) == 2
    (server,) = documents("compose.yaml")
    for names in (*found, server["services"]["server"]["build"]["args"]["EXTRAS"]):
        yield from re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], names).split(",")


def test_extras_exist() -> None:
    assert set(extras()) <= PROJECT["project"]["optional-dependencies"].keys()
    assert {"serve", "tensorrt-cu13", "export"} <= set(extras())


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file or folder through: the last line that matches it or a folder above decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            above = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 2)]
            if any(fnmatch(part, pattern.removeprefix("**/")) or fnmatch(part, f"*/{pattern[3:]}") for part in above):
                sent = line.startswith("!")
    return sent


def test_what_the_package_needs_is_copied_and_nothing_else_is_sent() -> None:
    copied = [source for word, rest in stage("sources") if word == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    needed = {*PROJECT["project"]["license-files"], PROJECT["project"]["readme"], "pyproject.toml"}
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = PROJECT["tool"]["setuptools"]["package-dir"][package]
        for pattern in ("*.py", *patterns):
            files = [file for file in (ROOT / folder).glob(pattern) if file.is_file()]
            assert files
            needed |= {str(file.relative_to(ROOT)) for file in files}
    for file in needed:
        assert is_sent(file), file
        assert any(file == source or file.startswith(f"{source}/") for source in copied), file
    for file in (
        ".git",
        "engines/sd15/bundle.json",
        "deploy/secrets/keys.toml",
        "tests/conftest.py",
        "serve/__pycache__",
    ):
        assert not is_sent(file), file


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_whether_it_lives(status: int) -> None:
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    command = json.loads(value("serve", "HEALTHCHECK").partition("CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {"LATENTRT_SERVE_PORT": str(server.server_port)}
        child = subprocess.run(
            [sys.executable, *command[1:]], env=environment, capture_output=True, timeout=30, check=False
        )
    assert (child.returncode == 0) == (status == 200)
    assert asked == ["/live"]
    assert set(asked) <= probe_paths()


# --- compose ----------------------------------------------------------------------------------------------------------

(COMPOSE,) = documents("compose.yaml")
SERVER, POSTGRES = (COMPOSE["services"][name] for name in ("server", "postgres"))


def test_compose_has_its_schema() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(COMPOSE, schema)
    wrong = {**COMPOSE, "services": {"server": {**SERVER, "depend_on": ["postgres"]}}}
    with pytest.raises(jsonschema.ValidationError, match="depend_on"):
        jsonschema.validate(wrong, schema)


def test_compose_names_what_it_defines() -> None:
    for service in (SERVER, POSTGRES):
        assert set(service["secrets"]) <= set(COMPOSE["secrets"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        volumes = [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith("$")]
        assert set(volumes) <= set(COMPOSE["volumes"])
    assert (DEPLOY / SERVER["build"]["context"]).resolve() == ROOT
    assert (ROOT / SERVER["build"]["dockerfile"]) == DOCKERFILE
    mounted = [volume.split(":")[1] for volume in SERVER["volumes"]] + SERVER["tmpfs"]
    assert {*json.loads(value("serve", "VOLUME")), "/tmp"} <= set(mounted)
    assert SERVER["read_only"]
    (device,) = SERVER["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    for name, condition in SERVER["depends_on"].items():
        assert condition["condition"] != "service_healthy" or "healthcheck" in COMPOSE["services"][name]


def test_compose_has_no_secret_in_plain_text() -> None:
    """Passwords and keys are files: neither `docker inspect` nor `docker compose config` shows them."""
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for service in (SERVER, POSTGRES):
        for name, text in service["environment"].items():
            assert "://" not in text
            assert "PASSWORD" not in name or text.startswith("/run/secrets/"), name
    for folder in ("deploy/secrets/keys.toml", "deploy/secrets/postgres_password"):
        child = subprocess.run(["git", "check-ignore", "--no-index", "-q", folder], cwd=ROOT, check=False)
        assert child.returncode == 0, f"{folder} could be committed"


def test_composes_server_has_settings_that_exist(tmp_path: Path) -> None:
    words = list(SERVER["command"])
    assert words[words.index("--config") + 1] == "/run/secrets/settings"
    config = tmp_path / "settings.toml"
    (line,) = re.findall(r"printf '(state = .*?)\\n'", (DEPLOY / "compose.yaml").read_text())
    config.write_text(line % "0123456789abcdef")
    words[words.index("--config") + 1] = str(config)
    settings = settings_of(words, SERVER["environment"])
    assert "postgres" in str(settings.state)
    assert [model.name for model in settings.models] == ["sd15"]
    assert seconds(SERVER["stop_grace_period"]) >= settings.drain_seconds + settings.grace_seconds + LAST_ANSWERS
    assert SERVER["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
