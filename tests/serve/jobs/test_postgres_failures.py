"""What a server says that cannot use PostgreSQL, and that it goes on when it can again; no password is ever shown."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.postgres import Cluster
from support.proxy import Proxy

from latentrt.runtime.errors import BackendError
from latentrt.serve import stores
from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.postgres import connections
from latentrt.serve.jobs.postgres.schema import LOCK
from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres
from latentrt.serve.jobs.store import StateError, StorageError
from latentrt.serve.stores import open_store

from .runners import checked
from .store_parts import new_job

SECRET = "s3cr3t"


@pytest.fixture
def role(postgres: Cluster) -> Iterator[str]:
    """A user with a password and no rights, who is asked for it."""
    postgres.run(f"CREATE ROLE with_password LOGIN PASSWORD '{SECRET}'")
    yield "with_password"
    postgres.run("DROP OWNED BY with_password; DROP ROLE with_password")


def url_with(cluster: Cluster, password: str = SECRET, database: str = "postgres") -> str:
    return f"postgresql://with_password:{password}@/{database}?host={cluster.folder}"


def refusal(url: str, folder: Path, **options: Any) -> str:
    with pytest.raises(StateError) as raised:
        store_in_postgres(url, folder, Bounds(), **options)
    message = str(raised.value)
    assert SECRET not in message
    assert "\n" not in message
    assert list(folder.iterdir()) == []
    return message


def closed(store: PostgresStore) -> None:
    asyncio.run(store.close())


def test_a_database_that_is_not_there_is_told(postgres: Cluster, role: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "Connection refused" in refusal(f"postgresql://{role}:{SECRET}@127.0.0.1:{port}/jobs", tmp_path)
    assert "No such file" in refusal(f"postgresql://{role}:{SECRET}@/jobs?host={tmp_path}", tmp_path)
    assert 'database "nowhere" does not exist' in refusal(postgres.url("nowhere"), tmp_path)
    assert "authentication failed for user" in refusal(url_with(postgres, f"not-{SECRET}"), tmp_path)
    assert "authentication failed for user" in refusal(url_with(postgres, f"{SECRET}%20"), tmp_path)


@pytest.mark.parametrize("address", [f"postgresql://me:{SECRET}%zz@host/jobs", f"postgresql://me:{SECRET}@[::1/jobs"])
def test_an_address_that_is_none_is_not_shown(address: str, tmp_path: Path) -> None:
    assert "expected postgresql://USER:PASSWORD@HOST" in refusal(address, tmp_path)


def test_a_user_without_rights_is_told_what_the_owner_can_do(postgres: Cluster, role: str, tmp_path: Path) -> None:
    schema = postgres.schema()
    message = refusal(url_with(postgres), tmp_path, schema=schema)
    command = message.partition("owner run ")[2]
    assert command == f'CREATE SCHEMA "{schema}" AUTHORIZATION "{role}"'
    postgres.run(command)
    closed(store_in_postgres(url_with(postgres), tmp_path / "files", schema=schema))
    other = postgres.schema()
    closed(store_in_postgres(postgres.url(), tmp_path / "others", schema=other))
    with pytest.raises(StateError, match=f"with_password may not use the schema {other}: permission denied"):
        store_in_postgres(url_with(postgres), tmp_path / "others", schema=other)


def test_another_version_and_another_program_are_refused(postgres: Cluster, tmp_path: Path) -> None:
    schema, foreign, folder = postgres.schema(), postgres.schema(), tmp_path / "empty"
    folder.mkdir()
    closed(store_in_postgres(postgres.url(), tmp_path / "files", schema=schema))
    for version in (0, 2):
        postgres.run(f"UPDATE {schema}.meta SET version = {version}")
        message = refusal(postgres.url(), folder, schema=schema)
        assert f"the schema {schema} has version {version}, and this latentrt reads version 1" in message
    postgres.run(f"CREATE SCHEMA {foreign}; CREATE TABLE {foreign}.jobs (name text)")
    assert f"the schema {foreign} is of another program" in refusal(postgres.url(), folder, schema=foreign)
    assert postgres.run(f"SELECT * FROM {foreign}.jobs") == []


def test_a_database_that_can_only_be_read_is_refused(postgres: Cluster, tmp_path: Path) -> None:
    read_only = f"{postgres.url()}&options=-c%20default_transaction_read_only%3Don"
    assert "read-only" in refusal(read_only, tmp_path, schema=postgres.schema())


def test_tables_are_made_once_by_servers_that_start_together(postgres: Cluster, tmp_path: Path) -> None:
    schema = postgres.schema()

    async def start() -> list[PostgresStore]:
        opens = (asyncio.to_thread(store_in_postgres, postgres.url(), tmp_path, schema=schema) for _ in range(6))
        return list(await asyncio.gather(*opens))

    for store in asyncio.run(start()):
        closed(store)
    assert postgres.run(f"SELECT count(*) FROM {schema}.meta") == [(1,)]


def test_too_many_connections_are_a_fault_that_passes(postgres: Cluster, role: str, tmp_path: Path) -> None:
    schema = postgres.schema()
    postgres.run(f'CREATE SCHEMA {schema} AUTHORIZATION "{role}"; ALTER ROLE {role} CONNECTION LIMIT 2')
    busy = [psycopg.connect(url_with(postgres)) for _ in range(2)]
    assert "too many connections" in refusal(url_with(postgres), tmp_path, schema=schema)
    for one in busy:
        one.close()

    @checked
    async def check() -> None:
        store = store_in_postgres(url_with(postgres), tmp_path, schema=schema)
        many = [store.get("job") for _ in range(8)]
        results = await asyncio.gather(*many, return_exceptions=True)  # one connection is that of the lease
        assert all(result is None or isinstance(result, StorageError) for result in results)
        postgres.run(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        while await usable(store) is None:
            await asyncio.sleep(0.02)
        await store.close()

    check()


async def usable(store: PostgresStore) -> bool | None:
    """True where all of the threads have a connection."""
    results = await asyncio.gather(*(store.get("job") for _ in range(8)), return_exceptions=True)
    return True if all(result is None for result in results) else None


def test_what_hangs_is_given_up(postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "OPERATION_SECONDS", 0.5)
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 0.5)

    @checked
    async def check() -> None:
        with Proxy(postgres.socket) as proxy:
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?connect_timeout=2"
            store = store_in_postgres(url, tmp_path, schema=postgres.schema())
            await store.add(new_job("first"))
            proxy.stall()
            with pytest.raises(StorageError):
                await store.add(new_job("second"))
            proxy.go_on()
            while True:
                try:
                    assert await store.get("first") is not None
                    break
                except StorageError:
                    await asyncio.sleep(0.05)
            await store.close()

    check()


def test_a_server_that_stands_still_does_not_keep_its_locks(
    postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a transaction, as one that is stopped or cut off; others can go on soon."""
    schema = postgres.schema()

    @checked
    async def check() -> None:
        store = store_in_postgres(postgres.url(), tmp_path, schema=schema)
        monkeypatch.setattr(connections, "OPERATION_SECONDS", 1.0)
        other = connections.Connections(postgres.url(), schema)
        with other.connected() as connection:
            connection.execute("BEGIN")
            connection.execute(LOCK, [schema])
        monkeypatch.setattr(connections, "OPERATION_SECONDS", 10.0)
        assert (await store.add(new_job("job"))).state == "waiting"
        other.close()
        await store.close()

    check()


def test_passwords_are_in_no_log(
    postgres: Cluster, role: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schema = postgres.schema()
    postgres.run(f'CREATE SCHEMA {schema} AUTHORIZATION "{role}"')

    @checked
    async def check() -> None:
        with caplog.at_level(logging.DEBUG):
            store = store_in_postgres(url_with(postgres), tmp_path, schema=schema)
            await asyncio.to_thread(postgres.stop)
            with pytest.raises(StorageError) as raised:
                await store.get("job")
            assert SECRET not in str(raised.value)
            while not any("cannot be reached" in record.getMessage() for record in caplog.records):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(postgres.start)
            await store.close()

    check()
    assert SECRET not in caplog.text


def test_a_state_is_opened_without_http(postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"result_bytes": 1 << 20, "result_ttl": 60.0}
    url = postgres.url(postgres.database())
    for state, files, durable in ((None, None, False), (tmp_path / "a", None, True), (url, str(tmp_path / "b"), True)):
        store = open_store(state, files, **options)
        assert store.durable == durable
        asyncio.run(store.close())
    with pytest.raises(BackendError, match="needs files"):
        open_store(url, **options)
    monkeypatch.setattr(stores, "find_spec", lambda name: None if name == "psycopg" else name)
    with pytest.raises(BackendError, match=r"psycopg not found: .* pip install 'latentrt\[postgres\]'"):
        open_store(url, tmp_path, **options)
