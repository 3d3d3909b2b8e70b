"""A cluster of Ray with HAProxy in front, and replicas that hold one of two models each."""

import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from support.ray_server import ARGUMENTS, DELAY, RayServer, ray_server
from support.real_server import body, metric

pytestmark = pytest.mark.slow

PATIENCE = 60.0  # seconds that anything may take


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    with ray_server(
        {**ARGUMENTS, "loaded": 1}, tmp_path_factory.mktemp("ray"), RAY_SERVE_ENABLE_HA_PROXY="1"
    ) as server:
        assert any(process.name() == "haproxy" for process in server.processes())
        yield server


def post(server: RayServer, seed: int, model: str) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/images/generations", json=body(seed, model=model), timeout=PATIENCE)


def test_jobs_go_where_their_model_is(server: RayServer) -> None:
    """A replica has room for one model: it would load another one at each call if jobs went anywhere."""
    end = time.monotonic() + PATIENCE
    while {post(server, 1, model).status_code for model in ("shapes", DELAY)} != {200}:
        assert time.monotonic() < end
        time.sleep(0.5)
    time.sleep(1)  # until Ray has told its routers
    statuses = Counter(post(server, seed, model).status_code for seed in range(6) for model in ("shapes", DELAY))
    assert statuses == {200: 12}


def test_a_stream_comes_as_it_is_drawn_and_ends_when_its_client_leaves(server: RayServer) -> None:
    """HAProxy notices that at the next event."""
    call = body(2, steps=80, model=DELAY, stream=True, partial_images=3, preview_method="rgb")
    with httpx.stream("POST", f"{server.address}/v1/images/generations", json=call, timeout=PATIENCE) as answer:
        start = time.monotonic()
        first = next(answer.iter_lines())
        assert first == "event: image_generation.partial_image"
    end = start + PATIENCE
    while metric(server, "latentrt_running_images"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 'outcome="cancelled"' in httpx.get(f"{server.address}/metrics", timeout=PATIENCE).text


def test_what_needs_postgresql_says_so(server: RayServer) -> None:
    answers = [
        httpx.post(f"{server.address}/v1/jobs", json={"prompt": "a star"}, timeout=PATIENCE),
        httpx.get(f"{server.address}/v1/jobs/some/events", timeout=PATIENCE),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "jobs_not_kept")
        assert "state=postgresql://" in answer.json()["error"]["message"]
