"""How much a store keeps, and why it refuses more. Knows no database."""

import re
from dataclasses import dataclass

from latentrt.serve.messages import RefusedError

RETRY_AFTER = 30.0  # seconds
ROW = 1024  # bytes that a row takes besides its document


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

    def require_few(self, jobs: int) -> None:
        """Raise `RefusedError` for a client that has this many jobs that have not ended."""
        if jobs >= self.client_jobs:
            raise RefusedError("client_busy", f"you have {self.client_jobs} jobs that have not ended", RETRY_AFTER)

    def lack(self, used: int, own: int) -> str | None:
        """Why a job cannot be kept, or None.

        A client's jobs may take as much as is left free with them, so that nobody fills the store alone (dynamic
        thresholds, Choudhury and Hahne, 1998).

        Args:
            used: bytes in use or reserved, with the job.
            own: those of the client, with the job.
        """
        if used > self.bytes:
            return f"with it the server would keep {used / 2**20:,.1f} MiB of at most {self.bytes / 2**20:,.1f}"
        free = self.bytes - used
        if own > free:
            return f"with it your jobs would take {own / 2**20:,.1f} MiB and leave {free / 2**20:,.1f} free"
        return None


def is_id(job: str) -> bool:
    """Whether a text can be the id of a job, and so the name of a file."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job) is not None


def require_id(job: str) -> None:
    """Raise `ValueError` for a text that cannot be the id of a job."""
    if not is_id(job):
        raise ValueError(f"the id of a job is {job[:80]!r}")


def no_room(size: int, lack: str) -> str:
    """What a client is told whose job does not fit."""
    return f"this job needs {size / 2**20:,.1f} MiB, and {lack}: try again when results have expired"
