"""Real servers at one PostgreSQL: killed at random, or standing still for longer than their lease."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES
from support.postgres import Cluster
from support.real_server import ServerProcess, body, real_server

from latentrt.runtime import Pipeline
from latentrt.serve.jobs.postgres.store import store_in_postgres
from tests.serve.jobs.fakes import names_in
from tests.serve.jobs.runners import checked

PATIENCE = 120.0  # seconds that anything may take


class Servers:
    """Servers of one database and one folder of files."""

    def __init__(self, cluster: Cluster, folder: Path, **options: Any) -> None:
        self.url, self.folder = cluster.url(cluster.database()), folder
        self._options = options
        self._flags = (
            *("--lazy", "--max-batch=2", "--client-jobs=1000", "--state-lease=2", "--no-auth"),
            *(f"--state={self.url}", f"--state-files={folder}"),
        )
        self._stacks: dict[int, ExitStack] = {}
        self._starts = ThreadPoolExecutor(3)
        self._http = httpx.Client(timeout=PATIENCE)
        self.running: dict[int, ServerProcess] = {}

    def start(self, number: int) -> "Future[None]":
        """Start a server, which is among those that run as soon as it listens."""

        def start() -> None:
            stack = self._stacks[number] = ExitStack()
            self.running[number] = stack.enter_context(real_server(*self._flags, ready=False, **self._options))

        return self._starts.submit(start)

    def kill(self, number: int) -> None:
        """SIGKILL."""
        self.running.pop(number)
        self._stacks.pop(number).close()

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._starts.shutdown()
        for number in list(self.running):
            self.kill(number)
        self._http.close()

    def ask(self, method: str, path: str, rng: random.Random, **options: Any) -> httpx.Response:
        """The answer of any server that runs and can give one."""
        end = time.monotonic() + PATIENCE
        while True:
            answer = httpx.Response(503)
            if running := list(self.running.values()):
                with suppress(httpx.TransportError):
                    answer = self._http.request(method, f"{rng.choice(running).address}{path}", **options)
            if answer.status_code != 503:
                return answer
            assert time.monotonic() < end, answer.text
            time.sleep(0.05)

    def all_jobs(self, rng: random.Random) -> list[dict[str, Any]]:
        """Every job of the client."""
        jobs: list[dict[str, Any]] = []
        more = True
        while more:
            after = {"after": jobs[-1]["id"]} if jobs else {}
            page = self.ask("GET", "/v1/jobs", rng, params={"limit": 100, **after}).json()
            jobs, more = jobs + page["data"], page["has_more"]
        return jobs


def waited(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return result


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(data)))


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [(300, 6)])
def test_killed_servers_draw_every_job_once(postgres: Cluster, tmp_path: Path, jobs: int, kills: int) -> None:
    rng = random.Random(kills)
    with Servers(postgres, tmp_path) as servers:
        for started in [servers.start(number) for number in range(3)]:
            started.result()
        accepted: dict[str, int] = {}
        at = sorted(rng.sample(range(10, jobs), kills))
        for seed in range(jobs):
            answer = servers.ask(
                *("POST", "/v1/jobs", rng), json=body(seed, steps=1), headers={"Idempotency-Key": f"key {seed}"}
            )
            assert answer.status_code == 202, answer.text
            accepted[answer.json()["id"]] = seed
            if seed in at and servers.running:
                number = rng.choice(list(servers.running))
                servers.kill(number)
                servers.start(number)
        assert len(accepted) == jobs

        def finished() -> list[dict[str, Any]]:
            found = servers.all_jobs(rng)
            return found if all(job["status"] in ("done", "failed", "cancelled") for job in found) else []

        found = waited(finished)
        assert {job["id"] for job in found} == accepted.keys()
        # Few were there at three kills.
        poison = [job for job in found if job["status"] == "failed"]
        assert {(job["error"]["kind"], job["attempts"]) for job in poison} <= {("poison", 3)}
        assert len(poison) <= kills // 3
        assert Counter(job["status"] for job in found)["done"] == jobs - len(poison)
        with Pipeline.load(SHAPES.bundle, backend="onnxruntime", device="cpu") as pipe:
            for job in found[:: jobs // 30]:
                if job["status"] == "done":
                    seed = accepted[job["id"]]
                    data = servers.ask("GET", job["images"][0]["url"], rng).content
                    (expected,) = pipe(width=64, height=64, **body(seed, steps=1)).images
                    np.testing.assert_array_equal(pixels(data), np.asarray(expected))
    assert_one_file_a_job(servers, jobs - len(poison))


def assert_one_file_a_job(servers: Servers, count: int) -> None:
    @checked
    async def check() -> None:
        for unfinished in (servers.folder / "results").glob(".*"):  # which a killed server was writing an hour ago
            os.utime(unfinished, (1.0, 1.0))
        store = store_in_postgres(servers.url, servers.folder, files_every=0)
        await store.sweep()
        kept = [job for client in await clients(store) for job in await store.of_client(client, limit=10_000)]
        named = [picture.name for job in kept for picture in job.pictures]
        assert len(named) == len(set(named)) == count
        assert sorted(names_in(servers.folder / "results")) == sorted(named)
        assert names_in(servers.folder / "inputs") == []
        await store.close()

    async def clients(store: Any) -> list[str]:
        return [row["client"] for row in await store._do(store._jobs.rows, "SELECT DISTINCT client FROM jobs")]

    check()


@pytest.mark.slow
def test_a_server_that_stands_still_commits_nothing_late(postgres: Cluster, tmp_path: Path) -> None:
    rng = random.Random(1)
    options = body(5, steps=12)
    with Servers(postgres, tmp_path, delay=250) as servers:
        for started in [servers.start(number) for number in range(2)]:
            started.result()
        for server in servers.running.values():
            server.wait_until_ready()
        job = servers.ask("POST", "/v1/jobs", rng, json=options).json()

        def look() -> Any:
            return servers.ask("GET", f"/v1/jobs/{job['id']}", rng).json()

        waited(lambda: look()["status"] == "running")
        rows = postgres.run(
            "SELECT name FROM latentrt.jobs JOIN latentrt.servers s ON s.id = server", database_of(servers)
        )
        ((name,),) = rows
        pid = int(str(name).split()[1])
        still = next(number for number, server in servers.running.items() if server.process.pid == pid)
        process, other = servers.running[still], servers.running[1 - still]
        os.kill(pid, signal.SIGSTOP)
        servers.running = {1 - still: other}
        kept = waited(lambda: (now := look())["status"] == "done" and now)
        assert kept["attempts"] == 2
        os.kill(pid, signal.SIGCONT)
        servers.running = {still: process, 1 - still: other}
        waited(lambda: "200" in str(httpx.get(f"{process.address}/ready", timeout=PATIENCE).status_code))
        waited(lambda: metric_of(process, "latentrt_running_images") == 0)
        assert {key: value for key, value in look().items() if key != "eta_s"} == {
            key: value for key, value in kept.items() if key != "eta_s"
        }
        data = [httpx.get(f"{s.address}{kept['images'][0]['url']}", timeout=PATIENCE).content for s in (process, other)]
        assert data[0] == data[1]
    assert_one_file_a_job(servers, 1)


def database_of(servers: Servers) -> str:
    return servers.url.partition("@/")[2].partition("?")[0]


def metric_of(server: ServerProcess, name: str) -> float:
    lines = httpx.get(f"{server.address}/metrics", timeout=PATIENCE).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
