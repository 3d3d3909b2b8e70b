"""The operations of a store, one transaction each: files are written before the row that names them is committed.

Used from one thread; blocks. Knows no event loop.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from latentrt.serve.messages import Picture, RefusedError

from .database import PRIORITIES, Database, job_of, json_of
from .files import Files
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
    StorageError,
)

RETRY_AFTER = 30.0  # seconds
ROW = 1024  # bytes that a row takes besides its document
_HELD = "id = ? AND number = ? AND state = 'running'"
_ENDED = "state IN ('done', 'failed', 'cancelled')"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a store keeps.

    Attributes:
        client_jobs: jobs of one client that wait or are drawn.
        bytes: of documents, inputs and results, with what accepted jobs may still need.
        result_ttl: seconds that results are kept after the end of their job. For as long again, the store knows that
            they have been there.
    """

    client_jobs: int = 10_000
    bytes: int = 10 << 30
    result_ttl: float = 24 * 3600.0


class KeptJobs:
    """Jobs in a database, and their files."""

    def __init__(self, database: Database, files: Files, bounds: Bounds, clock: Callable[[], float]) -> None:
        self._database, self._files, self._bounds, self._clock = database, files, bounds, clock

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
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job.id):  # it becomes the name of a file
            raise ValueError(f"the id of a job is {job.id[:80]!r}")
        self._require_few(job.client)
        size = ROW + len(job.document) + job.reserve
        lack = self._lacks_room(job, size)
        if lack is not None:
            self.sweep()
            lack = self._lacks_room(job, size)
        if lack is not None:
            raise FullError(f"this job needs {size / 2**20:,.1f} MiB, and {lack}: try again when results have expired")
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
        return job_of(row)

    def _require_few(self, client: str) -> None:
        most = self._bounds.client_jobs
        if self._database.value(f"SELECT count(*) FROM jobs WHERE client = ? AND NOT {_ENDED}", client) >= most:
            raise RefusedError("client_busy", f"you have {most} jobs that have not ended", RETRY_AFTER)

    def _lacks_room(self, job: NewJob, size: int) -> str | None:
        """Why a job cannot be kept, or None.

        A client's jobs may take as much as is left free with them, so that nobody fills the store alone (dynamic
        thresholds, Choudhury and Hahne, 1998).
        """
        used, most = self._used(job.inputs) + size, self._bounds.bytes
        if used > most:
            return f"with it the server would keep {used / 2**20:,.1f} MiB of at most {most / 2**20:,.1f}"
        own = self._database.value("SELECT coalesce(sum(bytes), 0) FROM jobs WHERE client = ?", job.client)
        own += self._database.value(
            "SELECT coalesce(sum(size), 0) FROM inputs JOIN jobs ON jobs.id = inputs.job WHERE client = ?", job.client
        )
        own += size + sum(map(len, job.inputs.values()))
        if own > most - used:
            return f"with it your jobs would take {own / 2**20:,.1f} MiB and leave {(most - used) / 2**20:,.1f} free"
        return None

    def _used(self, new: Mapping[str, bytes]) -> int:
        """Bytes in use or reserved, with new inputs that are not there yet."""
        known = self._database.rows("SELECT sha256, max(size) FROM inputs GROUP BY sha256")
        inputs = dict(map(tuple, known)) | {sha256: len(data) for sha256, data in new.items()}
        jobs: int = self._database.value("SELECT coalesce(sum(bytes), 0) FROM jobs")
        return jobs + sum(inputs.values())

    def get(self, job: str) -> KeptJob | None:
        """See `JobStore.get`."""
        row = self._database.row("SELECT * FROM jobs WHERE id = ?", job)
        return None if row is None else job_of(row)

    def of_client(self, client: str, limit: int, before: str | None) -> list[KeptJob]:
        """See `JobStore.of_client`."""
        older = "" if before is None else " AND place < (SELECT place FROM jobs WHERE id = ? AND client = ?)"
        values = () if before is None else (before, client)
        sql = f"SELECT * FROM jobs WHERE client = ?{older} ORDER BY place DESC LIMIT ?"
        return [job_of(row) for row in self._database.rows(sql, client, *values, limit)]

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
        return None if row is None else job_of(row)

    def input(self, sha256: str) -> bytes:
        """See `JobStore.input`."""
        data = self._files.read("inputs", sha256)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise StorageError(f"the given picture {sha256[:16]}… {'is missing' if data is None else 'is damaged'}")
        return data

    def give_back(self, claim: Claim, counted: bool, alone: bool) -> bool:
        """See `JobStore.give_back`."""
        with self._database.transaction():
            changed = self._database.change(
                f"UPDATE jobs SET state = 'waiting', attempts = attempts - ?, alone = alone OR ? WHERE {_HELD}",
                *(not counted, alone, claim.job, claim.number),
            )
        return changed == 1

    def keep_picture(self, claim: Claim, picture: Picture) -> KeptPicture:
        """See `JobStore.keep_picture`."""
        name = f"{claim.job}-{claim.number}-{picture.image}.{picture.format}"
        self._files.write("results", name, picture.data)
        return KeptPicture(
            picture.image,
            picture.seed,
            picture.height,
            picture.width,
            picture.format,
            len(picture.data),
            hashlib.sha256(picture.data).hexdigest(),
            name,
        )

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
            *(state, json_of(failure), now, now + self._bounds.result_ttl),
            json.dumps([asdict(picture) for picture in pictures]),
            json.dumps(dict(timings or {})),
            *(ROW + sum(picture.size for picture in pictures), job),
        )
        self._database.change("DELETE FROM inputs WHERE job = ?", job)

    def picture(self, picture: KeptPicture) -> bytes | None:
        """See `JobStore.picture`."""
        return self._files.read("results", picture.name)

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
