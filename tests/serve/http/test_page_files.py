"""The page's files: what is sent, with which headers, and what is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.exports import ROOT
from support.fake_service import FakeService, served

from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.page import PATH, page_files

FILES = sorted(page_files())


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(make_app(FakeService())) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"{PATH}/{name}" for name in FILES)])
def test_a_file_is_sent_with_a_strict_policy_and_kept_by_its_etag(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    name = path.removeprefix("/").removeprefix("page/") or "index.html"
    assert answer.content == (ROOT / "serve" / "page" / name).read_bytes()
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert {policy[name] for name in ("default-src", "form-action", "frame-ancestors", "base-uri")} == {"'none'"}
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", ["nothing.js", "..%2fcli.py", "%2e%2e/cli.py", "py.typed", "index.html%00", ""])
def test_nothing_else_is_sent(client: httpx.Client, path: str) -> None:
    answer = client.get(f"{PATH}/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_the_page_needs_no_key_and_what_it_calls_does(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.touch()
    with served(make_app(FakeService(), HttpConfig(keys=keys))) as address:
        assert httpx.get(f"{address}/").status_code == 200
        assert httpx.get(f"{address}/v1/models").status_code == 401


def test_nothing_comes_from_other_hosts_and_nothing_is_inline() -> None:
    for name in FILES:
        text = (ROOT / "serve" / "page" / name).read_text()
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|\beval\(|innerHTML|new Function", text), name
    index = (ROOT / "serve" / "page" / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", index)
    for name in re.findall(r'(?:href|src)="page/([^"]+)"', index):
        assert name in FILES


def test_every_model_tells_what_the_page_offers(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["defaults"]["num_inference_steps"] == 20
    assert f"{model['defaults']['width']}x{model['defaults']['height']}" == model["sizes"][0]
    assert model["limits"] | {"images": 10, "steps": 150, "loras": 8} == model["limits"]
    assert {"euler", "dpm++_2m_karras", "ddim"} <= {*model["schedulers"]}
    for scheduler in ("euler", "dpm++_2m_karras", model["schedulers"][-1]):
        body = {"prompt": "a star", "scheduler": scheduler, "num_inference_steps": 3}
        assert client.post("/v1/images/generations", json=body).status_code == 200
