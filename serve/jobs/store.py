"""What a store of jobs keeps, and how it is asked: records, errors and the interface that every store has.

Knows nothing of SQL, files or drawing. A job is claimed before it is drawn; the number of the claim is a fencing token:
whoever lost the claim can change nothing any more, so that no job gets two results. Times are seconds since 1970.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from latentrt.runtime.errors import LatentRTError
from latentrt.serve.messages import FailedKind, Picture, Priority, Progress

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Ended = Literal["done", "failed", "cancelled"]
ENDED: Collection[str] = frozenset(("done", "failed", "cancelled"))
MAX_ATTEMPTS = 3
POISON = f"it was under way {MAX_ATTEMPTS} times when the process that draws died: it is not tried again"


class StateError(LatentRTError):
    """The state folder cannot be used: it is damaged, of another version, or another server has it."""


class StorageError(LatentRTError):
    """The store could not be read or written just now; nothing was changed. `full`: as the disk is full."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class FullError(LatentRTError):
    """The store has no room for another job until old results have expired."""


class ReusedKeyError(LatentRTError):
    """A client has used an idempotency key for another request before."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """By what a client says that a request is the one that it has sent before.

    Attributes:
        digest: hex hash of the request's body.
        seconds: how long the store remembers it.
    """

    key: str
    digest: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to keep.

    Attributes:
        id: at most 64 letters, digits, - and _.
        document: the resolved request as JSON.
        inputs: given pictures and arrays by their hex sha256.
        images: how many it draws.
        reserve: bytes that its pictures take at most.
        deadline: when it must have finished; None is without.
        key: for stores of several servers. Where there is one server, that knows which keys it was sent.
    """

    id: str
    client: str
    model: str
    document: str
    images: int
    reserve: int
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    weight: float = 1.0
    priority: Priority = "interactive"
    deadline: float | None = None
    key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended without all of its pictures; `image` is which of them it is about."""

    kind: FailedKind
    message: str
    image: int | None = None


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """A finished picture of a job; the store has its bytes under `name`."""

    image: int
    seed: int
    height: int
    width: int
    format: str
    size: int
    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to draw a job and to end it; lost when the job is cancelled or claimed again."""

    job: str
    number: int


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A job as the store has it.

    Attributes:
        document: see `NewJob`; empty once the job has expired.
        alone: it was under way when a process died, so that it is drawn with nothing beside it.
        number: of its latest claim.
        attempts: claims that count: those that were not given back unharmed.
        started: time of the latest claim.
        expires: when its pictures are removed; None until it has ended.
        pictures: only of jobs that have ended.
        timings: see `Done`.
    """

    id: str
    client: str
    weight: float
    priority: Priority
    model: str
    document: str
    images: int
    state: State
    alone: bool
    number: int
    attempts: int
    deadline: float | None
    created: float
    started: float | None
    ended: float | None
    expires: float | None
    failure: Failure | None
    pictures: tuple[KeptPicture, ...]
    timings: Mapping[str, float]

    @property
    def claim(self) -> Claim:
        """Its latest claim."""
        return Claim(self.id, self.number)

    @property
    def has_ended(self) -> bool:
        """Whether nothing about it changes any more, but that it expires."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Counts:
    """What a store holds: images that wait, jobs by state, bytes in use or reserved, and the most bytes."""

    waiting_images: int
    jobs: Mapping[State, int]
    bytes: int
    most_bytes: int


class Listener(Protocol):
    """Hears what other servers of a store do. Called on the event loop; nothing is promised to be heard."""

    def waits(self) -> None:
        """There is a job to claim."""

    def changed(self, job: str | None) -> None:
        """The store knows more of a job, or its claim may be lost; None: that may be so for any."""

    def progressed(self, event: Progress) -> None:
        """An image of a job that another server draws has made a call."""


class JobStore(Protocol):
    """Keeps jobs. Every method that waits may raise `StorageError`."""

    @property
    def durable(self) -> bool:
        """Whether its jobs are there after a restart."""

    async def add(self, job: NewJob) -> KeptJob:
        """Keep a new job; on return it is committed. The one that is there for a job with the same key.

        Raises `FullError`, `RefusedError` for too many of a client, `ReusedKeyError`.
        """

    async def get(self, job: str) -> KeptJob | None:
        """A job by its id."""

    async def of_client(self, client: str, *, limit: int, before: str | None = None) -> list[KeptJob]:
        """The jobs of a client, newest first; only those older than the job `before`."""

    async def ahead(self, job: str) -> int:
        """Images that wait in the store before this job's."""

    async def counts(self) -> Counts:
        """For metrics and estimates."""

    async def claim(self, *, alone: bool, without: Collection[str] = ()) -> KeptJob | None:
        """Make the first waiting job running, with its attempt counted, and commit that.

        Args:
            alone: whether a job that has to be alone may be claimed. If not, and such a job is the first, there is
                none to claim: the others wait behind it.
            without: clients whose jobs are left out.
        """

    async def input(self, sha256: str) -> bytes:
        """A given picture or array; raises `StorageError` where it is not what was stored."""

    async def give_back(self, claim: Claim, *, counted: bool, alone: bool = False) -> bool:
        """Make a claimed job waiting again, with its place in the order; whether the claim still held.

        Args:
            counted: whether the attempt was harmful, and stays counted.
            alone: it is drawn alone from now on.
        """

    async def keep_picture(self, claim: Claim, picture: Picture) -> KeptPicture:
        """Write a picture of a claimed job. It counts only once `end` has named it."""

    async def end(
        self,
        claim: Claim,
        state: Ended,
        *,
        pictures: Sequence[KeptPicture] = (),
        failure: Failure | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> bool:
        """End a claimed job and commit that; whether the claim still held. Else nothing has changed."""

    async def cancel(self, job: str) -> KeptJob | None:
        """Cancel a job that has not ended, whoever has claimed it; the job as it is now."""

    async def picture(self, picture: KeptPicture) -> bytes | None:
        """The bytes of a picture; None once it has expired."""

    async def sweep(self) -> int:
        """Remove what has expired and files that belong to no job; how many jobs have expired."""

    def listen(self, listener: Listener) -> None:
        """Tell what other servers do from now on, on the running event loop."""

    def tell(self, event: Progress) -> None:
        """Let the listeners of other servers hear, soon, what this one draws."""

    async def close(self) -> None:
        """Stop using the store; waits for what is being written."""
