"""The app of an ingress over a replica in this process: no Ray."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from support.exports import ROOT
from support.fake_service import served
from support.local_engines import LocalEngines, engine

from latentrt.serve.http.keys import new_key
from latentrt.serve.metrics import Metrics
from latentrt.serve.ray.ingress import ingress_app
from latentrt.serve.ray.settings import Application, application, ray_settings_table

SHAPES = ROOT / "engines" / "shapes"


def settings(keys: Path) -> Application:
    return application({"models": f"shapes={SHAPES}", "keys": str(keys), "alias": "gpt-image-1=shapes"}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ingress")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    file = folder / "keys.toml"
    result = {"Authorization": f"Bearer {new_key(file, 'alice')}"}
    file.write_text(f"{file.read_text()}admin = true\n")
    return result


@pytest.fixture(scope="module")
def address(folder: Path, keys: dict[str, str]) -> Iterator[str]:
    assert keys
    app = ingress_app(settings(folder / "keys.toml"), LocalEngines(engine("delay=0.001")), Metrics())
    with served(app) as address:
        for _ in range(500):
            if httpx.get(f"{address}/ready").status_code == 200:
                break
        yield address


def test_pictures_are_drawn_by_a_replica(address: str, keys: dict[str, str]) -> None:
    call = {"model": "gpt-image-1", "prompt": "a star", "n": 2, "num_inference_steps": 3}
    answer = httpx.post(f"{address}/v1/images/generations", json=call, headers=keys)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    text = httpx.get(f"{address}/metrics").text
    assert 'latentrt_images_total{model="shapes"} 2.0' in text
    assert 'latentrt_device_ready{device="cpu"} 1.0' in text


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("GET", ""), ("GET", "/some"), ("DELETE", "/some"), ("GET", "/some/events"), ("GET", "/a/images/0")],
)
def test_jobs_need_postgresql(address: str, keys: dict[str, str], method: str, path: str) -> None:
    answer = httpx.request(method, f"{address}/v1/jobs{path}", headers=keys)
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "jobs_not_kept")
    assert "state=postgresql://" in answer.json()["error"]["message"]
    assert httpx.request(method, f"{address}/v1/jobs{path}").status_code == 401


def test_the_body_of_a_new_job_is_documented_for_the_page(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json").json()
    schema = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "prompt" in schema["properties"]


@pytest.mark.parametrize("change", ["load", "unload"])
def test_models_are_those_of_the_configuration(address: str, keys: dict[str, str], change: str) -> None:
    index = httpx.post(f"{address}/v2/repository/index", headers=keys)
    assert [(model["name"], model["state"]) for model in index.json()] == [("shapes", "READY")]
    answer = httpx.post(f"{address}/v2/repository/models/shapes/{change}", headers=keys)
    assert answer.status_code == 501
    assert "deploy" in answer.json()["error"]


def test_answers_are_counted_by_api_behind_a_route_prefix(folder: Path, keys: dict[str, str]) -> None:
    """Ray Serve leaves its prefix in the path, and says it in `root_path`."""
    assert keys
    metrics = Metrics()

    async def ask() -> None:
        app = ingress_app(settings(folder / "keys.toml"), LocalEngines(engine()), metrics)
        transport = httpx.ASGITransport(app, root_path="/draw")
        async with httpx.AsyncClient(transport=transport, base_url="http://latentrt") as client:
            assert (await client.get("/draw/live")).status_code == 200

    asyncio.run(ask())
    assert b'latentrt_requests_total{api="live",status="200"} 1.0' in metrics.text([])


def test_the_committed_configuration_is_one() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    (of_app,) = document["applications"]
    result = application(of_app["args"], {})
    assert (result.gpus, result.most_replicas, result.keeps_jobs) == (1.0, 8, False)
    (of_engine,) = of_app["deployments"]
    assert of_engine["autoscaling_config"]["target_ongoing_requests"] == pytest.approx(result.target)
    text = (ROOT / "docs" / "ray.md").read_text()
    assert ray_settings_table() in text
