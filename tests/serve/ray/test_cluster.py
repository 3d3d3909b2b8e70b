"""A small cluster of Ray: two replicas of the engine, one ingress; real processes, real HTTP. The order matters."""

import asyncio
import base64
import io
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from support.exports import ROOT
from support.ray_server import ARGUMENTS as BASE
from support.ray_server import DELAY, RayServer, ray_server
from support.real_server import HANGS, SIZE, body, metric

from latentrt.runtime import Pipeline

pytestmark = pytest.mark.slow

GENERATIONS = "/v1/images/generations"
PATIENCE = 60.0  # seconds that anything may take
LONG = 900  # UNet calls, which take longer than that
ARGUMENTS = {
    **BASE,
    "ongoing": 6,
    "queued": 8,
    "max_wait": "20s",
    "max_steps": 1000,
    "call_limit": "4s",
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    from support.postgres import cluster

    with cluster() as postgres:
        state = {"state": postgres.url(postgres.database()), "state_files": str(tmp_path_factory.mktemp("files"))}
        yield ARGUMENTS | state


@pytest.fixture(scope="module")
def server(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    with ray_server(arguments, tmp_path_factory.mktemp("ray")) as server:
        until(lambda: ready_devices(server) == 2)
        yield server


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ready_devices(server: RayServer) -> float:
    return metric(server, "latentrt_device_ready")


def busy_devices(server: RayServer) -> int:
    text = httpx.get(f"{server.address}/metrics", timeout=PATIENCE).text
    return len(re.findall(r"^latentrt_running_images\{.*\} [1-9]", text, re.MULTILINE))


def at_work(server: RayServer) -> float:
    """Images that replicas draw or have waiting, as of at most a second ago."""
    return metric(server, "latentrt_running_images") + metric(server, "latentrt_queue_images")


def post(server: RayServer, seed: int, **options: Any) -> httpx.Response:
    return httpx.post(server.address + GENERATIONS, json=body(seed, **options), timeout=PATIENCE)


def client(server: RayServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=PATIENCE, **options)


def pixels(b64: str | None) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64 or ""))))


def test_pictures_are_those_of_one_machine_to_the_bit(server: RayServer) -> None:
    """Four at a time, on two replicas, as many share a UNet call."""
    pipeline = Pipeline.load(ROOT / "engines" / "shapes", backend="onnxruntime", device="cpu")

    def drawn(seed: int) -> Any:
        options = {key: value for key, value in body(seed, steps=6).items() if key != "prompt"}
        answer = client(server).images.generate(
            prompt=str(body(seed)["prompt"]), size="64x64", n=2, extra_body=options
        )  # fmt: skip
        return [pixels(image.b64_json) for image in answer.data or []]

    seeds = [11, 12, 13, 14]
    with ThreadPoolExecutor(len(seeds)) as pool:
        pictures = list(pool.map(drawn, seeds))
    for seed, got in zip(seeds, pictures, strict=True):
        call = body(seed, steps=6)
        result = pipeline(call.pop("prompt"), width=64, height=64, num_images_per_prompt=2, **call)
        for picture, image in zip(got, result.images, strict=True):
            assert np.array_equal(picture, np.asarray(image))


def test_previews_come_while_it_is_drawn(server: RayServer) -> None:
    start, came = time.monotonic(), []
    stream = client(server).images.generate(
        model=DELAY, prompt="a red star", stream=True, partial_images=3,
        extra_body={"num_inference_steps": 12, "seed": 5},
    )  # fmt: skip
    for event in stream:
        came.append((event.type.rpartition(".")[2], time.monotonic() - start))
    assert [name for name, _ in came] == ["partial_image"] * 3 + ["completed"]
    assert came[-1][1] - came[0][1] > 0.3  # seconds: they were not sent all at once


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server: RayServer, stream: bool) -> None:
    until(lambda: at_work(server) == 0)

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            call = body(3, steps=LONG, model=DELAY, stream=stream, **({"partial_images": 3} if stream else {}))
            request = asyncio.create_task(http.post(server.address + GENERATIONS, json=call))
            await asyncio.to_thread(until, lambda: at_work(server) == 1)
            request.cancel()

    asyncio.run(leave())
    until(lambda: at_work(server) == 0)


def test_an_idempotency_key_draws_on_without_its_client(server: RayServer) -> None:
    call = {"json": body(4, steps=20, model=DELAY), "headers": {"Idempotency-Key": "once"}}
    before = metric(server, "latentrt_images_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.address + GENERATIONS, timeout=1.0, **call)
    assert httpx.post(server.address + GENERATIONS, timeout=PATIENCE, **call).status_code == 200
    assert metric(server, "latentrt_images_total") == before + 1


def test_overload_is_refused_with_the_time_to_come_back(server: RayServer) -> None:
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda seed: post(server, seed, steps=10, model=DELAY), range(40)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 12  # the places of both replicas
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["Retry-After"]) <= 120
            # Ray's own refusals, before a replica is asked, are plain text.
            ours = answer.headers["content-type"] == "application/json"
            assert answer.headers.get("x-should-retry") == ("true" if ours else None)


def test_the_list_of_models_is_that_of_the_configuration(server: RayServer) -> None:
    models = httpx.get(f"{server.address}/v1/models", timeout=PATIENCE).json()["data"]
    assert [(model["id"], model["ready"]) for model in models] == [("shapes", True), (DELAY, True)]


def test_rays_metrics_hold_ours_of_every_process(server: RayServer) -> None:
    """Those of devices from the engine, those of answers from the ingress."""

    def told(pattern: str) -> bool:
        return re.search(pattern, httpx.get(server.metrics, timeout=PATIENCE).text, re.MULTILINE) is not None

    until(lambda: told(r'^ray_latentrt_unet_call_images_count\{.*deployment="Engine".*model="shapes"'))
    until(lambda: told(r'^ray_latentrt_device_ready\{.*deployment="Engine".*device="cpu@'))
    until(lambda: told(r'^ray_latentrt_requests_total\{.*api="images".*deployment="Ingress".*status="429"'))
    assert not told(r'^ray_latentrt_device_ready\{.*deployment="Ingress"')


def test_a_replica_that_is_killed_fails_its_requests_for_a_retry(server: RayServer) -> None:
    victim = server.replicas("Engine")[0]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, server, seed, steps=30, model=DELAY) for seed in range(8)]
        until(lambda: at_work(server) == 8)
        victim.send_signal(signal.SIGKILL)
        answers = [future.result() for future in asked]
        retried = client(server, max_retries=5).images.generate(prompt="a star", extra_body={"num_inference_steps": 2})
        assert retried.data
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "device_restarted"
            assert answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["Retry-After"]) >= 1
    until(lambda: ready_devices(server) == 2)
    assert post(server, 1).status_code == 200


def test_kept_jobs_outlive_a_replica_that_is_killed(server: RayServer) -> None:
    jobs = [
        httpx.post(f"{server.address}/v1/jobs", json=body(seed, steps=40, model=DELAY), timeout=PATIENCE).json()
        for seed in range(6)
    ]
    until(lambda: busy_devices(server) == 2)
    server.replicas("Engine")[0].send_signal(signal.SIGKILL)

    def now(job: dict[str, Any]) -> dict[str, Any]:
        return dict(httpx.get(f"{server.address}{job['urls']['self']}", timeout=PATIENCE).json())

    until(lambda: all(now(job)["status"] in ("done", "failed") for job in jobs))
    ended = [now(job) for job in jobs]
    assert {job["status"] for job in ended} == {"done"}
    assert max(job["attempts"] for job in ended) == 2
    picture = httpx.get(server.address + ended[0]["images"][0]["url"], timeout=PATIENCE)
    assert Image.open(io.BytesIO(picture.content)).size == SIZE
    until(lambda: ready_devices(server) == 2)


def test_a_device_that_hangs_is_replaced(server: RayServer) -> None:
    """Its call is too long: the replica's health check fails, and Ray starts another one."""
    before = {process.pid for process in server.replicas("Engine")}
    answer = post(server, HANGS, steps=4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "device_restarted")
    until(lambda: len({process.pid for process in server.replicas("Engine")} - before) == 1)
    until(lambda: ready_devices(server) == 2)


def test_a_new_version_fails_no_request(server: RayServer, arguments: dict[str, Any]) -> None:
    before = {process.pid for name in ("Engine", "Ingress") for process in server.replicas(name)}
    statuses: Counter[int | str] = Counter()

    def ask(seed: int) -> None:
        while not server.deployed.is_set():
            answer = post(server, seed, steps=4, model=DELAY)
            statuses[answer.status_code if answer.status_code == 200 else answer.text] += 1

    with ThreadPoolExecutor(4) as pool:
        long = pool.submit(post, server, 9, steps=60, model=DELAY)
        until(lambda: at_work(server) == 1)
        server.deploy(arguments | {"max_wait": "25s"})
        list(pool.map(ask, range(3)))
        assert long.result().status_code == 200
    assert set(statuses) == {200}
    assert statuses[200] > 5
    assert not before & {process.pid for name in ("Engine", "Ingress") for process in server.replicas(name)}
    assert post(server, 1).status_code == 200
