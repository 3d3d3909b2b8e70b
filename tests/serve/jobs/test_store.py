"""Stores keep what they promise: any order of operations against a model, bounds, expiry, and damaged folders."""

import asyncio
import errno
import hashlib
import itertools
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.exports import ROOT

from latentrt.runtime import files as runtime_files
from latentrt.serve.jobs import files as job_files
from latentrt.serve.jobs.kept_jobs import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.sqlite import SqliteStore, store_in_folder
from latentrt.serve.jobs.store import (
    MAX_ATTEMPTS,
    Claim,
    Failure,
    FullError,
    KeptJob,
    KeptPicture,
    NewJob,
    StateError,
    StorageError,
)
from latentrt.serve.messages import Picture, RefusedError

from .fakes import names_in

TTL = 100.0
INPUTS = [b"first", b"second", b"third"]


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def new_job(name: str, **changes: Any) -> NewJob:
    return replace(NewJob(name, "me", "sd", '{"a": 1}', 1, 1000), **changes)


def picture(job: str, image: int = 0, data: bytes = b"png") -> Picture:
    return Picture(job, image, 7, 8, 8, data, "png")


Open = Callable[..., SqliteStore]


@pytest.fixture(params=["memory", "folder"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens a store of either kind; closes it at the end."""
    stores: list[SqliteStore] = []

    def open_store(**bounds: Any) -> SqliteStore:
        kept, clock = Bounds(**{"result_ttl": TTL, **bounds}), Clock()
        is_memory = request.param == "memory"
        store = store_in_memory(kept, clock=clock) if is_memory else store_in_folder(tmp_path, kept, clock=clock)
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        asyncio.run(store.close())


def clock_of(store: SqliteStore) -> Clock:
    clock = store._jobs._clock
    assert isinstance(clock, Clock)
    return clock


async def drawn(store: SqliteStore, name: str, **changes: Any) -> KeptPicture:
    """A job that has been drawn."""
    await store.add(new_job(name, **changes))
    kept = await store.claim(alone=True)
    assert kept is not None
    assert kept.id == name
    result = await store.keep_picture(kept.claim, picture(name))
    assert await store.end(kept.claim, "done", pictures=[result], timings={"total": 5.0})
    return result


# --- any order of operations


class StoreMachine(RuleBasedStateMachine):
    """A store against a plain model of it; a folder is closed and opened, cleanly and not, in between."""

    folder: tempfile.TemporaryDirectory[str] | None = None

    @initialize(durable=st.booleans())
    def begin(self, durable: bool) -> None:
        self.loop, self.clock, self.ids = asyncio.new_event_loop(), Clock(), itertools.count()
        self.folder = tempfile.TemporaryDirectory() if durable else None
        self.jobs: dict[str, dict[str, Any]] = {}
        self.claims: list[Claim] = []
        self.store = self.open()

    def open(self) -> SqliteStore:
        bounds = Bounds(result_ttl=TTL)
        if self.folder is None:
            return store_in_memory(bounds, clock=self.clock)
        return store_in_folder(Path(self.folder.name), bounds, clock=self.clock)

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def held(self, claim: Claim) -> bool:
        job = self.jobs.get(claim.job)
        return job is not None and job["state"] == "running" and job["number"] == claim.number

    def end(self, name: str, state: str, pictures: int = 0) -> None:
        self.jobs[name] |= {"state": state, "inputs": [], "expires": self.clock.now + TTL, "pictures": pictures}

    @rule(
        client=st.sampled_from("ab"),
        priority=st.sampled_from(["interactive", "batch"]),
        inputs=st.lists(st.sampled_from(INPUTS), unique=True, max_size=2),
        deadline=st.none() | st.integers(1, 150),
    )
    def add(self, client: str, priority: Any, inputs: list[bytes], deadline: int | None) -> None:
        name = f"job{next(self.ids)}"
        until = None if deadline is None else self.clock.now + deadline
        given = {sha256(data): data for data in inputs}
        job = new_job(name, client=client, priority=priority, inputs=given, deadline=until)
        assert self.run(self.store.add(job)).state == "waiting"
        facts = {"client": client, "priority": priority, "inputs": inputs, "deadline": until}
        self.jobs[name] = {**facts, "state": "waiting", "number": 0, "attempts": 0, "alone": False, "pictures": 0}

    def order(self, without: set[str]) -> list[str]:
        waiting = [n for n, job in self.jobs.items() if job["state"] == "waiting" and job["client"] not in without]
        return sorted(waiting, key=lambda name: self.jobs[name]["priority"] == "batch")

    @rule(alone=st.booleans(), without=st.sets(st.sampled_from("ab"), max_size=1))
    def claim(self, alone: bool, without: set[str]) -> None:
        first = next(iter(self.order(without)), None)
        expected = None if first is None or (self.jobs[first]["alone"] and not alone) else first
        kept: KeptJob | None = self.run(self.store.claim(alone=alone, without=without))
        assert (None if kept is None else kept.id) == expected
        if kept is not None:
            job = self.jobs[kept.id]
            job |= {"state": "running", "number": job["number"] + 1, "attempts": job["attempts"] + 1}
            assert (kept.number, kept.attempts, kept.alone) == (job["number"], job["attempts"], job["alone"])
            self.claims.append(kept.claim)
            for data in job["inputs"]:
                assert self.run(self.store.input(sha256(data))) == data

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), counted=st.booleans(), alone=st.booleans())
    def give_back(self, data: st.DataObject, counted: bool, alone: bool) -> None:
        claim, held = data.draw(st.sampled_from(self.claims)), None
        held = self.held(claim)
        assert self.run(self.store.give_back(claim, counted=counted, alone=alone)) == held
        if held:
            job = self.jobs[claim.job]
            job |= {"state": "waiting", "attempts": job["attempts"] - (not counted), "alone": job["alone"] or alone}

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(["done", "failed"]))
    def finish(self, data: st.DataObject, state: Any) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        held = self.held(claim)
        content = f"{claim.job} {claim.number}".encode()
        result = self.run(self.store.keep_picture(claim, picture(claim.job, data=content)))
        failure = None if state == "done" else Failure("internal", "no \ud800 luck", 0)
        assert self.run(self.store.end(claim, state, pictures=[result], failure=failure)) == held
        if held:
            self.end(claim.job, state, claim.number)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        kept = self.run(self.store.cancel(name))
        if self.jobs[name]["state"] in ("waiting", "running"):
            self.end(name, "cancelled")
        assert kept.state == self.jobs[name]["state"]

    @rule(seconds=st.sampled_from([1, 30, 60, 110]))
    def sweep(self, seconds: float) -> None:
        self.clock.now += seconds
        self.run(self.store.sweep())
        self.expire()

    def expire(self) -> None:
        for name, job in list(self.jobs.items()):
            if job["state"] == "waiting" and job["deadline"] is not None and job["deadline"] <= self.clock.now:
                self.end(name, "failed")
            if job.get("expires", 1e9) <= self.clock.now:
                job["pictures"] = 0
            if job.get("expires", 1e9) + TTL <= self.clock.now:
                del self.jobs[name]

    @precondition(lambda self: self.folder is not None)
    @rule()
    def restart(self) -> None:
        self.run(self.store.close())
        self.store = self.open()
        for name, job in self.jobs.items():
            if job["state"] == "running" and job["attempts"] >= MAX_ATTEMPTS:
                self.end(name, "failed")
            elif job["state"] == "running":
                job |= {"state": "waiting", "alone": True}
        self.expire()

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        if not hasattr(self, "jobs"):
            return
        for name, job in self.jobs.items():
            kept = self.run(self.store.get(name))
            assert (kept.state, kept.number, kept.attempts) == (job["state"], job["number"], job["attempts"])
            assert [self.run(self.store.picture(p)) for p in kept.pictures] == (
                [f"{name} {job['pictures']}".encode()] if job["pictures"] else []
            )
        for client in "ab":
            names = [kept.id for kept in self.run(self.store.of_client(client, limit=1000))]
            assert names == [name for name, job in reversed(self.jobs.items()) if job["client"] == client]
        for place, name in enumerate(self.order(set())):
            assert self.run(self.store.ahead(name)) == place
        used = {data for job in self.jobs.values() for data in job["inputs"]}
        assert {sha256(data) for data in used} <= set(self.store._jobs._files.names("inputs"))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.clock.now += 0
        self.run(self.store.sweep())
        used = {sha256(data) for job in self.jobs.values() for data in job["inputs"]}
        assert set(self.store._jobs._files.names("inputs")) == used
        self.run(self.store.close())
        self.loop.close()
        if self.folder is not None:
            self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# --- bounds


def test_a_full_store_takes_no_jobs_until_results_expire(opened: Open) -> None:
    async def check() -> None:
        store = opened(bytes=6000)
        await drawn(store, "first", reserve=3000)
        await store.add(new_job("second", reserve=2000))
        with pytest.raises(FullError, match="results have expired"):
            await store.add(new_job("third", reserve=2000))
        assert (await store.counts()).bytes <= 6000
        assert await store.get("third") is None
        with pytest.raises(FullError):
            await store.add(new_job("picture", reserve=0, inputs={sha256(b"x" * 3000): b"x" * 3000}))
        assert store._jobs._files.names("inputs") == []
        await store.cancel("second")
        clock_of(store).now += TTL + 1
        await store.add(new_job("third", reserve=2000))  # sweeps by itself

    asyncio.run(check())


def test_a_client_has_a_bounded_number_of_jobs(opened: Open) -> None:
    async def check() -> None:
        store = opened(client_jobs=2)
        await drawn(store, "ended")
        for name in ("first", "second"):
            await store.add(new_job(name))
        with pytest.raises(RefusedError, match="2 jobs"):
            await store.add(new_job("third"))
        await store.add(new_job("third", client="other"))
        await store.cancel("first")
        await store.add(new_job("fourth"))
        with pytest.raises(ValueError, match="id of a job"):
            await store.add(new_job("../fifth", client="new"))

    asyncio.run(check())


def test_results_expire_and_files_of_several_jobs_last_until_the_last(opened: Open) -> None:
    async def check() -> None:
        store = opened()
        shared, own = sha256(b"shared"), sha256(b"own")
        result = await drawn(store, "first", inputs={shared: b"shared", own: b"own"})
        await store.add(new_job("second", inputs={shared: b"shared"}))
        assert await store.sweep() == 0
        assert store._jobs._files.names("inputs") == [shared]
        assert await store.picture(result) == b"png"
        clock_of(store).now += TTL + 1
        assert await store.sweep() == 1
        assert await store.picture(result) is None
        first = await store.get("first")
        assert first is not None
        assert (first.state, first.pictures, first.document) == ("done", (), "")
        assert await store.input(shared) == b"shared"
        clock_of(store).now += TTL
        await store.sweep()
        assert await store.get("first") is None
        assert [kept.id for kept in await store.of_client("me", limit=9)] == ["second"]

    asyncio.run(check())


def test_files_that_belong_to_no_job_are_removed(tmp_path: Path) -> None:
    async def check() -> None:
        store = store_in_folder(tmp_path)
        kept = await store.add(new_job("job"))
        claimed = await store.claim(alone=True)
        assert claimed is not None
        await store.keep_picture(Claim("gone", 1), picture("gone"))
        running = await store.keep_picture(claimed.claim, picture("job"))
        (tmp_path / "results" / ".x.partial.png").write_bytes(b"half")
        (tmp_path / "inputs" / sha256(b"orphan")).write_bytes(b"orphan")
        await store.sweep()
        assert names_in(tmp_path / "results") == [running.name]
        assert names_in(tmp_path / "inputs") == []
        assert kept.state == "waiting"
        await store.close()

    asyncio.run(check())


def test_a_page_of_jobs_begins_after_another(opened: Open) -> None:
    async def check() -> None:
        store = opened()
        for number in range(5):
            await store.add(new_job(str(number), client="me" if number != 3 else "other"))
        assert [kept.id for kept in await store.of_client("me", limit=2)] == ["4", "2"]
        assert [kept.id for kept in await store.of_client("me", limit=9, before="2")] == ["1", "0"]
        assert await store.of_client("me", limit=9, before="3") == []  # a job of another client says nothing

    asyncio.run(check())


# --- disks that fail


def test_a_full_disk_keeps_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        store = store_in_folder(tmp_path)
        await store.add(new_job("first"))
        kept = await store.claim(alone=True)
        assert kept is not None

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(job_files.os, "fsync", full)
            with pytest.raises(StorageError, match="No space left") as raised:
                await store.keep_picture(kept.claim, picture("first"))
            assert raised.value.full
            with pytest.raises(StorageError):
                await store.add(new_job("second", inputs={sha256(b"x"): b"x"}))
        assert names_in(tmp_path / "results") == names_in(tmp_path / "inputs") == []
        assert await store.get("second") is None
        result = await store.keep_picture(kept.claim, picture("first"))
        assert await store.end(kept.claim, "done", pictures=[result])
        await store.close()

    asyncio.run(check())


def test_a_database_that_cannot_grow_changes_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        store = store_in_folder(tmp_path)
        database = store._jobs._database
        await store._do(lambda: database.rows(f"PRAGMA max_page_count = {database.value('PRAGMA page_count')}"))
        with pytest.raises(StorageError) as raised:
            await store.add(new_job("large", document="x" * 100_000))
        assert raised.value.full
        await store.add(new_job("small"))
        assert [kept.id for kept in await store.of_client("me", limit=9)] == ["small"]
        await store.close()

    asyncio.run(check())


def test_a_damaged_input_is_not_drawn(tmp_path: Path) -> None:
    async def check() -> None:
        store = store_in_folder(tmp_path)
        name = sha256(b"picture")
        await store.add(new_job("job", inputs={name: b"picture"}))
        (tmp_path / "inputs" / name).write_bytes(b"pictura")
        with pytest.raises(StorageError, match="damaged"):
            await store.input(name)
        (tmp_path / "inputs" / name).unlink()
        with pytest.raises(StorageError, match="missing"):
            await store.input(name)
        await store.close()

    asyncio.run(check())


# --- folders that cannot be used


def test_one_server_has_a_folder(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom latentrt.serve.jobs.sqlite import store_in_folder\n"
        "from latentrt.runtime.errors import LatentRTError\n"
        "try:\n    store_in_folder(Path(sys.argv[1]))\nexcept LatentRTError as error:\n    print(error)\n"
    )
    store = store_in_folder(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "typings")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()} on " in result.stdout
    with pytest.raises(StateError, match="in use"):
        store_in_folder(tmp_path)
    asyncio.run(store.close())
    asyncio.run(store_in_folder(tmp_path).close())


def damaged(folder: Path, how: str) -> None:
    """Make a folder with a finished job, then damage its database."""

    async def fill() -> None:
        store = store_in_folder(folder)
        await drawn(store, "job", document="x" * 50_000)
        await store.close()

    asyncio.run(fill())
    file = folder / "jobs.sqlite"
    if how == "no database":
        file.write_bytes(b"this is a text, and longer than a header of SQLite would be" * 99)
    elif how == "pages":
        content = bytearray(file.read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        file.write_bytes(content)
    elif how == "cut":
        os.truncate(file, 8192)
    elif how in ("missing", "empty"):
        file.unlink()
        if how == "empty":
            file.touch()
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA application_id = 1" if how == "another program" else "PRAGMA user_version = 9")
        connection.close()


@pytest.mark.parametrize("how", ["no database", "pages", "cut", "missing", "empty", "another program", "version"])
def test_a_damaged_folder_is_refused_and_not_changed(tmp_path: Path, how: str) -> None:
    damaged(tmp_path, how)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(StateError, match="jobs"):
        store_in_folder(tmp_path)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    assert {file: after.get(file) for file in before} == before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be locked"):
        store_in_folder(tmp_path / "file" / "state")
    assert runtime_files.lock(tmp_path / "file") is not None
