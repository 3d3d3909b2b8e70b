"""Several servers have one store in PostgreSQL: claims, leases, limits and files are theirs together."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.postgres import Cluster

from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.postgres import claims
from latentrt.serve.jobs.postgres.leases import Lease
from latentrt.serve.jobs.postgres.notices import Notice, notice_of, progress_texts
from latentrt.serve.jobs.postgres.shared_files import RemoteFiles, SharedFolder
from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres
from latentrt.serve.jobs.store import (
    MAX_ATTEMPTS,
    FullError,
    IdempotencyKey,
    ReusedKeyError,
    StateError,
    StorageError,
)
from latentrt.serve.messages import Progress, RefusedError

from .fakes import names_in
from .runners import checked
from .store_parts import new_job, picture, sha256

Open = Callable[..., PostgresStore]


@pytest.fixture
def opened(postgres: Cluster, tmp_path: Path) -> Iterator[Open]:
    """Opens the store of this test, each time for another server."""
    stores: list[PostgresStore] = []
    schema = postgres.schema()

    def open_store(*, files: Path | str = tmp_path, lease: float = 30.0, **bounds: Any) -> PostgresStore:
        stores.append(
            store_in_postgres(postgres.url(), files, Bounds(**bounds), schema=schema, lease=lease, files_every=0)
        )
        return stores[-1]

    yield open_store
    for store in stores:
        if not store._threads._shutdown:
            asyncio.run(store.close())


def lose_lease(store: PostgresStore) -> None:
    """As if the server had been away for longer than its lease."""
    store._jobs.rows(
        "UPDATE servers SET lease = now() - interval '1 hour' WHERE id = %s RETURNING id", store._jobs.server
    )


def take_back(store: PostgresStore) -> int:
    """What a beat does, at once: the database may have been started less than a lease ago."""
    return Lease(store._jobs._connections, store._jobs, 0.0).take_back()


def still(store: PostgresStore) -> PostgresStore:
    """A store whose lease nobody renews, as if its server stood still."""
    store._beats._stopped.set()
    store._beats._thread.join()
    return store


# --- claims and leases


@checked
async def test_claims_never_overlap_and_keep_the_order(opened: Open) -> None:
    stores = [opened() for _ in range(4)]
    rng = random.Random(11)
    order: dict[str, list[str]] = {"interactive": [], "batch": []}
    for number in range(150):
        priority: Any = rng.choice(["interactive", "batch"])
        await stores[number % 4].add(new_job(f"job{number}", client=rng.choice("abc"), priority=priority))
        order[priority].append(f"job{number}")
    for next_one in (order["interactive"].pop(0) for _ in range(10)):  # one after the other, of whichever server
        first = await rng.choice(stores).claim(alone=True)
        assert first is not None
        assert first.id == next_one

    async def claimer(store: PostgresStore) -> list[str]:
        mine = []
        while (kept := await store.claim(alone=False)) is not None:
            assert (kept.state, kept.number) == ("running", 1)
            mine.append(kept.id)
            await asyncio.sleep(0)
        return mine

    found = await asyncio.gather(*(claimer(stores[number % 4]) for number in range(16)))
    names = [name for mine in found for name in mine]
    expected = order["interactive"] + order["batch"]
    assert sorted(names) == sorted(expected)
    places = {name: place for place, name in enumerate(expected)}
    for mine in found:
        assert mine == sorted(mine, key=places.__getitem__)


@checked
async def test_a_job_without_a_lease_is_drawn_by_another_and_committed_once(opened: Open, tmp_path: Path) -> None:
    slow, other = still(opened()), opened()
    await slow.add(new_job("job", inputs={sha256(b"in"): b"in"}))
    first = await slow.claim(alone=True)
    assert first is not None
    lost = await slow.keep_picture(first.claim, picture("job", data=b"of the first"))
    assert take_back(other) == 0
    lose_lease(slow)
    await slow.add(new_job("next"))
    assert await slow.claim(alone=True) is None  # it may not begin anything, either
    await slow.cancel("next")
    assert take_back(other) == 1
    second = await other.claim(alone=True)
    assert second is not None
    assert (second.number, second.attempts, second.alone) == (2, 2, True)
    assert await other.input(sha256(b"in")) == b"in"
    assert not await slow.end(first.claim, "done", pictures=[lost])
    assert not await slow.give_back(first.claim, counted=False)
    won = await other.keep_picture(second.claim, picture("job", data=b"of the second"))
    assert await other.end(second.claim, "done", pictures=[won])
    late = await slow.keep_picture(first.claim, picture("job", 1, data=b"too late"))
    assert {lost.name, won.name, late.name} == {"job-1-0.png", "job-2-0.png", "job-1-1.png"}
    await other.sweep()
    assert names_in(tmp_path / "results") == [won.name]
    assert names_in(tmp_path / "inputs") == []
    kept = await slow.get("job")
    assert kept is not None
    assert [await slow.picture(p) for p in kept.pictures] == [b"of the second"]


@checked
async def test_a_lease_that_nobody_has_taken_is_still_good(opened: Open) -> None:
    slow = still(opened())
    await slow.add(new_job("job"))
    kept = await slow.claim(alone=True)
    assert kept is not None
    lose_lease(slow)
    assert await slow.end(kept.claim, "done", pictures=[await slow.keep_picture(kept.claim, picture("job"))])


@checked
async def test_attempts_are_counted_over_servers(opened: Open) -> None:
    stores = [still(opened()) for _ in range(MAX_ATTEMPTS)]
    await stores[0].add(new_job("job", inputs={sha256(b"in"): b"in"}))
    for number, store in enumerate(stores, 1):
        kept = await store.claim(alone=True)
        assert kept is not None
        assert kept.attempts == number
        lose_lease(store)
        take_back(store)
    kept = await stores[0].get("job")
    assert kept is not None
    assert kept.failure is not None
    assert (kept.state, kept.failure.kind, kept.attempts) == ("failed", "poison", MAX_ATTEMPTS)
    assert kept.expires is not None


@checked
async def test_leases_count_from_the_start_of_the_database(opened: Open) -> None:
    store = still(opened())
    await store.add(new_job("job"))
    assert await store.claim(alone=True) is not None
    lose_lease(store)
    long = Lease(store._jobs._connections, store._jobs, 1e6)
    assert long.take_back() == 0
    assert take_back(store) == 1


@checked
async def test_a_busy_event_loop_does_not_lose_its_jobs(opened: Open) -> None:
    busy, other = opened(lease=1.5), opened(lease=1.5)
    await busy.add(new_job("job"))
    kept = await busy.claim(alone=True)
    assert kept is not None
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # holds the event loop, and the GIL as Python code does
        sum(range(1000))
    take_back(other)
    assert await busy.end(kept.claim, "done")


@checked
async def test_a_closed_store_gives_back_what_it_has_claimed(opened: Open) -> None:
    first, other = opened(), opened()
    await first.add(new_job("job"))
    assert await first.claim(alone=True) is not None
    await first.close()
    kept = await other.get("job")
    assert kept is not None
    assert (kept.state, kept.attempts, kept.alone) == ("waiting", 0, False)
    assert {row["id"] for row in other._jobs.rows("SELECT id FROM servers")} == {other._jobs.server}


@checked
async def test_a_claim_whose_answer_was_lost_is_given_back(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 0.1)
    store = opened(lease=1.0)
    await store.add(new_job("job"))
    kept = await store.claim(alone=True)
    assert kept is not None
    store._jobs.claims.remove(kept.claim)
    while (again := await store.claim(alone=True)) is None:
        await asyncio.sleep(0.05)
    assert (again.number, again.attempts) == (2, 1)


# --- limits and keys


@checked
async def test_limits_hold_over_servers(opened: Open) -> None:
    stores = [opened(client_jobs=7, bytes=200_000) for _ in range(3)]

    async def accepted(client: str, reserve: int) -> int:
        tries = [stores[n % 3].add(new_job(f"{client}{n}", client=client, reserve=reserve)) for n in range(30)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        refused = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(error, RefusedError | FullError) for error in refused), refused
        return len(results) - len(refused)

    assert await accepted("many", 100) == 7
    # One that takes 30 kB: three leave less free than they take.
    assert await accepted("large", 30_000) == 3
    counts = await stores[0].counts()
    assert counts.bytes <= counts.most_bytes
    assert (counts.waiting_images, counts.jobs) == (10, {"waiting": 10})


@checked
async def test_a_key_is_known_to_all_servers(opened: Open) -> None:
    stores = [opened() for _ in range(3)]
    key = IdempotencyKey("again", "digest", 600.0)
    added = await asyncio.gather(*(stores[n % 3].add(new_job(f"job{n}", key=key)) for n in range(9)))
    assert len({kept.id for kept in added}) == 1
    assert (await stores[0].counts()).jobs == {"waiting": 1}
    with pytest.raises(ReusedKeyError, match="use a new key"):
        await stores[1].add(new_job("other", key=IdempotencyKey("again", "another", 600.0)))
    assert (await stores[1].add(new_job("of_you", client="you", key=key))).id == "of_you"
    stores[0]._jobs.rows("UPDATE jobs SET key_until = 0 WHERE client = 'me' RETURNING id")
    assert (await stores[2].add(new_job("later", key=key))).id == "later"


# --- files


@checked
async def test_a_job_is_claimed_only_when_its_inputs_are_written(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = opened(), opened()
    write, data = store._jobs._files.write, b"picture"
    seen: list[Any] = []

    def writing(folder: Any, name: str, content: bytes) -> None:
        seen.append(other._jobs.claim(True, ()))
        other._jobs.sweep()  # does not take it for a file of nobody
        write(folder, name, content)
        other._jobs.sweep()
        seen.append(other._jobs.claim(True, ()))

    monkeypatch.setattr(store._jobs._files, "write", writing)
    await store.add(new_job("job", inputs={sha256(data): data}))
    assert seen == [None, None]
    kept = await other.claim(alone=True)
    assert kept is not None
    assert await other.input(sha256(data)) == data

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._jobs._files, "write", full)
    with pytest.raises(StorageError, match="No space left") as raised:
        await store.add(new_job("second", inputs={sha256(data): data}))
    assert raised.value.full
    assert await store.get("second") is None


@checked
async def test_an_input_that_is_needed_again_is_not_swept(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job comes with the same picture between the moment when nobody needed it and that of its removal."""
    store, other, data = opened(), opened(), b"picture"
    name = sha256(data)
    await store.add(new_job("first", inputs={name: data}))
    await store.cancel("first")
    remove = other._jobs._remove_input

    def removing(unused: str) -> None:
        store._jobs.add(new_job("second", inputs={name: data}))
        remove(unused)

    monkeypatch.setattr(other._jobs, "_remove_input", removing)
    await other.sweep()
    assert await store.input(name) == data


@checked
async def test_files_that_others_are_writing_are_left_alone(opened: Open, tmp_path: Path) -> None:
    store = opened()
    young, old = tmp_path / "results" / ".young.partial", tmp_path / "results" / ".old.partial"
    for file in (young, old):
        file.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    await store.sweep()
    assert names_in(tmp_path / "results") == [".young.partial"]


def test_other_files_than_those_of_the_database_are_refused(opened: Open, tmp_path: Path) -> None:
    opened()
    with pytest.raises(StateError, match="does not have the files of these jobs"):
        opened(files=tmp_path / "elsewhere")
    (tmp_path / "marks" / "store").write_text("another")
    with pytest.raises(StateError, match="has files of another database"):
        opened()


@checked
async def test_files_may_be_objects(opened: Open) -> None:
    address = f"memory://{time.monotonic_ns()}/jobs"
    store, other = opened(files=address), opened(files=address)
    data = b"picture"
    await store.add(new_job("job", inputs={sha256(data): data}))
    kept = await other.claim(alone=True)
    assert kept is not None
    assert await other.input(sha256(data)) == data
    result = await other.keep_picture(kept.claim, picture("job"))
    await other.keep_picture(kept.claim, picture("job", 1))
    assert await other.end(kept.claim, "done", pictures=[result])
    await store.sweep()
    files = RemoteFiles(address)
    assert (files.names("inputs"), files.names("results")) == ([], [result.name])
    assert await store.picture(result) == b"png"
    assert files.read("results", "none") is None
    files.remove("results", "none")


def test_what_an_object_store_raises_is_a_fault_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = RemoteFiles("memory://faults")

    class CredentialsError(Exception):
        pass

    def failing(*_: Any) -> None:
        raise CredentialsError("no credentials")

    monkeypatch.setattr(files._system, "pipe_file", failing)
    with pytest.raises(OSError, match="memory://faults: CredentialsError: no credentials"):
        files.write("results", "a", b"")
    with pytest.raises(StateError, match="cannot be used"):
        RemoteFiles("nothing-of-the-kind://a/b")


def test_a_shared_folder_is_written_by_several_at_once(tmp_path: Path) -> None:
    folders = [SharedFolder(tmp_path) for _ in range(4)]
    data = b"x" * 100_000
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: folders[n % 4].write("inputs", sha256(data), data), range(40)))
    assert folders[0].read("inputs", sha256(data)) == data
    assert names_in(tmp_path / "inputs") == [sha256(data)]


# --- notices

PROGRESS = st.builds(
    Progress,
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=64),
    *(st.integers(0, 10_000) for _ in range(3)),
)


@given(st.lists(PROGRESS, max_size=400))
def test_steps_are_told_in_payloads_that_postgresql_takes(events: list[Progress]) -> None:
    texts = list(progress_texts("0123456789abcdef", events))
    assert all(len(text.encode()) < 8000 for text in texts)
    notices = [notice_of(text) for text in texts]
    assert [event for notice in notices if notice for event in notice.progress] == events


@pytest.mark.parametrize("text", ["", "a", "a ?", "a ~", "a ~[1]", "a ~[[1]]", "a ~{}x", "a ~null"])
def test_what_is_no_notice_is_ignored(text: str) -> None:
    assert notice_of(text) is None


def test_notices_are_read() -> None:
    assert notice_of("me =job-1") == Notice("me", "=", "job-1", ())
    assert notice_of("me +job") == Notice("me", "+", "job", ())
