"""A real server under three times the load that it can serve, with clients that go away."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.exports import ROOT
from support.real_server import ServerProcess, body, metric, real_server

from latentrt.serve.http.keys import new_key

DELAY, BATCH, STEPS, SECONDS, MAX_WAIT = 0.1, 4, 8, 60, 5.0
CAPACITY = BATCH / (STEPS * DELAY)  # pictures a second, if the server's own work took no time
CLIENTS = 4
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    return [new_key(tmp_path / "keys.toml", f"client{number}") for number in range(CLIENTS)]


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, keys: list[str]) -> Iterator[ServerProcess]:
    """The parameter is `--max-wait`."""
    assert keys
    max_wait = getattr(request, "param", MAX_WAIT)
    flags = (f"--batch={BATCH}", f"--max-wait={max_wait:g}", f"--keys={tmp_path / 'keys.toml'}")
    with real_server(*flags, delay=round(1000 * DELAY), cores=CORES[:1]) as server:
        yield server


def loaded(server: ServerProcess, keys: list[str], **options: object) -> dict[str, Any]:
    """Figures of the load, from a client in a process of its own, on another core where there is one."""
    options = {"url": server.address, "rate": 3 * CAPACITY, "seconds": SECONDS, "steps": STEPS, **options}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    core = ["taskset", "--cpu-list", str(CORES[-1])]
    command = [*core, sys.executable, "-m", "benchmarks.serving.load", *flags, "--keys", *keys]
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT)))
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])["results"]
    print(json.dumps(figures))
    return figures


@pytest.mark.slow
def test_three_times_the_load_is_served_at_full_speed_and_the_rest_refused(
    server: ServerProcess, keys: list[str]
) -> None:
    figures = loaded(server, keys)
    assert figures["goodput"] >= 0.85 * CAPACITY
    assert set(figures["statuses"]) == {"200", "429"}
    assert figures["retry_after_integers"] == figures["statuses"]["429"]
    assert 1 <= figures["retry_after_max_s"] <= 120
    assert figures["queue_max_s"] <= MAX_WAIT


@pytest.mark.slow
def test_clients_that_go_away_leave_their_slots_to_the_others(server: ServerProcess, keys: list[str]) -> None:
    figures = loaded(server, keys, leave=0.3, patience=MAX_WAIT, seconds=SECONDS / 2)
    made = metric(server, "latentrt_unet_image_calls_total")
    print(f"{made} image calls, {made - STEPS * figures['statuses']['200']} for those who left")
    assert set(figures["statuses"]) == {"0", "200", "429"}
    assert figures["queue_max_s"] <= MAX_WAIT
    assert made / STEPS / (SECONDS / 2) >= 0.85 * CAPACITY
    assert figures["goodput"] >= 0.75 * CAPACITY  # what was drawn of pictures that nobody waits for any more is lost


@pytest.mark.slow
@pytest.mark.parametrize("server", [30.0], indirect=True)
def test_a_slot_is_free_at_the_call_after_its_client_has_left(keys: list[str], server: ServerProcess) -> None:
    async def check() -> float:
        headers = {"Authorization": f"Bearer {keys[0]}"}
        async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=60) as client:

            def post(seed: int, steps: int) -> "asyncio.Task[httpx.Response]":
                call = body(seed, steps=steps)
                return asyncio.create_task(client.post("/v1/images/generations", json=call))

            long = []
            for seed in range(BATCH):  # one by one: together they would be more than may wait
                long.append(post(seed, 100))
                while metric(server, "latentrt_running_images") <= seed:
                    await asyncio.sleep(0.02)
            short = post(9, 2)
            await asyncio.sleep(0.5)
            assert not short.done(), "all slots are taken"
            left = time.monotonic()
            long[0].cancel()
            assert (await short).status_code == 200
            took = time.monotonic() - left
            for task in long:
                task.cancel()
            return took

    assert asyncio.run(check()) < 3, "a call, then two of its own, and not the 100 of those before it"
