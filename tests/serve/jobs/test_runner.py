"""A runner with a fake service: order, crashes, refusals, cancelling, stopping, and disks that fail."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.sqlite import SqliteStore, store_in_folder
from latentrt.serve.jobs.store import KeptJob, StorageError
from latentrt.serve.messages import Job, RefusedError

from .fakes import FakeService, job_for, picture_of, shapes_model

MODEL = shapes_model()
QUICK = RunnerOptions(poll=0.05, longest_pause=0.05)


def checked(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test, for at most a minute."""

    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


@asynccontextmanager
async def running(service: FakeService, store: SqliteStore | None = None, options: RunnerOptions = QUICK) -> Any:
    """A runner that is started, and stopped at the end."""
    kept = store or store_in_memory()
    runner = Runner(service, kept, options=options)
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop(5)
        await kept.close()


async def ended(runner: Runner, *names: str) -> list[KeptJob]:
    """The jobs, once they have ended."""
    while True:
        kept = [await runner.store.get(name) for name in names]
        if all(job is not None and job.has_ended for job in kept):
            return [job for job in kept if job is not None]
        await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def make(name: str, prompt: str | None = None, **values: Any) -> Job:
    return job_for(MODEL, name, prompt=prompt or name, **values)


@checked
async def test_jobs_are_drawn_in_order_and_kept() -> None:
    service = FakeService(MODEL)
    async with running(service) as runner:
        jobs = [make(f"job{number}", options={"num_images_per_prompt": 2, "seed": number}) for number in range(6)]
        for job in jobs:
            assert (await runner.accept(job)).state == "waiting"
        for job, kept in zip(jobs, await ended(runner, *(job.id for job in jobs)), strict=True):
            assert (kept.state, kept.attempts, kept.timings) == ("done", 1, {"queue": 1.0, "total": 11.0})
            assert [picture.seed for picture in kept.pictures] == list(job.request.seeds)
            data = [await runner.store.picture(picture) for picture in kept.pictures]
            assert data == [picture_of(job, image) for image in range(2)]
    assert [job.id for job in service.submitted] == [job.id for job in jobs]


@checked
async def test_the_queue_is_bounded_and_a_client_does_not_fill_it() -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    options = RunnerOptions(window=4, client_window=3, poll=0.05)
    async with running(service, options=options) as runner:
        for number in range(6):
            await runner.accept(make(f"a{number}", client="a"))
        await runner.accept(make("b", client="b"))
        await until(lambda: len(service.submitted) >= 4)
        await asyncio.sleep(0.1)
        assert sorted(job.id for job in service.submitted) == ["a0", "a1", "a2", "b"]
        assert service.gate is not None
        service.gate.set()
        await ended(runner, *(f"a{number}" for number in range(6)), "b")
    assert max(map(len, service.beside)) == 3


@checked
async def test_after_a_crash_a_job_is_drawn_alone_and_fails_at_the_third() -> None:
    service = FakeService(MODEL, ends={"once": ["crashed"], "poison": ["crashed"] * 5, "fine": []})
    async with running(service) as runner:
        for name in ("once", "poison", "fine"):
            await runner.accept(make(name))
        once, poison, fine = await ended(runner, "once", "poison", "fine")
    assert (once.state, once.attempts) == ("done", 2)
    assert (fine.state, fine.attempts, fine.alone) == ("done", 1, False)
    assert (poison.state, poison.attempts) == ("failed", 3)
    assert poison.failure is not None
    assert poison.failure.kind == "poison"
    for job, beside in zip(service.submitted, service.beside, strict=True):
        assert not (job.alone and beside)
    assert [job.alone for job in service.submitted if job.id == "poison"] == [False, True, True]


@checked
async def test_other_jobs_wait_for_one_that_is_alone() -> None:
    service = FakeService(MODEL, ends={"once": ["crashed"]}, pause=0.02)
    async with running(service) as runner:
        for name in ("once", *"abcdef"):
            await runner.accept(make(name))
        await until(lambda: any(job.alone for job in service.submitted))
        await runner.accept(make("late"))
        await ended(runner, "once", "late", *"abcdef")
    alone = next(number for number, job in enumerate(service.submitted) if job.alone)
    assert service.beside[alone] == set()
    assert "once" not in set().union(*service.beside[alone + 1 : alone + 2])


@checked
async def test_nothing_is_claimed_while_no_device_is_ready() -> None:
    service = FakeService(MODEL, is_ready=False)
    async with running(service) as runner:
        await runner.accept(make("early"))
        await asyncio.sleep(0.1)
        early = await runner.store.get("early")
        assert early is not None
        assert (early.state, early.number, early.attempts) == ("waiting", 0, 0)
        service.is_ready = True
        (early,) = await ended(runner, "early")
        assert (early.state, early.number) == ("done", 1)


@pytest.mark.parametrize("reason", ["busy", "client_busy", "starting"])
def test_refused_jobs_wait_and_do_not_count(reason: Any) -> None:
    left = {"first": 3, "second": 1}

    def refuse(job: Job) -> None:
        if left.get(job.id):
            left[job.id] -= 1
            raise RefusedError(reason, "not now", 0.01)

    async def check() -> None:
        service = FakeService(MODEL, refuses=refuse)
        async with running(service) as runner:
            for name in ("first", "second", "other"):
                await runner.accept(make(name, client="you" if name == "other" else "me"))
            jobs = await ended(runner, "first", "second", "other")
            assert [(job.state, job.attempts) for job in jobs] == [("done", 1)] * 3
        order = [job.id for job in service.submitted]
        if reason == "starting":
            assert order == ["first", "second", "other"]
        else:
            assert order[0] == "other"

    asyncio.run(check())


@checked
async def test_a_client_that_was_refused_is_tried_again_once_the_devices_have_nothing_to_do() -> None:
    def refuse(job: Job) -> None:
        if job.id == "refused" and service.open:
            raise RefusedError("busy", "too much work waits", 25)

    service = FakeService(MODEL, refuses=refuse, gate=asyncio.Event())
    async with running(service) as runner:
        await runner.accept(make("long", client="you"))
        await until(lambda: "long" in service.open)
        await runner.accept(make("refused"))
        await asyncio.sleep(0.1)
        assert [job.id for job in service.submitted] == ["long"]
        service.gate.set()
        await asyncio.wait_for(ended(runner, "long", "refused"), 5)


@checked
async def test_a_job_whose_process_ends_before_it_answers_is_poison_at_the_third_time() -> None:
    def refuse(job: Job) -> None:
        if job.id == "poison":
            raise RefusedError("crashed", "the process ended", 0.01)

    service = FakeService(MODEL, refuses=refuse)
    async with running(service) as runner:
        for name in ("poison", "fine"):
            await runner.accept(make(name))
        poison, fine = await ended(runner, "poison", "fine")
    assert (poison.state, poison.attempts, poison.failure and poison.failure.kind) == ("failed", 3, "poison")
    assert (fine.state, fine.attempts) == ("done", 1)


@pytest.mark.parametrize(
    ("reason", "after", "kind"),
    [("deadline", None, "deadline"), ("unknown_model", None, "model_changed"), ("busy", None, "input")],
)
def test_refusals_that_last_end_the_job(reason: Any, after: float | None, kind: str) -> None:
    def refuse(_: Job) -> None:
        raise RefusedError(reason, "never", after)

    async def check() -> None:
        async with running(FakeService(MODEL, refuses=refuse)) as runner:
            await runner.accept(make("job"))
            (kept,) = await ended(runner, "job")
            assert kept.failure is not None
            assert (kept.state, kept.failure.kind, kept.failure.message) == ("failed", kind, "never")

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["non_finite", "filtered", "deadline", "out_of_memory", "internal", "stopped"])
def test_failures_end_the_job(kind: Any) -> None:
    async def check() -> None:
        async with running(FakeService(MODEL, ends={"job": [kind]})) as runner:
            await runner.accept(make("job"))
            (kept,) = await ended(runner, "job")
            assert kept.failure is not None
            assert (kept.state, kept.failure.kind) == ("failed", kind)

    asyncio.run(check())


@checked
async def test_a_deadline_is_absolute() -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with running(service, options=RunnerOptions(window=1, poll=0.01)) as runner:
        await runner.accept(make("first"))
        await until(lambda: len(service.submitted) == 1)
        await runner.accept(make("late", deadline=0.1))
        await runner.accept(make("fine", deadline=50.0))
        await asyncio.sleep(0.15)
        assert service.gate is not None
        service.gate.set()
        late, fine = await ended(runner, "late", "fine")
    assert late.failure is not None
    assert (late.state, late.failure.kind, fine.state) == ("failed", "deadline", "done")
    assert [job.id for job in service.submitted] == ["first", "fine"]
    assert 49 < (service.submitted[1].deadline or 0) < 50


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


@checked
async def test_the_outlook_of_a_job() -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with running(service, options=RunnerOptions(window=1, poll=0.01)) as runner:
        first = await runner.accept(make("first"))
        second = await runner.accept(make("second", options={"num_images_per_prompt": 2}))
        third = await runner.accept(make("third"))
        await until(lambda: bool(service.submitted))
        await asyncio.sleep(0.02)
        outlook = await runner.outlook(first)
        assert (outlook.position, 1 < outlook.seconds <= 2) == (0, True)
        assert (await runner.outlook(second)).position == 1  # what waits at the device
        assert (await runner.outlook(third)).position == 3
        assert service.gate is not None
        service.gate.set()
        (kept,) = await ended(runner, "first")
        assert (await runner.outlook(kept)).position is None
        with suppress(TimeoutError):
            await ended(runner, "second", "third")
