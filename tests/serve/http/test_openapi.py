"""The OpenAPI document is true: schemathesis finds no answer that it does not name, and none of 5xx."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from support import webui
from support.fake_service import FakeRepository, FakeService, kserve_face, served

from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import json_options
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance"
)


def app(config: HttpConfig | None = None, *, delay: float = 0.001) -> FastAPI:
    service = FakeService(delay)
    faces = [kserve_face(service, FakeRepository(service)), webui.face_of(service)]
    return make_app(service, config, faces=faces)


def test_every_option_of_the_table_is_in_the_document() -> None:
    document = make_app(FakeService()).openapi()
    for path in ("/v1/images/generations", "/v1/images/edits"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        properties = next(iter(content.values()))["schema"]["properties"]
        wanted = {*json_options()} - ({*BY_HASH} - {"image"} if path.endswith("edits") else set())
        assert wanted <= {*properties}
    schema = app().openapi()["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    whole, of_a_net = schema["schema"]["properties"]["inputs"]["items"]["properties"]["name"]["anyOf"]
    assert {*json_options()} <= {*whole["enum"]}
    assert re.search(of_a_net["pattern"], "control_image.edges")
    assert not any(re.search(of_a_net["pattern"], name) for name in ("prompt.edges", "control_image", "seed"))
    assert {*json_options()} <= {*schema["schema"]["properties"]["parameters"]["properties"]}


def test_headers_and_keys_are_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").touch()
    document = app(HttpConfig(keys=tmp_path / "keys.toml")).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            open_to_all = path in ("/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")
            assert ("security" in operation) != open_to_all
            assert "422" not in operation["responses"]
            assert all("X-Request-Id" in answer["headers"] for answer in operation["responses"].values())
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert "Retry-After" in answers["429"]["headers"]
    assert "Server-Timing" in answers["200"]["headers"]
    assert {*document["components"]["securitySchemes"]} == {"bearer", "basic"}
    assert "securitySchemes" not in make_app(FakeService()).openapi()["components"]


@pytest.mark.slow
@pytest.mark.parametrize("paths", ["^/(sdapi|internal)", "^/v2", "^/(v1|live|ready|metrics)"])
def test_schemathesis_finds_no_undocumented_answer(tmp_path: Path, paths: str) -> None:
    with served(app(delay=0.0)) as address:
        assert httpx.get(f"{address}/openapi.json").status_code == 200
        command = [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json"),
            *("--checks", CHECKS, "--seed", "7", "-n", "60", "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--request-timeout", "20", "--include-path-regex", paths),
        ]
        child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert child.returncode == 0, child.stdout[-6000:]
