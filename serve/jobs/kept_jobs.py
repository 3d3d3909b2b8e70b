"""The operations of a store, one transaction each: files are written before the row that names them is committed.

Used from one thread; blocks. Knows no event loop.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence

from .bounds import ROW, Bounds, no_room, require_id
from .database import Database
from .files import Files
from .job_files import JobFiles
from .rows import PRIORITIES, failure_text, job_of, pictures_text, timings_text
from .store import (
    MAX_ATTEMPTS,
    POISON,
    Claim,
    Counts,
    Ended,
    Failure,
    FullError,
    KeptJob,
    KeptPicture,
    NewJob,
)

_HELD = "id = ? AND number = ? AND state = 'running'"
_ENDED = "state IN ('done', 'failed', 'cancelled')"


class KeptJobs(JobFiles):
    """Jobs in a database, and their files."""

    def __init__(self, database: Database, files: Files, bounds: Bounds, clock: Callable[[], float]) -> None:
        super().__init__(files)
        self._database, self._bounds, self._clock = database, bounds, clock

    def recover(self) -> int:
        """Make jobs wait again that were under way when the last process died; how many there were.

        They are drawn alone from now on. Those that have no attempt left fail.
        """
        with self._database.transaction():
            jobs = self._database.rows("SELECT id FROM jobs WHERE state = 'running' AND attempts >= ?", MAX_ATTEMPTS)
            for (job,) in jobs:
                self._end(job, "failed", Failure("poison", POISON))
            again = "UPDATE jobs SET state = 'waiting', alone = 1 WHERE state = 'running'"
            return len(jobs) + self._database.change(again)

    def add(self, job: NewJob) -> KeptJob:
        """See `JobStore.add`."""
        require_id(job.id)
        self._require_few(job.client)
        size = ROW + len(job.document) + job.reserve
        lack = self._lacks_room(job, size)
        if lack is not None:
            self.sweep()
            lack = self._lacks_room(job, size)
        if lack is not None:
            raise FullError(no_room(size, lack))
        for sha256, data in job.inputs.items():
            self._files.write("inputs", sha256, data)
        with self._database.transaction():
            row = self._database.row(
                "INSERT INTO jobs (id, client, weight, priority, model, document, images, state, bytes, deadline, "
                "created) VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting', ?, ?, ?) RETURNING *",
                *(job.id, job.client, job.weight, PRIORITIES.index(job.priority), job.model, job.document, job.images),
                *(size, job.deadline, self._clock()),
            )
            for sha256, data in job.inputs.items():
                self._database.change("INSERT INTO inputs VALUES (?, ?, ?)", job.id, sha256, len(data))
        assert row is not None
        return job_of(dict(row))

    def _require_few(self, client: str) -> None:
        sql = f"SELECT count(*) FROM jobs WHERE client = ? AND NOT {_ENDED}"
        self._bounds.require_few(self._database.value(sql, client))

    def _lacks_room(self, job: NewJob, size: int) -> str | None:
        """Why a job cannot be kept, or None."""
        own = self._database.value("SELECT coalesce(sum(bytes), 0) FROM jobs WHERE client = ?", job.client)
        own += self._database.value(
            "SELECT coalesce(sum(size), 0) FROM inputs JOIN jobs ON jobs.id = inputs.job WHERE client = ?", job.client
        )
        own += size + sum(map(len, job.inputs.values()))
        return self._bounds.lack(self._used(job.inputs) + size, own)

    def _used(self, new: Mapping[str, bytes]) -> int:
        """Bytes in use or reserved, with new inputs that are not there yet."""
        known = self._database.rows("SELECT sha256, max(size) FROM inputs GROUP BY sha256")
        inputs = dict(map(tuple, known)) | {sha256: len(data) for sha256, data in new.items()}
        jobs: int = self._database.value("SELECT coalesce(sum(bytes), 0) FROM jobs")
        return jobs + sum(inputs.values())

    def get(self, job: str) -> KeptJob | None:
        """See `JobStore.get`."""
        row = self._database.row("SELECT * FROM jobs WHERE id = ?", job)
        return None if row is None else job_of(dict(row))

    def of_client(self, client: str, limit: int, before: str | None) -> list[KeptJob]:
        """See `JobStore.of_client`."""
        older = "" if before is None else " AND place < (SELECT place FROM jobs WHERE id = ? AND client = ?)"
        values = () if before is None else (before, client)
        sql = f"SELECT * FROM jobs WHERE client = ?{older} ORDER BY place DESC LIMIT ?"
        return [job_of(dict(row)) for row in self._database.rows(sql, client, *values, limit)]

    def ahead(self, job: str) -> int:
        """See `JobStore.ahead`."""
        result: int = self._database.value(
            "SELECT coalesce(sum(other.images), 0) FROM jobs AS other, jobs AS own WHERE own.id = ? AND "
            "other.state = 'waiting' AND (other.priority, other.place) < (own.priority, own.place)",
            job,
        )
        return result

    def counts(self) -> Counts:
        """See `JobStore.counts`."""
        rows = self._database.rows("SELECT state, count(*), sum(images) FROM jobs GROUP BY state")
        waiting = next((images for state, _, images in rows if state == "waiting"), 0)
        return Counts(waiting, {state: count for state, count, _ in rows}, self._used({}), self._bounds.bytes)

    def claim(self, alone: bool, without: Collection[str]) -> KeptJob | None:
        """See `JobStore.claim`."""
        left_out = f" AND client NOT IN ({', '.join('?' * len(without))})" if without else ""
        first = f"SELECT id FROM jobs WHERE state = 'waiting'{left_out} ORDER BY priority, place LIMIT 1"
        with self._database.transaction():
            row = self._database.row(
                "UPDATE jobs SET state = 'running', number = number + 1, attempts = attempts + 1, started = ? "
                f"WHERE id = ({first}) AND (NOT alone OR ?) RETURNING *",
                *(self._clock(), *without, alone),
            )
        return None if row is None else job_of(dict(row))

    def give_back(self, claim: Claim, counted: bool, alone: bool) -> bool:
        """See `JobStore.give_back`."""
        with self._database.transaction():
            changed = self._database.change(
                f"UPDATE jobs SET state = 'waiting', attempts = attempts - ?, alone = alone OR ? WHERE {_HELD}",
                *(not counted, alone, claim.job, claim.number),
            )
        return changed == 1

    def end(
        self,
        claim: Claim,
        state: Ended,
        pictures: Sequence[KeptPicture],
        failure: Failure | None,
        timings: Mapping[str, float],
    ) -> bool:
        """See `JobStore.end`."""
        with self._database.transaction():
            held = self._database.row(f"SELECT 1 FROM jobs WHERE {_HELD}", claim.job, claim.number) is not None
            if held:
                self._end(claim.job, state, failure, pictures, timings)
        return held

    def cancel(self, job: str) -> KeptJob | None:
        """See `JobStore.cancel`."""
        with self._database.transaction():
            if self._database.row(f"SELECT 1 FROM jobs WHERE id = ? AND NOT {_ENDED}", job) is not None:
                self._end(job, "cancelled", Failure("cancelled", "the client has cancelled it"))
        return self.get(job)

    def _end(
        self,
        job: str,
        state: Ended,
        failure: Failure | None,
        pictures: Sequence[KeptPicture] = (),
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Within a transaction. Nothing draws the job any more, so its inputs are not needed."""
        now = self._clock()
        self._database.change(
            "UPDATE jobs SET state = ?, failure = ?, ended = ?, expires = ?, pictures = ?, timings = ?, "
            "bytes = ? + length(document) WHERE id = ?",
            *(state, failure_text(failure), now, now + self._bounds.result_ttl),
            pictures_text(pictures),
            timings_text(timings),
            *(ROW + sum(picture.size for picture in pictures), job),
        )
        self._database.change("DELETE FROM inputs WHERE job = ?", job)

    def sweep(self) -> int:
        """See `JobStore.sweep`. Rows go before files, so that no row names a file that is not there."""
        now = self._clock()
        late = Failure("deadline", "its deadline passed while it waited")
        with self._database.transaction():
            for (job,) in self._database.rows("SELECT id FROM jobs WHERE state = 'waiting' AND deadline <= ?", now):
                self._end(job, "failed", late)
            expired = self._database.change(
                "UPDATE jobs SET document = '', pictures = '[]', bytes = ? WHERE expires <= ? AND document <> ''",
                *(ROW, now),
            )
            self._database.change("DELETE FROM jobs WHERE expires <= ?", now - self._bounds.result_ttl)
        self._remove_unused()
        return expired

    def _remove_unused(self) -> None:
        inputs = {sha256 for (sha256,) in self._database.rows("SELECT sha256 FROM inputs")}
        for name in set(self._files.names("inputs")) - inputs:
            self._files.remove("inputs", name)
        named = self._database.rows("SELECT pictures FROM jobs WHERE pictures <> '[]'")
        results = {picture["name"] for (pictures,) in named for picture in json.loads(pictures)}
        running = self._database.rows("SELECT id, number FROM jobs WHERE state = 'running'")
        under_way = {f"{job}-{number}" for job, number in running}
        for name in set(self._files.names("results")) - results:
            if name.rpartition("-")[0] not in under_way:
                self._files.remove("results", name)
