"""The table of jobs in SQLite: its schema, and its transactions. Used from one thread.

Knows nothing of files and of the order in which they are written.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .store import StateError

APPLICATION = 0x4C52544A  # says in the file that it is of latentrt's jobs
VERSION = 1
BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which they came
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    weight REAL NOT NULL,
    priority INTEGER NOT NULL,  -- 0 is drawn before 1
    model TEXT NOT NULL,
    document TEXT NOT NULL,  -- '' once it has expired
    images INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled')),
    alone INTEGER NOT NULL DEFAULT 0,
    number INTEGER NOT NULL DEFAULT 0,  -- of the latest claim, the fencing token; never falls
    attempts INTEGER NOT NULL DEFAULT 0,  -- claims that count
    bytes INTEGER NOT NULL,  -- that it takes beside its inputs, or may take until it has ended
    deadline REAL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    expires REAL,
    failure TEXT,  -- JSON
    pictures TEXT NOT NULL DEFAULT '[]',  -- JSON
    timings TEXT NOT NULL DEFAULT '{}'  -- JSON
) STRICT;
CREATE INDEX jobs_to_claim ON jobs (priority, place) WHERE state = 'waiting';
CREATE INDEX jobs_of_client ON jobs (client, place);
CREATE INDEX jobs_to_expire ON jobs (expires) WHERE expires IS NOT NULL;
CREATE TABLE inputs (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (job, sha256)
) STRICT;
CREATE INDEX inputs_by_hash ON inputs (sha256);
"""


class Database:
    """An open database of jobs."""

    def __init__(self, path: Path | None) -> None:
        """`path`: None is in memory. Raises `StateError` for files that are damaged or not of jobs; writes nothing
        to those."""
        self._path = path
        try:
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256
            )
        except sqlite3.Error as error:
            raise StateError(f"{path} cannot be opened: {error}") from error
        try:
            self._connection.row_factory = sqlite3.Row
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StateError(
                f"{path} cannot be used: {error}. Nothing was changed. Put back a copy, or move the folder away to "
                "begin without jobs"
            ) from error
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        version, application = (self.value(f"PRAGMA {name}") for name in ("user_version", "application_id"))
        is_new = not self.value("SELECT count(*) FROM sqlite_schema")
        if not is_new and application != APPLICATION:
            raise StateError(f"{self._path} is a database of another program")
        if not is_new and version != VERSION:
            raise StateError(
                f"{self._path} has version {version}, and this latentrt reads version {VERSION}: use the latentrt that "
                "wrote it, or move the folder away to begin without jobs"
            )
        if not is_new and (found := self.value("PRAGMA quick_check(1)")) != "ok":
            raise sqlite3.DatabaseError(found)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        if is_new:
            with self.transaction():
                for statement in _SCHEMA.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled it back by itself
                self._connection.execute("ROLLBACK")
            raise

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a statement."""
        return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a statement; None if there is none."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def value(self, sql: str, *values: Any) -> Any:
        """The first value of a statement that has one."""
        return self.rows(sql, *values)[0][0]

    def change(self, sql: str, *values: Any) -> int:
        """How many rows a statement has changed."""
        return self._connection.execute(sql, values).rowcount

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
