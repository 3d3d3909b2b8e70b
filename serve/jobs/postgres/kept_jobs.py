"""The operations of a store in PostgreSQL: each a statement or a short transaction, none of them open while drawing.

Used from several threads, each with its connection. Knows no event loop. A job with inputs is kept before these are
written, and can be claimed after that: so a sweep of another server knows whose they are.
"""

from collections.abc import Collection, Mapping, Sequence

from latentrt.serve.jobs.bounds import ROW, Bounds, is_id, no_room, require_id
from latentrt.serve.jobs.files import Files
from latentrt.serve.jobs.job_files import JobFiles
from latentrt.serve.jobs.rows import PRIORITIES, job_of
from latentrt.serve.jobs.store import (
    Claim,
    Counts,
    Ended,
    Failure,
    FullError,
    KeptJob,
    KeptPicture,
    NewJob,
    ReusedKeyError,
    StorageError,
)

from .claims import Claims
from .connections import Connection, Connections
from .notices import CHANGED, WAITS
from .schema import LOCK
from .table import NOT_ENDED, Table

_HELD = "id = %s AND number = %s AND state = 'running'"
_WRITING = 600.0  # seconds that a server may take to write the inputs of a job
_FACTS = """
SELECT coalesce((SELECT open FROM clients WHERE client = %(client)s), 0) AS jobs,
    coalesce((SELECT bytes FROM clients WHERE client = %(client)s), 0)
    + (SELECT coalesce(sum(size), 0) FROM inputs JOIN jobs ON jobs.id = job WHERE client = %(client)s)::bigint AS own,
    (SELECT coalesce(sum(bytes), 0) FROM clients)::bigint
    + (SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM inputs GROUP BY sha256) known)::bigint AS used,
    ARRAY(SELECT DISTINCT sha256 FROM inputs WHERE sha256 = ANY(%(inputs)s)) AS known
"""


class PostgresJobs(Table, JobFiles):
    """Jobs in PostgreSQL, and their files."""

    def __init__(
        self, connections: Connections, schema: str, files: Files, bounds: Bounds, *, now: str, files_every: float
    ) -> None:
        """`now`: the time in SQL. `files_every`: seconds between two looks of all servers for files without a job."""
        Table.__init__(self, connections, schema, bounds, now)
        JobFiles.__init__(self, files)
        self._files_every = files_every
        self.claims = Claims()

    # --- new jobs

    def add(self, job: NewJob) -> KeptJob:
        """See `JobStore.add`."""
        require_id(job.id)
        size = ROW + len(job.document) + job.reserve
        kept, lack = self._insert(job, size)
        if kept is None:
            self.sweep()
            kept, lack = self._insert(job, size)
        if kept is None:
            raise FullError(no_room(size, lack))
        if kept.id != job.id or not job.inputs:
            return kept
        try:
            for sha256, data in job.inputs.items():
                self._files.write("inputs", sha256, data)
        except BaseException:
            self.rows("DELETE FROM jobs WHERE id = %s AND NOT whole RETURNING id", job.id)
            raise
        row = self.row(f"UPDATE jobs SET whole = true WHERE id = %s RETURNING *, {self.notice(WAITS)}", job.id)
        if row is None:
            raise StorageError(f"the inputs of a job took more than {_WRITING:g} s to write: it was given up")
        return job_of(row)

    def _insert(self, job: NewJob, size: int) -> tuple[KeptJob | None, str]:
        """The job, or the one that has its key; or None and why there is no room. One server at a time does this."""
        with self._connections.connected() as connection, connection.transaction():
            connection.execute(LOCK, [self._schema])
            if (before := self._by_key(connection, job)) is not None:
                return before, ""
            facts = {"client": job.client, "inputs": list(job.inputs)}
            found = connection.execute(_FACTS, facts).fetchone()
            assert found is not None
            self._bounds.require_few(found["jobs"])
            new = {sha256: len(data) for sha256, data in job.inputs.items()}
            more = sum(length for sha256, length in new.items() if sha256 not in found["known"])
            lack = self._bounds.lack(found["used"] + more + size, found["own"] + sum(new.values()) + size)
            if lack is not None:
                return None, lack
            return self._inserted(connection, job, size), ""

    def _by_key(self, connection: Connection, job: NewJob) -> KeptJob | None:
        if job.key is None:
            return None
        forget = f"UPDATE jobs SET key = NULL WHERE client = %s AND key = %s AND key_until <= {self._now}"
        connection.execute(forget, [job.client, job.key.key])
        sql = "SELECT * FROM jobs WHERE client = %s AND key = %s"
        row = connection.execute(sql, [job.client, job.key.key]).fetchone()
        if row is not None and row["key_digest"] != job.key.digest:
            raise ReusedKeyError("this Idempotency-Key was used for another request: use a new key")
        return None if row is None else job_of(row)

    def _inserted(self, connection: Connection, job: NewJob, size: int) -> KeptJob:
        key = job.key
        values = {
            "id": job.id,
            "client": job.client,
            "weight": job.weight,
            "priority": PRIORITIES.index(job.priority),
            "model": job.model,
            "document": job.document,
            "images": job.images,
            "state": "waiting",
            "whole": not job.inputs,
            "bytes": size,
            "deadline": job.deadline,
            "key": key and key.key,
            "key_digest": key and key.digest,
        }
        until = "NULL" if key is None else f"{self._now} + {key.seconds:f}"
        row = connection.execute(
            f"INSERT INTO jobs ({', '.join(values)}, created, key_until) "
            f"VALUES ({', '.join(['%s'] * len(values))}, {self._now}, {until}) RETURNING *",
            list(values.values()),
        ).fetchone()
        assert row is not None
        if job.inputs:
            for sha256, data in job.inputs.items():
                connection.execute("INSERT INTO inputs VALUES (%s, %s, %s)", [job.id, sha256, len(data)])
        else:
            connection.execute(f"SELECT {self.notice(WAITS, '%s')}", [job.id])
        return job_of(row)

    # --- questions

    def get(self, job: str) -> KeptJob | None:
        """See `JobStore.get`."""
        if not is_id(job):  # clients send anything, and PostgreSQL refuses texts with NUL
            return None
        row = self.row("SELECT * FROM jobs WHERE id = %s", job)
        return None if row is None else job_of(row)

    def of_client(self, client: str, limit: int, before: str | None) -> list[KeptJob]:
        """See `JobStore.of_client`."""
        if before is not None and not is_id(before):
            return []
        older = "" if before is None else "AND place < (SELECT place FROM jobs WHERE id = %s AND client = %s)"
        values = () if before is None else (before, client)
        sql = f"SELECT * FROM jobs WHERE client = %s {older} ORDER BY place DESC LIMIT %s"
        return [job_of(row) for row in self.rows(sql, client, *values, limit)]

    def ahead(self, job: str) -> int:
        """See `JobStore.ahead`."""
        row = self.row(
            "SELECT coalesce(sum(other.images), 0)::bigint AS images FROM jobs AS other, jobs AS own WHERE own.id = %s "
            "AND other.state = 'waiting' AND other.whole AND (other.priority, other.place) < (own.priority, own.place)",
            job,
        )
        return 0 if row is None else int(row["images"])

    def counts(self) -> Counts:
        """See `JobStore.counts`."""
        rows = self.rows("SELECT state, count(*) AS jobs, sum(images)::bigint AS images FROM jobs GROUP BY state")
        with self._connections.connected() as connection:
            facts = connection.execute(_FACTS, {"client": "", "inputs": []}).fetchone()
        assert facts is not None
        waiting = next((row["images"] for row in rows if row["state"] == "waiting"), 0)
        return Counts(waiting, {row["state"]: row["jobs"] for row in rows}, facts["used"], self._bounds.bytes)

    # --- claims

    def claim(self, alone: bool, without: Collection[str]) -> KeptJob | None:
        """See `JobStore.claim`. A server whose lease has run out claims nothing."""
        row = self.row(
            "WITH first AS (SELECT place, alone FROM jobs WHERE state = 'waiting' AND whole AND client <> ALL(%s) "
            "ORDER BY priority, place LIMIT 1 FOR UPDATE SKIP LOCKED) "
            "UPDATE jobs SET state = 'running', number = number + 1, attempts = attempts + 1, server = %s, "
            f"started = {self._now} FROM first WHERE jobs.place = first.place AND (NOT first.alone OR %s) "
            "AND EXISTS (SELECT FROM servers WHERE servers.id = %s AND lease > clock_timestamp()) "
            f"RETURNING jobs.*, {self.notice(CHANGED)}",
            *(list(without), self.server, alone, self.server),
        )
        if row is None:
            return None
        kept = job_of(row)
        self.claims.add(kept.claim)
        return kept

    def give_back(self, claim: Claim, counted: bool, alone: bool) -> bool:
        """See `JobStore.give_back`."""
        row = self.row(
            "UPDATE jobs SET state = 'waiting', server = NULL, attempts = attempts - %s, alone = alone OR %s "
            f"WHERE {_HELD} RETURNING {self.notice(WAITS)}",
            *(int(not counted), alone, claim.job, claim.number),
        )
        self.claims.remove(claim)
        return row is not None

    def end(
        self,
        claim: Claim,
        state: Ended,
        pictures: Sequence[KeptPicture],
        failure: Failure | None,
        timings: Mapping[str, float],
    ) -> bool:
        """See `JobStore.end`."""
        held = self.end_jobs(_HELD, (claim.job, claim.number), state, failure, pictures, timings)
        self.claims.remove(claim)
        return held > 0

    def cancel(self, job: str) -> KeptJob | None:
        """See `JobStore.cancel`."""
        failure = Failure("cancelled", "the client has cancelled it")
        if is_id(job):
            self.end_jobs(f"id = %s AND {NOT_ENDED}", (job,), "cancelled", failure)
        return self.get(job)

    # --- sweeping

    def sweep(self) -> int:
        """See `JobStore.sweep`. Rows go before files, so that no row names a file that is not there."""
        late = Failure("deadline", "its deadline passed while it waited")
        self.end_jobs(f"state = 'waiting' AND deadline <= {self._now}", (), "failed", late)
        expired = self.rows(
            f"UPDATE jobs SET document = '', pictures = '[]', bytes = %s WHERE expires <= {self._now} "
            "AND document <> '' RETURNING id",
            ROW,
        )
        self.rows(f"DELETE FROM jobs WHERE expires <= {self._now} - %s RETURNING id", self._bounds.result_ttl)
        self.rows(f"DELETE FROM jobs WHERE NOT whole AND created < {self._now} - %s RETURNING id", _WRITING)
        self.rows("DELETE FROM clients WHERE bytes = 0 AND open = 0 RETURNING client")
        forgotten = "DELETE FROM servers WHERE lease < clock_timestamp() - interval '1 day' RETURNING id"
        self.rows(forgotten)
        mine = f"UPDATE meta SET swept = {self._now} WHERE swept <= {self._now} - %s RETURNING swept"
        if self.row(mine, self._files_every) is not None:
            self._remove_unused()
        return len(expired)

    def _remove_unused(self) -> None:
        """Names are listed first: what comes later belongs to somebody."""
        inputs, results = self._files.names("inputs"), self._files.names("results")
        known = {row["sha256"] for row in self.rows("SELECT DISTINCT sha256 FROM inputs")}
        for name in set(inputs) - known:
            self._remove_input(name)
        rows = self.rows(
            "SELECT p->>'name' AS name FROM jobs, json_array_elements(pictures::json) p WHERE pictures <> '[]' "
            "UNION ALL SELECT id || '-' || number FROM jobs WHERE state = 'running'"
        )
        used = {row["name"] for row in rows}
        for name in results:
            if name not in used and name.rpartition("-")[0] not in used:
                self._files.remove("results", name)

    def _remove_input(self, name: str) -> None:
        """A job that needs it may come this moment: it waits, and then finds that the file is not there."""
        with self._connections.connected() as connection, connection.transaction():
            connection.execute(LOCK, [self._schema])
            if connection.execute("SELECT 1 FROM inputs WHERE sha256 = %s LIMIT 1", [name]).fetchone() is None:
                self._files.remove("inputs", name)
