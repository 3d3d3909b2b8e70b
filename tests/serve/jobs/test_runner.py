"""A runner with a fake service: order, crashes, refusals, failures, and what it says of the time to come."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from support.asynchronous import until

from latentrt.serve.jobs.runner import RunnerOptions
from latentrt.serve.messages import Job, RefusedError

from .fakes import FakeService, picture_of
from .runners import MODEL, checked, ended, make, running


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


@pytest.mark.parametrize("reason", ["busy", "client_busy", "starting", "unloaded"])
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
    async with running(service, options=RunnerOptions(poll=0.05)) as runner:
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
