"""The fleet places work on the device with the least, and stops it; streams are bounded. All in this process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from support.asynchronous import run
from support.fake_dispatcher import NAME, a_job, served_model

from latentrt.runtime.errors import BundleError
from latentrt.serve.messages import (
    DispatcherOptions,
    Done,
    Event,
    Failed,
    Job,
    ModelSpec,
    Picture,
    Preview,
    Previews,
    Progress,
    RefusedError,
    Started,
)
from latentrt.serve.service import Service
from latentrt.serve.worker.fleet import Fleet, FleetTicket
from latentrt.serve.worker.inline import InlineWorker
from latentrt.serve.worker.stream import EventStream


def inline(
    does: str = "", name: str = "cpu", *, max_queue: int = 1000, models: Sequence[str] = ("shapes",)
) -> InlineWorker:
    options = DispatcherOptions(device=name, loader=does, max_queue=max_queue)
    return InlineWorker([ModelSpec(model) for model in models], options, NAME)


@asynccontextmanager
async def running(*workers: InlineWorker, client_jobs: int = 1000) -> AsyncIterator[Fleet]:
    fleet = Fleet({"shapes": served_model()}, workers, client_jobs=client_jobs)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop(0)


async def all_of(ticket: FleetTicket) -> list[Event]:
    return [event async for event in ticket.events()]


def devices(fleet: Fleet) -> list[int]:
    """How many images each device has now."""
    return [load.waiting + load.running for load in fleet.loads()]


def test_a_fleet_is_a_service() -> None:
    async def test() -> None:
        async with running(inline()) as fleet:
            service: Service = fleet
            assert service.ready()
            assert service.ready("shapes")
            assert not service.ready("other")
            assert service.live()
            assert list(service.models) == ["shapes"]
            ticket = await service.submit(a_job("a", images=2, steps=2))
            assert ticket.job.id == "a"
            assert ticket.admitted.position == 0
            events = [event async for event in ticket.events()]
            assert isinstance(events[0], Started)
            assert sum(isinstance(event, Picture) for event in events) == 2
            assert isinstance(events[-1], Done)
            assert fleet.accepted == 0
            with pytest.raises(RefusedError) as refused:
                await service.submit(replace(a_job("b"), model="other"))
            assert refused.value.reason == "unknown_model"

    run(test)


def test_work_goes_where_least_is() -> None:
    async def test() -> None:
        slow = "delay=5"
        async with running(inline(slow, "a"), inline(slow, "b")) as fleet:
            await fleet.submit(a_job("large", images=8))
            for number in range(8):
                await fleet.submit(a_job(f"small-{number}"))
            assert sorted(devices(fleet)) == [8, 8]
            await fleet.submit(a_job("long", steps=40))
            for number in range(9):  # as much as the long one
                await fleet.submit(a_job(f"more-{number}"))
            assert sorted(devices(fleet)) == [9, 17]

    run(test)


def test_jobs_that_are_submitted_at_once_are_spread() -> None:
    async def test() -> None:
        async with running(inline("delay=5", "a"), inline("delay=5", "b")) as fleet:
            await asyncio.gather(*(fleet.submit(a_job(str(number))) for number in range(20)))
            assert devices(fleet) == [10, 10]

    run(test)


def test_a_faster_device_gets_more() -> None:
    async def test() -> None:
        async with running(inline("delay=5 work=75", "slow"), inline("delay=5 work=25", "fast")) as fleet:
            for number in range(40):
                await fleet.submit(a_job(str(number)))
            slow, fast = [load.work for load in fleet.loads()]
            assert abs(slow - fast) <= 300
            assert slow + fast == 10 * 300 + 30 * 100

    run(test)


def test_what_one_device_refuses_as_busy_another_may_take() -> None:
    async def test() -> None:
        async with running(inline("delay=5", "a", max_queue=1), inline("delay=5", "b", max_queue=3)) as fleet:
            for number in range(4):
                await fleet.submit(a_job(str(number)))
            assert devices(fleet) == [1, 3]
            with pytest.raises(RefusedError) as refused:
                await fleet.submit(a_job("5"))
            assert (refused.value.reason, refused.value.retry_after) == ("busy", 7.0)
            assert fleet.accepted == 4

    run(test)


def test_a_job_goes_to_a_device_that_is_ready() -> None:
    async def test() -> None:
        async with running(inline("", "a"), inline("", "b")) as fleet:
            with suppress(RefusedError):
                await fleet.submit(a_job("break-1"))
            while fleet.live():
                await asyncio.sleep(0.01)
            assert fleet.ready()  # the other one is
            assert [load.ready for load in fleet.loads()] == [False, True]
            for number in range(5):
                assert isinstance((await all_of(await fleet.submit(a_job(str(number)))))[-1], Done)

    run(test)


def test_a_client_has_a_limit_over_all_devices() -> None:
    async def test() -> None:
        async with running(inline("delay=5", "a"), inline("delay=5", "b"), client_jobs=3) as fleet:
            many = [fleet.submit(a_job(str(number), client="one")) for number in range(10)]
            answers = await asyncio.gather(*many, return_exceptions=True)
            assert sum(isinstance(answer, FleetTicket) for answer in answers) == 3
            reasons = {answer.reason for answer in answers if isinstance(answer, RefusedError)}
            assert reasons == {"client_busy"}
            await fleet.submit(a_job("other", client="other"))

    run(test)


def test_before_it_is_loaded_work_is_refused() -> None:
    async def test() -> None:
        fleet = Fleet({"shapes": served_model()}, [inline("loading=0.2")])
        starting = asyncio.create_task(fleet.start())
        await asyncio.sleep(0.02)
        assert not fleet.ready()
        assert fleet.live()
        with pytest.raises(RefusedError) as refused:
            await fleet.submit(a_job("a"))
        assert refused.value.reason == "starting"
        assert refused.value.retry_after
        await starting
        assert fleet.ready()
        await fleet.stop(0)

    run(test)


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    async def test() -> None:
        fleet = Fleet({"shapes": served_model()}, [inline(), inline(models=["unloadable"])])
        with pytest.raises(BundleError, match="no bundle"):
            await fleet.start()
        await fleet.stop(0)

    run(test)


def test_cancelling_frees_the_client() -> None:
    async def test() -> None:
        async with running(inline("delay=0.01"), client_jobs=1) as fleet:
            ticket = await fleet.submit(a_job("a", steps=100))
            ticket.cancel()
            assert (await all_of(ticket))[-1] == Failed("a", "cancelled", "cancelled")
            await fleet.submit(a_job("b"))

    run(test)


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async def test() -> None:
        async with running(inline("delay=0.005", "a"), inline("delay=0.005", "b")) as fleet:
            tickets = [await fleet.submit(a_job(str(number))) for number in range(20)]
            stopping = asyncio.create_task(fleet.stop(20))
            await asyncio.sleep(0)
            assert not fleet.ready()
            assert fleet.live()
            with pytest.raises(RefusedError) as refused:
                await fleet.submit(a_job("late"))
            assert refused.value.reason == "stopping"
            assert refused.value.retry_after
            assert await stopping == 0
            for ticket in tickets:
                assert isinstance((await all_of(ticket))[-1], Done)

    run(test)


def test_kept_work_may_start_while_the_rest_is_refused() -> None:
    async def test() -> None:
        async with running(inline("delay=0.005")) as fleet:
            kept: Service = fleet.for_accepted_work
            fleet.refuse()
            assert not kept.ready()
            ticket = await kept.submit(a_job("kept"))
            assert [event async for event in ticket.events()][-1] == Done("kept", {"total": 1.0})
            await fleet.stop(1)
            with pytest.raises(RefusedError):
                await kept.submit(a_job("late"))

    run(test)


def test_stopping_fails_what_takes_too_long() -> None:
    async def test() -> None:
        async with running(inline("delay=0.02")) as fleet:
            first, second = [await fleet.submit(a_job(name, steps=steps)) for name, steps in (("a", 3), ("b", 100))]
            assert await fleet.stop(0.5) == 1
            assert isinstance((await all_of(first))[-1], Done)
            last = (await all_of(second))[-1]
            assert isinstance(last, Failed)
            assert last.kind == "stopped"

    run(test)


def job_with_previews(name: str) -> Job:
    return a_job(name, images=3, steps=50, previews=Previews())


def test_a_slow_reader_loses_only_previews_and_progress() -> None:
    async def test() -> None:
        async with running(inline()) as fleet:
            ticket = await fleet.submit(job_with_previews("a"))
            await fleet._idle.wait()
            await asyncio.sleep(0)
            events = await all_of(ticket)
            assert len(events) == 1 + 3 + 3 + 3 + 1
            assert isinstance(events[0], Started)
            assert [event.call for event in events if isinstance(event, Progress)] == [50] * 3
            assert sorted(event.image for event in events if isinstance(event, Preview)) == [0, 1, 2]
            assert all(event.index == 50 for event in events if isinstance(event, Preview))
            assert [event.image for event in events if isinstance(event, Picture)] == [0, 1, 2]
            assert isinstance(events[-1], Done)

    run(test)


def test_a_quick_reader_sees_everything() -> None:
    """One that has read each event before the next one comes."""

    async def test() -> None:
        stream = EventStream()
        reader = stream.read()
        for call in range(1, 51):
            stream.put(Progress("a", 1, call, 50))
            assert await anext(reader) == Progress("a", 1, call, 50)

    run(test)


def test_a_stream_keeps_the_order_and_ends_once() -> None:
    async def test() -> None:
        stream = EventStream()
        picture = Picture("a", 0, 1, 8, 8, b"", "png")
        for event in (Progress("a", 0, 1, 9), picture, Progress("a", 0, 2, 9), Done("a", {}), picture, Done("a", {})):
            stream.put(event)
        assert stream.ended
        found = [event async for event in stream.read()]
        assert found == [picture, Progress("a", 0, 2, 9), Done("a", {})]

    run(test)


def test_every_event_is_told_once_even_where_the_reader_is_slow() -> None:
    async def test() -> None:
        told: list[tuple[str, Event]] = []
        fleet = Fleet(
            {"shapes": served_model()},
            [inline("delay=0.01")],
            happened=lambda model, event: told.append((model, event)),
        )
        await fleet.start()
        await fleet.submit(a_job("a", steps=5))
        await fleet._idle.wait()
        assert {model for model, _ in told} == {"shapes"}
        assert [type(event) for _, event in told] == [Started, *[Progress] * 5, Picture, Done]
        await fleet.submit(a_job("b", steps=100))
        await fleet.stop(0)
        ends = [event for _, event in told if isinstance(event, Failed) and event.job == "b"]
        assert [event.kind for event in ends] == ["stopped"]

    run(test)
