"""A real PostgreSQL that tests start: one cluster in a temporary folder, at a Unix socket, without fsync."""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

USER = "postgres"  # PostgreSQL refuses to run as root


def programs() -> Path:
    """The folder of `initdb` and `pg_ctl`."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert folders, "PostgreSQL is not installed: apt-get install postgresql"
    return folders[-1]


@dataclass(eq=False)
class Cluster:
    """A running PostgreSQL."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str = "postgres", user: str = USER) -> str:
        """Its address; every local user is trusted but "with_password"."""
        return f"postgresql://{user}@/{database}?host={self.folder}"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / ".s.PGSQL.5432"

    def schema(self) -> str:
        """A new name of a schema, which is quicker than a database."""
        return f"test{next(self._numbers)}"

    def database(self) -> str:
        """The name of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return name

    def run(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the owner; its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=100"
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it; "immediate" is a crash."""
        self._control("stop", "-m", mode, "-w")

    def _control(self, *arguments: str) -> None:
        _run_as_user("pg_ctl", "-D", str(self.folder / "data"), "-s", *arguments)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="latentrt-pg-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, USER)
        _run_as_user("initdb", "-D", str(folder / "data"), "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8")
        access = folder / "data" / "pg_hba.conf"
        access.write_text("local all with_password scram-sha-256\n" + access.read_text())
        result = Cluster(folder)
        result.start()
        try:
            yield result
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                result.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_as_user(program: str, *arguments: str) -> None:
    user = USER if os.getuid() == 0 else None
    command = [str(programs() / program), *arguments]
    done = subprocess.run(
        command, user=user, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
