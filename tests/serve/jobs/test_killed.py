"""A server that is killed at any moment loses no job that it has accepted, and draws none wrongly or twice."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exports import ROOT

from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.jobs.store import MAX_ATTEMPTS, KeptJob

from .fakes import FakeService, names_in, picture_of
from .killed_server import MODEL, job_number


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that forks servers; see `killed_server`."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'typings'}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "tests.serve.jobs.killed_server"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield process
        process.kill()


def told(nursery: subprocess.Popen[str]) -> str:
    assert nursery.stdout is not None
    return nursery.stdout.readline().strip()


@pytest.mark.parametrize(
    ("kills", "seed"), [(10, 1), *(pytest.param(40, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_a_killed_server_loses_nothing(tmp_path: Path, nursery: subprocess.Popen[str], kills: int, seed: int) -> None:
    rng = random.Random(seed)
    folder, file = tmp_path / "state", tmp_path / "accepted"
    done: dict[str, KeptJob] = {}
    assert told(nursery) == "ready"
    for kill in range(kills):
        assert nursery.stdin is not None
        nursery.stdin.write(f"{folder} {file} {1000 * kill} {rng.randrange(1 << 30)}\n")
        nursery.stdin.flush()
        child = int(told(nursery))
        # Some are killed while they start; the others after a number of jobs, however slow the machine is.
        wait_for_lines(file, len(lines_of(file)) + (rng.randrange(10) if kill % 5 else 0))
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        assert told(nursery) == "gone"
        jobs = asyncio.run(kept_in(folder, file))
        for name, before in done.items():
            assert jobs[name] == before, "a job has got another result"
        done = {name: job for name, job in jobs.items() if job.state == "done"}
    accepted = lines_of(file)
    assert len(accepted) > 2 * kills
    asyncio.run(all_are_drawn(folder, accepted))


def lines_of(file: Path) -> list[str]:
    """The whole lines of a file that may not be there yet."""
    return file.read_text().rpartition("\n")[0].split() if file.exists() else []


def wait_for_lines(file: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(lines_of(file)) < count:
        assert time.monotonic() < end, "the server accepts no jobs"
        time.sleep(0.002)


async def kept_in(folder: Path, file: Path) -> dict[str, KeptJob]:
    """All jobs; those that were accepted are there."""
    numbers = lines_of(file)
    store = store_in_folder(folder)
    jobs = {job.id: job for job in await store.of_client("me", limit=100_000)}
    assert {f"job{number}" for number in numbers} <= set(jobs)
    assert all(job.state in ("waiting", "done", "failed") for job in jobs.values())
    for job in jobs.values():
        for picture in job.pictures:
            assert await store.picture(picture) == picture_of(job_number(int(job.id[3:])), 0)
    await store.close()
    return jobs


async def all_are_drawn(folder: Path, accepted: list[str]) -> None:
    """The next server draws what is left, each with one result."""
    store = store_in_folder(folder)
    runner = Runner(FakeService(MODEL), store, options=RunnerOptions(poll=0.02))
    runner.start()
    while (await store.counts()).jobs.keys() - {"done", "failed"}:
        await asyncio.sleep(0.02)
    await runner.stop(5)
    await store.sweep()
    named = []
    for job in await store.of_client("me", limit=100_000):
        if job.state == "failed":  # it was there at three kills
            assert job.failure is not None
            assert (job.failure.kind, job.attempts) == ("poison", MAX_ATTEMPTS)
            continue
        assert (job.state, len(job.pictures)) == ("done", 1)
        assert await store.picture(job.pictures[0]) == picture_of(job_number(int(job.id[3:])), 0)
        named.append(job.pictures[0].name)
    assert len(named) >= 0.8 * len(accepted)
    assert sorted(names_in(folder / "results")) == sorted(named)
    assert names_in(folder / "inputs") == []
    await store.close()
