"""Servers of one store in PostgreSQL, as runners with fake services: who follows, cancels and draws, and partitions."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.asynchronous import until
from support.postgres import Cluster
from support.proxy import Proxy

from latentrt.serve.jobs.events import Entry
from latentrt.serve.jobs.postgres import connections
from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.store import KeptJob, StorageError

from .fakes import FakeService, names_in, picture_of
from .runners import MODEL, checked, ended, make, running

# The store is asked only when something was heard.
SLOW = RunnerOptions(poll=60.0, look=0.02, longest_pause=0.2)
Opens = Callable[..., PostgresStore]
server = partial(running, options=SLOW, patience=2.0)


@pytest.fixture
def opens(postgres: Cluster, tmp_path: Path) -> Opens:
    schema = postgres.schema()

    def open_store(lease: float = 30.0, url: str | None = None) -> PostgresStore:
        return store_in_postgres(url or postgres.url(), tmp_path, schema=schema, lease=lease, files_every=0)

    return open_store


def idle() -> FakeService:
    """A service that draws nothing: its device is not ready."""
    return FakeService(MODEL, is_ready=False)


async def followed(runner: Runner, job: str, last: str | None = None) -> list[Entry]:
    """All events to the end; no heartbeat asks the store."""
    events = runner.logs.follow(job, runner.store.get, last=last, heartbeat=60)
    return [entry async for entry in events if entry is not None]


def following(runner: Runner, job: str) -> "asyncio.Task[list[Entry]]":
    return asyncio.create_task(followed(runner, job))


def listening(runner: Runner) -> set[int]:
    """The processes of the database that a server listens to."""
    lines = list(runner.store._jobs._connections._lines)
    return {line.connection.info.backend_pid for line in lines if line.listens and not line.connection.closed}


async def eventually(condition: Callable[[], Awaitable[Any]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


@checked
async def test_a_job_is_drawn_by_the_server_that_is_free_and_followed_at_another(opens: Opens) -> None:
    service = FakeService(MODEL, pause=0.3, is_ready=False)
    async with server(idle(), opens()) as front, server(service, opens()) as worker:
        await front.accept(make("job", options={"seed": 5}))
        follows = following(front, "job")
        await until(lambda: (log := front.logs.find("job")) is not None and log.after(None))
        service.is_ready = True
        events = await asyncio.wait_for(follows, 20)
        kept = await front.store.get("job")
        assert kept is not None
        assert [entry.name for entry in events if entry.name != "progress"] == ["state", "state", "picture", "done"]
        assert [entry.data["status"] for entry in events if entry.name == "state"] == ["waiting", "running"]
        calls = [entry.data["call"] for entry in events if entry.name == "progress"]
        assert calls
        assert set(calls) <= {1, 2}
        assert calls == sorted(calls)
        assert await front.store.picture(kept.pictures[0]) == picture_of(make("job", options={"seed": 5}), 0)
        # Goes on after the last event that a reader has, and from the beginning with one of another server.
        assert [entry.name for entry in await followed(front, "job", "0123-2")] == ["picture", "done"]
        assert await followed(worker, "job", events[-1].id) == []
        assert front.is_started(kept) is False


@checked
async def test_a_job_that_another_server_draws_has_a_place(opens: Opens) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with server(idle(), opens()) as front, server(service, opens()):
        await front.accept(make("job"))
        await until(lambda: service.submitted)
        kept = await front.store.get("job")
        assert kept is not None
        assert front.is_started(kept)
        outlook = await front.outlook(kept)
        assert (outlook.position, outlook.seconds) == (0, None)
        assert service.gate is not None
        service.gate.set()
        await ended(front, "job")


@pytest.mark.parametrize("hears", [True, False], ids=["notify", "beat"])
def test_a_job_is_cancelled_at_the_server_that_draws_it(opens: Opens, hears: bool) -> None:
    @checked
    async def check() -> None:
        service = FakeService(MODEL, gate=asyncio.Event())
        async with server(idle(), opens()) as front, server(service, opens()) as worker:
            await front.accept(make("job"))
            await until(lambda: service.submitted)
            if not hears:
                worker.store._beats._heard = lambda _: None
            events = following(worker, "job")
            kept = await front.cancel("job")
            assert kept is not None
            assert kept.state == "cancelled"
            await until(lambda: not service.open)
            assert [entry.name for entry in await asyncio.wait_for(events, 20)][-1] == "cancelled"
            await until(lambda: not worker._under_way)

    check()


@checked
async def test_listening_begins_again_when_its_connection_is_lost(opens: Opens, postgres: Cluster) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with server(idle(), opens()) as front, server(service, opens()):
        await front.accept(make("job"))
        await until(lambda: service.submitted)
        events = following(front, "job")
        await until(lambda: front.logs.find("job") is not None)
        (backend,) = listening(front)
        postgres.run(f"SELECT pg_terminate_backend({backend})")
        assert service.gate is not None
        service.gate.set()
        assert [entry.name for entry in await asyncio.wait_for(events, 20)][-1] == "done"
        await until(lambda: listening(front) - {backend})


@checked
async def test_a_restart_of_the_database_loses_nothing(opens: Opens, postgres: Cluster) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with server(idle(), opens()) as front, server(service, opens()) as worker:
        for name in ("first", "second"):
            await front.accept(make(name))
        await until(lambda: len(service.submitted) == 2)
        events = following(front, "first")
        await asyncio.to_thread(postgres.stop)
        with pytest.raises(StorageError, match="cannot be used now"):
            await front.store.get("first")
        with pytest.raises(StorageError):
            await front.accept(make("third"))
        assert service.gate is not None
        service.gate.set()
        await until(lambda: all(drawing.pictures for drawing in worker._under_way.values()))  # and not committed
        await asyncio.to_thread(postgres.start)
        for kept in await asyncio.wait_for(ended_when_back(worker, "first", "second"), 20):
            assert (kept.state, kept.number, kept.attempts) == ("done", 1, 1)
        assert [entry.name for entry in await asyncio.wait_for(events, 20)][-1] == "done"
        await eventually(lambda: works(front))


async def works(runner: Runner) -> bool:
    try:
        return await runner.store.get("first") is not None
    except StorageError:
        return False


async def ended_when_back(runner: Runner, *names: str) -> list[Any]:
    while True:
        try:
            return await ended(runner, *names)
        except StorageError:
            await asyncio.sleep(0.05)


@checked
async def test_a_partition_may_draw_twice_and_commits_once(
    opens: Opens, postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "OPERATION_SECONDS", 1.0)
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 1.0)
    cut_off = FakeService(MODEL, gate=asyncio.Event())
    other = FakeService(MODEL, is_ready=False)
    with Proxy(postgres.socket) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?connect_timeout=2"
        async with server(cut_off, opens(1.0, url)) as first, server(other, opens(1.0)) as second:
            await first.accept(make("job", options={"seed": 5}))
            await until(lambda: cut_off.submitted)
            proxy.stall()
            other.is_ready = True
            (kept,) = await asyncio.wait_for(ended(second, "job"), 20)
            assert (kept.state, kept.number, kept.attempts, kept.alone) == ("done", 2, 2, True)
            assert cut_off.gate is not None
            cut_off.gate.set()
            await until(lambda: first._under_way["job"].pictures)
            with pytest.raises(StorageError):
                await first.store.get("job")
            assert len(cut_off.submitted) == len(other.submitted) == 1
            proxy.go_on()
            await until(lambda: not first._under_way)  # it has seen that it is too late
            assert await second.store.get("job") == kept
            events = [entry.name for entry in await asyncio.wait_for(following(first, "job"), 20)]
            assert events[-2:] == ["picture", "done"]
            await second.store.sweep()
            assert names_in(tmp_path / "results") == [kept.pictures[0].name]
            assert kept.pictures[0].name.startswith("job-2-")


@checked
async def test_only_what_is_newer_than_a_claim_ends_its_drawing(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with server(service, opens()) as runner:
        await runner.accept(make("job"))
        await until(lambda: service.submitted)
        get, read = runner.store.get, asyncio.Event()
        now = await get("job")
        old = replace(now, number=now.number - 1, state="waiting")
        for seen in (old, replace(old, state="running"), now):

            async def stale(_: str, seen: KeptJob = seen) -> KeptJob:
                read.set()
                return seen

            read.clear()
            monkeypatch.setattr(runner.store, "get", stale)
            runner.changed("job")
            await read.wait()
            await until(lambda: not runner._looks)
            assert service.open == {"job"}
            assert not runner._under_way["job"].ticket.cancelled.is_set()
        for lost in (None, replace(now, state="waiting"), replace(now, number=now.number + 1)):
            assert runner._under_way["job"].has_lost(lost)
        monkeypatch.setattr(runner.store, "get", get)
        assert service.gate is not None
        service.gate.set()
        (kept,) = await ended(runner, "job")
        assert kept.state == "done"


@checked
async def test_a_change_while_a_job_is_looked_at_is_not_missed(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(idle(), opens()) as front:
        await front.accept(make("job"))
        events = following(front, "job")
        await until(lambda: (log := front.logs.find("job")) is not None and log.after(None))
        get, asked, answers = front.store.get, asyncio.Event(), asyncio.Event()

        async def slow(job: str) -> KeptJob | None:
            kept = await get(job)
            asked.set()
            await answers.wait()
            return kept

        monkeypatch.setattr(front.store, "get", slow)
        front.changed("job")
        await asked.wait()
        await front.store.cancel("job")  # after the first look has read the job
        front.changed("job")
        answers.set()
        assert [entry.name for entry in await asyncio.wait_for(events, 20)] == ["state", "cancelled"]


@checked
async def test_a_server_may_claim_again_what_it_has_lost_and_still_draws(opens: Opens) -> None:
    service = FakeService(MODEL, gate=asyncio.Event())
    async with server(service, opens()) as runner:
        await runner.accept(make("job"))
        await until(lambda: service.submitted)
        claim = runner._under_way["job"].kept.claim
        assert await runner.store.give_back(claim, counted=True)  # as another server does with an expired lease
        runner.waits()
        await until(lambda: len(service.submitted) == 2)
        assert service.gate is not None
        service.gate.set()
        (kept,) = await ended(runner, "job")
        assert (kept.state, kept.number) == ("done", 2)
        assert service.beside == [set(), set()]  # the first was over before the second began
