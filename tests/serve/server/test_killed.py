"""A real server that is killed at random moments: jobs that got their 202 are drawn, as `Pipeline` draws them."""

import random
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from support.exports import SHAPES
from support.real_server import ServerProcess, body, real_server

from latentrt.runtime import Pipeline

PATIENCE = 90.0  # seconds that anything may take


class Poster(threading.Thread):
    """Posts jobs until the server is gone, and keeps what was accepted."""

    def __init__(self, server: ServerProcess, first_seed: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._address, self._seed, self._rng = server.address, first_seed, random.Random(rng.random())
        self.accepted: dict[str, dict[str, Any]] = {}
        self.start()

    def run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=PATIENCE) as client:
            for seed in range(self._seed, self._seed + self._rng.randrange(3, 5)):
                options = body(seed, steps=1, num_images_per_prompt=1 + seed % 2)
                try:
                    answer = client.post("/v1/jobs", json=options)
                except httpx.TransportError:
                    return
                assert answer.status_code == 202, answer.text
                self.accepted[answer.json()["id"]] = options
                time.sleep(self._rng.random() * 0.05)


def wait_for_jobs(server: ServerProcess, states: set[str], count: int) -> list[dict[str, Any]]:
    """All jobs, when this many of them have one of these states."""
    end = time.monotonic() + PATIENCE
    while True:
        jobs: list[dict[str, Any]] = []
        more = True
        while more:
            after = {"after": jobs[-1]["id"]} if jobs else {}
            page = httpx.get(f"{server.address}/v1/jobs", params={"limit": 100, **after}, timeout=PATIENCE).json()
            jobs, more = jobs + page["data"], page["has_more"]
        if sum(job["status"] in states for job in jobs) >= count:
            return jobs
        assert time.monotonic() < end, [(job["status"], job["attempts"], job["error"]) for job in jobs]
        time.sleep(0.05)


def kill_at_random(server: ServerProcess, rng: random.Random) -> None:
    """Kill the server while it starts, or after it has drawn some jobs."""
    if rng.random() < 0.4:
        time.sleep(rng.random() * 0.5)
    else:  # some are drawn each time: a job that is there at three kills would be poison
        server.wait_until_ready()
        jobs = wait_for_jobs(server, set(), 0)
        done = sum(job["status"] == "done" for job in jobs)
        wait_for_jobs(server, {"done"}, min(done + rng.randrange(1, 3), len(jobs)))
        time.sleep(rng.random() * 0.2)
    devices = server.devices()
    server.process.kill()
    assert server.wait(10) == -9
    assert not psutil.wait_procs(devices, timeout=5)[1], "the device's process dies with its parent"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_a_killed_server_loses_no_job_and_draws_none_twice(kills: int, tmp_path: Path) -> None:
    rng, flags = random.Random(kills), ("--lazy", "--max-batch=4", f"--state={tmp_path / 'state'}")
    accepted: dict[str, dict[str, Any]] = {}
    for kill in range(kills):
        with real_server(*flags, ready=False) as server:
            poster = Poster(server, 1000 * kill, rng)
            kill_at_random(server, rng)
            poster.join(PATIENCE)
            accepted |= poster.accepted
    assert len(accepted) >= 2 * kills
    with real_server(*flags) as server, Pipeline.load(SHAPES.bundle, backend="onnxruntime", device="cpu") as pipe:
        jobs = wait_for_jobs(server, {"done", "failed", "cancelled"}, len(accepted))
        jobs = wait_for_jobs(server, {"done", "failed", "cancelled"}, len(jobs))  # also those whose 202 was not read
        assert {job["id"] for job in jobs} >= accepted.keys()
        assert len({job["id"] for job in jobs}) == len(jobs)
        assert len({job["request"]["seed"][0] for job in jobs}) == len(jobs)
        assert {(job["status"], job["error"] and job["error"]["kind"]) for job in jobs} == {("done", None)}
        for job in jobs:
            if (options := accepted.get(job["id"])) is not None:
                assert_drawn_as_by(pipe, server, job, options)


def assert_drawn_as_by(pipe: Pipeline, server: ServerProcess, job: dict[str, Any], options: dict[str, Any]) -> None:
    assert [picture["index"] for picture in job["images"]] == list(range(options["num_images_per_prompt"]))
    expected = pipe(width=64, height=64, **options).images
    for picture, image in zip(job["images"], expected, strict=True):
        data = httpx.get(server.address + picture["url"], timeout=PATIENCE).content
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(image))
