"""Stores keep what they promise: bounds, expiry, disks that fail, and damaged folders."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from support.exports import ROOT

from latentrt.runtime import files as runtime_files
from latentrt.serve.jobs import files as job_files
from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.jobs.store import (
    Claim,
    FullError,
    KeptPicture,
    StateError,
    StorageError,
)
from latentrt.serve.messages import RefusedError

from .fakes import names_in
from .store_parts import TTL, Clock, Place, Store, new_job, picture, sha256

Open = Callable[..., Store]


@pytest.fixture(params=["memory", "folder", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens a store of every kind; closes it at the end."""
    stores: list[Store] = []
    place = Place(request.param, tmp_path, lambda: request.getfixturevalue("postgres"))

    def open_store(**bounds: Any) -> Store:
        clock = Clock()
        store = place.open(Bounds(**{"result_ttl": TTL, **bounds}), clock)
        _CLOCKS[store] = clock
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        asyncio.run(store.close())


_CLOCKS: WeakKeyDictionary[Store, Clock] = WeakKeyDictionary()


def clock_of(store: Store) -> Clock:
    return _CLOCKS[store]


async def drawn(store: Store, name: str, **changes: Any) -> KeptPicture:
    """A job that has been drawn."""
    await store.add(new_job(name, **changes))
    kept = await store.claim(alone=True)
    assert kept is not None
    assert kept.id == name
    result = await store.keep_picture(kept.claim, picture(name))
    assert await store.end(kept.claim, "done", pictures=[result], timings={"total": 5.0})
    return result


# --- bounds


def test_a_full_store_takes_no_jobs_until_results_expire(opened: Open) -> None:
    async def check() -> None:
        store = opened(bytes=10_000)
        await drawn(store, "first", reserve=3000)
        await store.add(new_job("second", client="you", reserve=2500))
        await store.add(new_job("another", client="her", reserve=1000))
        with pytest.raises(FullError, match=r"MiB of at most .* results have expired"):
            await store.add(new_job("third", client="they", reserve=3000))
        assert (await store.counts()).bytes <= 10_000
        assert await store.get("third") is None
        with pytest.raises(FullError):
            await store.add(new_job("picture", reserve=0, inputs={sha256(b"x" * 9000): b"x" * 9000}))
        assert store._jobs._files.names("inputs") == []
        await store.cancel("second")
        clock_of(store).now += TTL + 1
        await store.add(new_job("third", client="they", reserve=1500))  # sweeps by itself

    asyncio.run(check())


def test_a_client_takes_no_more_of_the_store_than_it_leaves_free(opened: Open) -> None:
    async def check() -> None:
        store = opened(bytes=40_000)
        await store.add(new_job("first", reserve=10_000))
        with pytest.raises(FullError, match="your jobs would take"):
            await store.add(new_job("second", reserve=10_000))
        data = b"x" * 10_000
        with pytest.raises(FullError, match="your jobs would take"):
            await store.add(new_job("second", reserve=0, inputs={sha256(data): data}))
        await store.add(new_job("second", client="you", reserve=10_000))
        await store.cancel("first")
        await store.add(new_job("third", reserve=10_000, inputs={sha256(data[:500]): data[:500]}))

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
        for text in ("none", "\0", "a\0b", "../x", "", "é"):
            assert await store.of_client("me", limit=9, before=text) == []
            assert await store.get(text) is await store.cancel(text) is None

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
