"""The table of jobs as one server sees it: statements on its connections, notices in its name, and how jobs end."""

import socket
from collections.abc import Mapping, Sequence
from os import getpid
from secrets import token_hex
from typing import Any

from psycopg.rows import DictRow

from latentrt.serve.jobs.bounds import ROW, Bounds
from latentrt.serve.jobs.rows import failure_text, pictures_text, timings_text
from latentrt.serve.jobs.store import Ended, Failure, KeptPicture

from .connections import Connections
from .notices import CHANGED

NOW = "extract(epoch FROM clock_timestamp())::float8"
NOT_ENDED = "state IN ('waiting', 'running')"


class Table:
    """Statements of one server. Used from several threads, each with its connection."""

    def __init__(self, connections: Connections, schema: str, bounds: Bounds, now: str) -> None:
        """`now`: the time in SQL."""
        self._connections, self._schema, self._bounds, self._now = connections, schema, bounds, now
        self.server = token_hex(8)
        self.server_name = f"process {getpid()} on {socket.gethostname()}"

    def rows(self, sql: str, *values: Any) -> list[DictRow]:
        """All rows of a statement that has some; it is committed."""
        with self._connections.connected() as connection:
            return connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> DictRow | None:
        """The first row of a statement; None if there is none."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def notice(self, kind: str, job: str = "id") -> str:
        """SQL that lets all servers hear of a job when the transaction is committed."""
        return f"pg_notify('{self._schema}', '{self.server} {kind}' || {job})"

    def end_jobs(
        self,
        which: str,
        values: Sequence[Any],
        state: Ended,
        failure: Failure | None,
        pictures: Sequence[KeptPicture] = (),
        timings: Mapping[str, float] | None = None,
    ) -> int:
        """End jobs, how many there were. Nothing draws them any more, so their inputs are not needed."""
        rows = self.rows(
            f"WITH ended AS (UPDATE jobs SET state = %s, failure = %s, pictures = %s, timings = %s, "
            f"ended = {self._now}, expires = {self._now} + %s, bytes = %s + length(document) "
            f"WHERE {which} RETURNING id), "
            "gone AS (DELETE FROM inputs WHERE job IN (SELECT id FROM ended)) "
            f"SELECT {self.notice(CHANGED)} FROM ended",
            *(state, failure_text(failure), pictures_text(pictures), timings_text(timings), self._bounds.result_ttl),
            *(ROW + sum(picture.size for picture in pictures), *values),
        )
        return len(rows)
