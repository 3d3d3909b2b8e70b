"""The service of an ingress, over a replica in this process: no Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from support.asynchronous import run, until
from support.fake_dispatcher import a_job, served_model
from support.local_engines import LocalEngines, engine, of_request

from latentrt.serve.messages import Done, Event, Failed, Picture, Previews, Progress, RefusedError, Started
from latentrt.serve.ray import handle_service
from latentrt.serve.ray.engine import DeviceLostError
from latentrt.serve.ray.engines import LostError
from latentrt.serve.ray.handle_service import HandleService, HandleTicket, ServiceLimits
from latentrt.serve.service import Service

Running = tuple[HandleService, LocalEngines]


@asynccontextmanager
async def running(does: str = "", *, max_queue: int = 1000, **limits: Any) -> AsyncIterator[Running]:
    engines = LocalEngines(engine(does, max_queue=max_queue))
    await engines.loads()
    service = HandleService({"shapes": served_model()}, engines, ServiceLimits(**limits))
    watching = asyncio.create_task(service.watch())
    try:
        yield service, engines
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def all_of(ticket: HandleTicket) -> list[Event]:
    return [event async for event in ticket.events()]


def test_a_handle_service_is_a_service() -> None:
    async def test() -> None:
        async with running() as (service, _):
            as_service: Service = service
            assert list(as_service.models) == ["shapes"]
            assert as_service.live()

    run(test)


def test_events_come_in_their_order_and_end() -> None:
    async def test() -> None:
        async with running("delay=0.02") as (service, _):
            ticket = await service.submit(a_job("1", images=2, previews=Previews("rgb")))
            assert ticket.admitted.position == 0
            events = await all_of(ticket)
            assert isinstance(events[0], Started)
            assert isinstance(events[-1], Done)
            assert [event.image for event in events if isinstance(event, Picture)] == [0, 1]
            assert [e for e in events if isinstance(e, Progress)][-1].call == 4

    run(test)


def test_a_replica_sends_seldom_and_the_newest() -> None:
    """A thousand quick calls are a few messages."""

    async def test() -> None:
        async with running() as (service, engines):
            ticket = await service.submit(a_job("1", images=8, steps=100))
            events = await all_of(ticket)
            assert sum(isinstance(event, Picture) for event in events) == 8
            assert engines.draws[0].sent < 20

    run(test)


def test_cancel_reaches_the_device_and_ends_the_events() -> None:
    async def test() -> None:
        async with running("delay=0.02") as (service, engines):
            ticket = await service.submit(a_job("1", steps=100))
            ticket.cancel()
            ticket.cancel()
            assert [event.kind for event in await all_of(ticket) if isinstance(event, Failed)] == ["cancelled"]
            await until(lambda: engines.engine.load().waiting == 0)

    run(test)


def test_a_client_that_leaves_while_its_job_waits_for_a_replica_cancels_it() -> None:
    async def test() -> None:
        async with running() as (service, engines):
            engines.room.clear()
            submit = asyncio.create_task(service.submit(a_job("1")))
            await until(lambda: engines.draws)
            submit.cancel()
            await asyncio.wait({submit})
            assert engines.draws[0].cancelled
            engines.room.set()
            again = await service.submit(a_job("1"))
            assert isinstance((await all_of(again))[-1], Done)

    run(test)


def test_refusals_of_the_device_are_those_of_the_service() -> None:
    async def test() -> None:
        async with running() as (service, _):
            with pytest.raises(RefusedError) as caught:
                await service.submit(a_job("busy-1"))
            assert (caught.value.reason, caught.value.retry_after) == ("busy", 7.0)
            await all_of(await service.submit(a_job("1")))

    run(test)


def test_jobs_of_a_client_and_those_that_wait_are_bounded() -> None:
    async def test() -> None:
        async with running("delay=0.02", client_jobs=2, waiting=3) as (service, engines):
            first = await service.submit(a_job("1", client="a", steps=100))
            second = await service.submit(a_job("2", client="a", steps=100))
            with pytest.raises(RefusedError) as caught:
                await service.submit(a_job("3", client="a"))
            assert caught.value.reason == "client_busy"
            engines.room.clear()
            waiting = [asyncio.create_task(service.submit(a_job(name, client=name))) for name in "bcd"]
            await until(lambda: len(engines.draws) == 5)
            with pytest.raises(RefusedError) as caught:
                await service.submit(a_job("e", client="e"))
            assert caught.value.reason == "busy"
            assert caught.value.retry_after is not None
            assert caught.value.retry_after >= 1
            for ticket in (first, second):
                ticket.cancel()
            engines.room.set()
            assert len(await asyncio.gather(*waiting)) == 3

    run(test)


@pytest.mark.parametrize(("gone", "reason"), [(False, "busy"), (True, "starting")])
def test_a_job_that_no_replica_takes_in_time_is_refused(gone: bool, reason: str) -> None:
    async def test() -> None:
        async with running(patience=0.05) as (service, engines):
            engines.room.clear()
            engines.gone = gone
            with pytest.raises(RefusedError) as caught:
                await service.submit(a_job("1"))
            assert caught.value.reason == reason
            assert engines.draws[0].cancelled

    run(test)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LostError("ActorDiedError"), "crashed"),
        (RuntimeError("a bug"), "internal"),
        (asyncio.CancelledError(), "crashed"),
    ],
)
def test_a_replica_that_ends_fails_its_jobs(error: BaseException, kind: str) -> None:
    async def test() -> None:
        async with running("delay=0.05") as (service, engines):
            ticket = await service.submit(a_job("1", steps=100))
            engines.draws[0].lose(error)
            end = (await all_of(ticket))[-1]
            assert isinstance(end, Failed)
            assert end.kind == kind

    run(test)


def test_a_replica_that_ends_before_it_answers_refuses_as_crashed() -> None:
    async def test() -> None:
        async with running() as (service, engines):
            engines.room.clear()
            submit = asyncio.create_task(service.submit(a_job("1")))
            await until(lambda: engines.draws)
            engines.draws[0].lose(LostError("ActorDiedError"))
            with pytest.raises(RefusedError) as caught:
                await submit
            assert caught.value.reason == "crashed"
            assert caught.value.retry_after is not None

    run(test)


def test_a_job_goes_on_where_the_request_that_began_it_is_cancelled_by_others() -> None:
    """Ray cancels what the context of a request has called; the job's reader is in a context of its own."""

    async def test() -> None:
        async with running("delay=0.01") as (service, engines):
            tickets: list[HandleTicket] = []
            of_request.set("a request")

            async def request() -> None:
                tickets.append(await service.submit(a_job("1", steps=20)))
                await asyncio.sleep(60)

            began = asyncio.create_task(request())
            await until(lambda: tickets)
            began.cancel()
            assert isinstance((await all_of(tickets[0]))[-1], Done)
            assert engines.contexts == [None]

    run(test)


def test_loads_are_those_of_a_moment_ago_until_they_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_service, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(handle_service, "LOOK_SOON", 0.01)
    monkeypatch.setattr(handle_service, "STALE", 0.2)

    async def test() -> None:
        async with running() as (service, engines):
            assert not service.ready()
            await until(service.ready)
            assert (service.ready("shapes"), service.ready("sd3")) == (True, False)
            assert [load.device for load in service.loads()] == ["cpu"]
            engines.gone = True
            await until(lambda: not service.ready())
            assert service.loads() == []
            engines.gone = False
            await until(service.ready)

    run(test)


def test_with_no_replica_at_least_it_is_ready_without_one() -> None:
    async def test() -> None:
        async with running(to_zero=True) as (service, engines):
            engines.gone = True
            assert service.ready()

    run(test)


def test_unknown_models_are_refused() -> None:
    async def test() -> None:
        async with running() as (service, engines):
            job = a_job("1")
            service.models.pop("shapes")  # type: ignore[attr-defined]
            with pytest.raises(RefusedError) as caught:
                await service.submit(job)
            assert caught.value.reason == "unknown_model"
            assert not engines.draws

    run(test)


@pytest.mark.parametrize("job", ["hang-1", "break-1"])
def test_the_health_check_fails_where_the_device_is_gone(job: str) -> None:
    async def test() -> None:
        async with running() as (service, engines):
            engines.engine.check()
            await service.submit(a_job(job))
            await until(lambda: not engines.engine.load().ready)
            with pytest.raises(DeviceLostError):
                engines.engine.check()

    run(test)
