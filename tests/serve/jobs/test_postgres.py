"""Several servers have one store in PostgreSQL: claims, leases and limits are theirs together."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from latentrt.serve.jobs.postgres import claims
from latentrt.serve.jobs.postgres.leases import Lease
from latentrt.serve.jobs.postgres.store import PostgresStore
from latentrt.serve.jobs.store import MAX_ATTEMPTS, FullError, IdempotencyKey, ReusedKeyError
from latentrt.serve.messages import RefusedError

from .conftest import Joined
from .fakes import names_in
from .runners import checked
from .store_parts import new_job, picture, sha256


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
async def test_claims_never_overlap_and_keep_the_order(joined: Joined) -> None:
    stores = [joined() for _ in range(4)]
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
async def test_a_job_without_a_lease_is_drawn_by_another_and_committed_once(joined: Joined, tmp_path: Path) -> None:
    slow, other = still(joined()), joined()
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
async def test_a_lease_that_nobody_has_taken_is_still_good(joined: Joined) -> None:
    slow = still(joined())
    await slow.add(new_job("job"))
    kept = await slow.claim(alone=True)
    assert kept is not None
    lose_lease(slow)
    assert await slow.end(kept.claim, "done", pictures=[await slow.keep_picture(kept.claim, picture("job"))])


@checked
async def test_attempts_are_counted_over_servers(joined: Joined) -> None:
    stores = [still(joined()) for _ in range(MAX_ATTEMPTS)]
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
async def test_leases_count_from_the_start_of_the_database(joined: Joined) -> None:
    store = still(joined())
    await store.add(new_job("job"))
    assert await store.claim(alone=True) is not None
    lose_lease(store)
    long = Lease(store._jobs._connections, store._jobs, 1e6)
    assert long.take_back() == 0
    assert take_back(store) == 1


@checked
async def test_a_busy_event_loop_does_not_lose_its_jobs(joined: Joined) -> None:
    busy, other = joined(lease=1.5), joined(lease=1.5)
    await busy.add(new_job("job"))
    kept = await busy.claim(alone=True)
    assert kept is not None
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # holds the event loop, and the GIL as Python code does
        sum(range(1000))
    take_back(other)
    assert await busy.end(kept.claim, "done")


@checked
async def test_a_closed_store_gives_back_what_it_has_claimed(joined: Joined) -> None:
    first, other = joined(), joined()
    await first.add(new_job("job"))
    assert await first.claim(alone=True) is not None
    await first.close()
    kept = await other.get("job")
    assert kept is not None
    assert (kept.state, kept.attempts, kept.alone) == ("waiting", 0, False)
    assert {row["id"] for row in other._jobs.rows("SELECT id FROM servers")} == {other._jobs.server}


@checked
async def test_a_claim_whose_answer_was_lost_is_given_back(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 0.1)
    store = joined(lease=1.0)
    await store.add(new_job("job"))
    kept = await store.claim(alone=True)
    assert kept is not None
    store._jobs.claims.remove(kept.claim)
    while (again := await store.claim(alone=True)) is None:
        await asyncio.sleep(0.05)
    assert (again.number, again.attempts) == (2, 1)


# --- limits and keys


@checked
async def test_limits_hold_over_servers(joined: Joined) -> None:
    stores = [joined(client_jobs=7, bytes=200_000) for _ in range(3)]

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
async def test_a_key_is_known_to_all_servers(joined: Joined) -> None:
    stores = [joined() for _ in range(3)]
    key = IdempotencyKey("again", "digest", 600.0)
    added = await asyncio.gather(*(stores[n % 3].add(new_job(f"job{n}", key=key)) for n in range(9)))
    assert len({kept.id for kept in added}) == 1
    assert (await stores[0].counts()).jobs == {"waiting": 1}
    with pytest.raises(ReusedKeyError, match="use a new key"):
        await stores[1].add(new_job("other", key=IdempotencyKey("again", "another", 600.0)))
    assert (await stores[1].add(new_job("of_you", client="you", key=key))).id == "of_you"
    stores[0]._jobs.rows("UPDATE jobs SET key_until = 0 WHERE client = 'me' RETURNING id")
    assert (await stores[2].add(new_job("later", key=key))).id == "later"
