"""The OpenAPI document is true: schemathesis finds no answer that it does not name, and none of 5xx."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from support import webui
from support.fake_service import FakeService, served

from latentrt.runtime.request.options import json_options
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance"
)


def test_every_option_of_the_table_is_in_the_document() -> None:
    document = make_app(FakeService()).openapi()
    for path in ("/v1/images/generations", "/v1/images/edits"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        properties = next(iter(content.values()))["schema"]["properties"]
        wanted = {*json_options()} - ({"mask_image", "latents"} if path.endswith("edits") else set())
        assert wanted <= {*properties}


def test_headers_and_keys_are_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").touch()
    document = webui.app_of(FakeService(), HttpConfig(keys=tmp_path / "keys.toml")).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in ("/live", "/ready", "/metrics"))
            assert "422" not in operation["responses"]
            assert all("X-Request-Id" in answer["headers"] for answer in operation["responses"].values())
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert "Retry-After" in answers["429"]["headers"]
    assert "Server-Timing" in answers["200"]["headers"]
    assert {*document["components"]["securitySchemes"]} == {"bearer", "basic"}
    assert "securitySchemes" not in make_app(FakeService()).openapi()["components"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_app, webui.app_of], ids=["openai", "webui"])
def test_schemathesis_finds_no_undocumented_answer(tmp_path: Path, make: Callable[[FakeService], FastAPI]) -> None:
    own = ["--include-path-regex", "^/(sdapi|internal)"] if make is webui.app_of else []
    with served(make(FakeService(0.0))) as address:
        assert httpx.get(f"{address}/openapi.json").status_code == 200
        command = [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json"),
            *("--checks", CHECKS, "--seed", "7", "-n", "60", "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--request-timeout", "20", *own),
        ]
        child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert child.returncode == 0, child.stdout[-6000:]
