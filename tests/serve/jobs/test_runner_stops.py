"""A runner with a fake service: cancelling, stopping, kills, changed models, and disks that fail."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from support.asynchronous import until

from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.jobs.store import StorageError
from latentrt.serve.messages import Job, RefusedError

from .fakes import FakeService, picture_of, shapes_model
from .runners import MODEL, QUICK, checked, ended, make, running


@checked
async def test_cancelled_jobs_stay_cancelled() -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with running(service, options=RunnerOptions(window=1, poll=0.01)) as runner:
        for name in ("running", "waiting", "last"):
            await runner.accept(make(name))
        await until(lambda: len(service.submitted) == 1)
        for name in ("running", "waiting", "running"):
            kept = await runner.cancel(name)
            assert kept is not None
            assert kept.state == "cancelled"
        assert service.gate is not None
        service.gate.set()
        (last,) = await ended(runner, "last")
        assert (last.state, (await runner.cancel("last")).state) == ("done", "done")
        assert await runner.cancel("none") is None
        for kept in await ended(runner, "running", "waiting"):
            assert (kept.state, kept.pictures) == ("cancelled", ())
    assert [job.id for job in service.submitted] == ["running", "last"]


@checked
async def test_a_stop_keeps_jobs_for_the_next_start(tmp_path: Path) -> None:
    service = FakeService(MODEL, gate=asyncio.Event(), ends={"b": ["stopped"]})
    store = store_in_folder(tmp_path)
    runner = Runner(service, store, options=QUICK)
    runner.start()
    for name in "abc":
        await runner.accept(make(name, options={"seed": 3}))
    await until(lambda: len(service.submitted) == 3)
    begin = time.monotonic()
    await runner.stop(0.2)
    assert time.monotonic() - begin < 2
    await store.close()
    store = store_in_folder(tmp_path)
    jobs = [await store.get(name) for name in "abc"]
    assert [(job.state, job.alone, job.attempts) for job in jobs if job is not None] == [("waiting", False, 0)] * 3
    async with running(FakeService(MODEL), store) as again:
        for kept in await ended(again, *"abc"):
            assert kept.state == "done"
            data = await store.picture(kept.pictures[0])
            assert data == picture_of(make(kept.id, options={"seed": 3}), 0)


@checked
async def test_a_stop_of_the_service_does_not_count(tmp_path: Path) -> None:
    service = FakeService(MODEL, ends={"job": ["stopped"]})
    async with running(service, store_in_folder(tmp_path)) as runner:
        await runner.accept(make("job"))
        (kept,) = await ended(runner, "job")
    assert (kept.state, kept.attempts, kept.number, kept.alone) == ("done", 1, 2, False)


@checked
async def test_a_job_that_is_cancelled_while_it_is_submitted_is_not_drawn() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeService):
        async def submit(self, job: Job) -> Any:
            begun.set()
            await go_on.wait()
            self.ticket = await super().submit(job)
            return self.ticket

    service = Slow(MODEL, gate=asyncio.Event())
    async with running(service) as runner:
        await runner.accept(make("job"))
        await begun.wait()
        kept = await runner.cancel("job")
        assert kept is not None
        assert kept.state == "cancelled"
        go_on.set()
        await until(lambda: bool(service.submitted) and not service.open)  # the slot is free, without the gate
        assert service.ticket.cancelled.is_set()
        (kept,) = await ended(runner, "job")
        assert kept.state == "cancelled"


@checked
async def test_a_stop_draws_what_is_only_in_memory() -> None:
    service = FakeService(MODEL, pause=0.01)
    store = store_in_memory()
    runner = Runner(service, store, options=RunnerOptions(window=1, poll=0.01))
    runner.start()
    for name in "abc":
        await runner.accept(make(name))
    await runner.stop(10)
    assert [job.state for job in await store.of_client("me", limit=9)] == ["done"] * 3
    await store.close()


@checked
async def test_jobs_of_a_killed_server_are_drawn_alone(tmp_path: Path) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    store = store_in_folder(tmp_path)
    runner = Runner(service, store, options=RunnerOptions(window=2))
    runner.start()
    for name in "abc":
        await runner.accept(make(name))
    await until(lambda: len(service.submitted) == 2)
    for task in (runner._submits, runner._sweeps, *runner._followers):
        assert task is not None
        task.cancel()
    await store.close()  # as if the process had died: nothing is given back
    store, service = store_in_folder(tmp_path), FakeService(MODEL)
    async with running(service, store) as again:
        jobs = await ended(again, *"abc")
    assert [(job.state, job.attempts, job.alone) for job in jobs] == [
        ("done", 2, True),
        ("done", 2, True),
        ("done", 1, False),
    ]
    assert service.beside[:2] == [set(), set()]


@checked
async def test_a_model_that_has_changed_ends_the_job(tmp_path: Path) -> None:
    store = store_in_folder(tmp_path)
    service = FakeService(MODEL, refuses=lambda _: (_ for _ in ()).throw(RefusedError("starting", "not yet", 9)))
    async with running(service, store) as runner:
        await runner.accept(make("job"))
    async with running(FakeService(shapes_model("other")), store_in_folder(tmp_path)) as runner:
        (kept,) = await ended(runner, "job")
        assert kept.failure is not None
        assert kept.failure.kind == "model_changed"


@checked
async def test_a_picture_that_cannot_be_written_fails_its_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(FakeService(MODEL)) as runner:
        keep = runner.store._jobs.keep_picture

        def failing(claim: Any, picture: Any) -> Any:
            if claim.job == "bad":
                raise OSError(28, "No space left on device")
            return keep(claim, picture)

        monkeypatch.setattr(runner.store._jobs, "keep_picture", failing)
        for name in ("bad", "good"):
            await runner.accept(make(name))
        bad, good = await ended(runner, "bad", "good")
        assert bad.failure is not None
        assert (bad.state, good.state) == ("failed", "done")
        assert "No space left" in bad.failure.message


@checked
async def test_an_end_that_cannot_be_committed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(FakeService(MODEL)) as runner:
        end, left = runner.store.end, [1, 1]

        async def failing(*args: Any, **kwargs: Any) -> bool:
            if left:
                left.pop()
                raise StorageError("the disk is full", full=True)
            return bool(await end(*args, **kwargs))

        monkeypatch.setattr(runner.store, "end", failing)
        await runner.accept(make("job"))
        (kept,) = await ended(runner, "job")
        assert (kept.state, left, len(kept.pictures)) == ("done", [], 1)


@checked
async def test_a_service_that_breaks_fails_the_job_and_not_the_runner() -> None:
    class Broken(FakeService):
        async def submit(self, job: Job) -> Any:
            if job.id == "submit":
                raise KeyError("unexpected")
            ticket = await super().submit(job)
            if job.id == "silent":
                ticket.draws = lambda _: silent()
            if job.id == "raises":
                ticket.draws = lambda _: raises()
            return ticket

    async def silent() -> Any:
        return
        yield

    async def raises() -> Any:
        raise ValueError("unexpected")
        yield

    async with running(Broken(MODEL)) as runner:
        names = ("submit", "silent", "raises", "fine")
        for name in names:
            await runner.accept(make(name))
        jobs = await ended(runner, *names)
        assert [job.state for job in jobs] == ["failed", "failed", "failed", "done"]
        assert {job.failure.kind for job in jobs if job.failure} == {"internal"}
