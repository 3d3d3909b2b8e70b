"""The operator loads and unloads models on all devices, also on those that are started anew."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from support.asynchronous import run, until
from support.fake_dispatcher import NAME, a_job, served_model

from latentrt.serve.messages import DispatcherOptions, Done, Event, ModelSpec, RefusedError
from latentrt.serve.worker.fleet import Fleet, FleetTicket
from latentrt.serve.worker.inline import InlineWorker
from latentrt.serve.worker.process import Timing, WorkerProcess
from latentrt.serve.worker.wire import ChildConfig
from latentrt.serve.worker.worker import Worker

MODELS = ("shapes", "other", "damaged")
SPECS = tuple(map(ModelSpec, MODELS))


def inline(does: str = "", name: str = "cpu") -> InlineWorker:
    return InlineWorker(SPECS, DispatcherOptions(device=name, loader=does), NAME)


def process(does: str = "") -> WorkerProcess:
    config = ChildConfig(SPECS, DispatcherOptions(device="cpu", loader=does), NAME, 0.1)
    return WorkerProcess(config, Timing(shortest=0.1, longest=0.1))


@asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[Fleet]:
    fleet = Fleet(dict.fromkeys(MODELS, served_model()), workers)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop(0)


async def last(ticket: FleetTicket) -> Event:
    return [event async for event in ticket.events()][-1]


async def reason(work: Awaitable[object]) -> str:
    with pytest.raises(RefusedError) as refused:
        await work
    return refused.value.reason


@pytest.mark.parametrize("make", [inline, process])
def test_unloaded_models_refuse_work_and_draw_what_they_accepted(make: Callable[[str], Worker]) -> None:
    async def test() -> None:
        async with running(make("delay=0.05")) as fleet:
            models = fleet.repository
            ticket = await fleet.submit(a_job("a"))
            models.unload("shapes")
            models.unload("shapes")  # twice is once
            assert models.state("shapes") == "unloading"
            assert await reason(fleet.submit(a_job("b"))) == "unloaded"
            assert (fleet.ready("shapes"), fleet.ready("other"), fleet.ready()) == (False, True, True)
            assert isinstance(await last(ticket), Done)
            await until(lambda: models.state("shapes") == "unloaded")
            assert isinstance(await last(await fleet.submit(replace(a_job("c"), model="other"))), Done)
            await models.load("shapes")
            await models.load("shapes")
            assert models.state("shapes") == "loaded"
            assert fleet.ready("shapes")
            assert isinstance(await last(await fleet.submit(a_job("d"))), Done)

    run(test)


def test_a_server_without_any_model_is_not_ready() -> None:
    async def test() -> None:
        async with running(inline()) as fleet:
            for name in MODELS:
                fleet.repository.unload(name)
            assert not fleet.ready()
            assert fleet.live()

    run(test)


def test_a_model_that_one_device_cannot_load_is_unloaded_everywhere() -> None:
    async def test() -> None:
        workers = inline(name="a"), inline(name="b")
        async with running(*workers) as fleet:
            fleet.repository.unload("damaged")
            await until(lambda: fleet.repository.state("damaged") == "unloaded")
            with pytest.raises(RefusedError, match="damaged cannot be loaded"):
                await fleet.repository.load("damaged")
            assert fleet.repository.state("damaged") == "unloaded"
            for worker in workers:
                job = replace(a_job("a"), model="damaged")
                assert await reason(worker.submit(job, lambda _: None)) == "unloaded"

    run(test)


def test_unloading_while_it_loads_ends_the_wait() -> None:
    async def test() -> None:
        async with running(inline("loading=0.3")) as fleet:
            models = fleet.repository
            models.unload("shapes")
            await until(lambda: models.state("shapes") == "unloaded")
            loading = asyncio.ensure_future(models.load("shapes"))
            await until(lambda: models.state("shapes") == "loading")
            models.unload("shapes")
            assert await reason(loading) == "unloaded"
            await until(lambda: models.state("shapes") == "unloaded")

    run(test)


def test_a_process_that_starts_anew_has_the_models_that_are_wanted() -> None:
    async def test() -> None:
        async with running(worker := process()) as fleet:
            await worker.set_loaded("shapes", False)
            with suppress(RefusedError):  # it may end before it answers
                await fleet.submit(replace(a_job("crash-1"), model="other"))
            await until(lambda: not worker.ready)
            await worker.set_loaded("other", False)  # while it is not there
            await until(lambda: worker.ready)
            for name in ("shapes", "other"):
                job = replace(a_job("a"), model=name)
                assert await reason(worker.submit(job, lambda _: None)) == "unloaded"
            await worker.set_loaded("shapes", True)
            await worker.submit(a_job("b"), lambda _: None)

    run(test)


def test_what_is_unloaded_while_a_process_starts_is_refused_when_it_is_up() -> None:
    async def test() -> None:
        worker = process("loading=0.3")
        start = asyncio.ensure_future(worker.start())
        await until(lambda: worker.pid is not None)
        await worker.set_loaded("shapes", False)
        await start
        assert await reason(worker.submit(a_job("a"), lambda _: None)) == "unloaded"
        await worker.close()

    run(test)
