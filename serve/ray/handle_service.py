"""The `Service` of the ingress: jobs go to replicas of the engine, their events come back. Knows nothing of Ray.

What is counted here is counted in this ingress alone: a client's jobs, and those that wait for a replica.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from latentrt.serve.messages import Admitted, Done, Event, Failed, Job, RefusedError
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Load
from latentrt.serve.worker.stream import EventStream

from .engines import Draw, Engines, LostError

logger = logging.getLogger(__name__)
LOOK_EVERY, LOOK_SOON = 1.0, 0.2  # seconds between two questions to all replicas; while none answers
STALE = 10.0  # seconds after which their answers say nothing any more
RETRY = 5.0  # seconds in which a replica has mostly been replaced


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one ingress lets through.

    Attributes:
        client_jobs: of one client.
        waiting: jobs that no replica has answered yet.
        patience: seconds that a job may wait for an answer.
        to_zero: whether there may be no replica, and a job starts one.
    """

    client_jobs: int = 64
    waiting: int = 64
    patience: float = 30.0
    to_zero: bool = False


@dataclass(eq=False)
class HandleTicket:
    """A job that was sent to a replica; see `Ticket`."""

    job: Job
    draw: Draw
    hear: Callable[["HandleTicket", Event], None]
    answer: asyncio.Future[Admitted]
    stream: EventStream = field(default_factory=EventStream)

    @property
    def admitted(self) -> Admitted:
        """See `Ticket`."""
        return self.answer.result()

    def events(self) -> AsyncIterator[Event]:
        """See `Ticket`."""
        return self.stream.read()

    def cancel(self) -> None:
        """See `Ticket`. The replica says nothing of a job that is cancelled, so its end is told here."""
        if not self.stream.ended:
            self.hear(self, Failed(self.job.id, "cancelled", "cancelled by the client"))
            self.draw.cancel()


class HandleService:
    """See `Service`."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        engines: Engines,
        limits: ServiceLimits | None = None,
        *,
        happened: Callable[[str, Event], None] | None = None,
    ) -> None:
        """`happened` hears every event, with the name of its job's model; for metrics."""
        self._models, self._engines, self._limits = models, engines, limits or ServiceLimits()
        self._happened = happened
        self._tickets: dict[str, HandleTicket] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._loads: list[Load] = []
        self._looked = float("-inf")

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """See `Service`."""
        return self._models

    async def submit(self, job: Job) -> HandleTicket:
        """See `Service`. The replica decides; before, the ingress bounds what waits for one."""
        self._check(job)
        answer: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        # In a context of its own: Ray cancels all that a request has called when its client leaves, and jobs with an
        # Idempotency-Key are drawn to their end.
        context = contextvars.Context()
        draw = context.run(self._engines.draw, job)
        ticket = self._tickets[job.id] = HandleTicket(job, draw, self._hear, answer)
        reader = asyncio.create_task(self._read(ticket), context=context)
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            await asyncio.wait_for(asyncio.shield(answer), self._limits.patience)
        except TimeoutError:
            ticket.cancel()
            raise self._not_taken() from None
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        return ticket

    def _check(self, job: Job) -> None:
        if job.model not in self._models:
            raise RefusedError("unknown_model", f"no device serves the model {job.model!r}")
        if job.id in self._tickets:
            raise ValueError(f"the job {job.id} is under way")
        own = sum(ticket.job.client == job.client for ticket in self._tickets.values())
        if own >= (most := job.client_jobs or self._limits.client_jobs):
            text = f"{own} of your jobs are under way: expected at most {most}"
            raise RefusedError("client_busy", text, self._expected())
        waiting = sum(not ticket.answer.done() for ticket in self._tickets.values())
        if waiting >= self._limits.waiting:
            raise self._busy(f"{waiting} jobs wait for a replica: expected at most {self._limits.waiting}")

    def _not_taken(self) -> RefusedError:
        if not self.loads():
            return RefusedError("starting", "no replica runs yet: one is being started", RETRY)
        return self._busy(f"no replica has taken it in {self._limits.patience:g} s")

    def _busy(self, why: str) -> RefusedError:
        return RefusedError("busy", f"the server is busy: {why}", self._expected())

    def _expected(self) -> float:
        """Seconds until the replica with the least work has done half of it."""
        return max(1.0, min((load.work / 2000 for load in self.loads()), default=RETRY))

    async def _read(self, ticket: HandleTicket) -> None:
        """Take what the replica says of a job as it comes, also where the client is slow."""
        job, answer = ticket.job, ticket.answer
        try:
            async for message in ticket.draw.messages():
                if isinstance(message, Admitted):
                    if not answer.done():
                        answer.set_result(message)
                elif isinstance(message, RefusedError):
                    raise message
                else:
                    for event in message:
                        self._hear(ticket, event)
            failure: Exception = LostError("the replica said no more of the job")
        except asyncio.CancelledError:  # of the call, which Ray may cancel by itself
            failure = LostError("the call was cancelled")
        except Exception as error:
            failure = error
        if ticket.stream.ended:
            answer.cancel()
        elif not answer.done():
            answer.set_exception(_refusal(failure))
            self._forget(ticket)
        else:
            self._hear(ticket, _failed(job.id, failure))

    def _hear(self, ticket: HandleTicket, event: Event) -> None:
        if ticket.stream.ended:
            return
        ticket.stream.put(event)
        if isinstance(event, Done | Failed):
            self._forget(ticket)
        if self._happened is not None and ticket.answer.done():
            self._happened(ticket.job.model, event)

    def _forget(self, ticket: HandleTicket) -> None:
        if self._tickets.get(ticket.job.id) is ticket:
            del self._tickets[ticket.job.id]

    # --- what the replicas do

    async def watch(self) -> None:
        """Ask all replicas what they do, for ever."""
        while True:
            with suppress(LostError, RefusedError, TimeoutError):  # then the last answers hold until they are stale
                self._loads = await self._engines.loads()
                self._looked = time.monotonic()
            await asyncio.sleep(LOOK_EVERY if self.loads() else LOOK_SOON)

    def loads(self) -> list[Load]:
        """See `Service`. As of a moment ago."""
        return self._loads if time.monotonic() - self._looked < STALE else []

    def ready(self, model: str | None = None) -> bool:
        """See `Service`. Every replica has all models, or loads them when they are asked for."""
        known = model is None or model in self._models
        return known and (self._limits.to_zero or any(load.ready for load in self.loads()))

    def live(self) -> bool:
        """See `Service`. Ray starts anew what has ended."""
        return True


def _refusal(failure: Exception) -> Exception:
    """What `submit` raises where no replica has accepted a job."""
    if isinstance(failure, LostError):
        return RefusedError("crashed", f"the replica that it was sent to has ended: {failure}", RETRY)
    return failure


def _failed(job: str, failure: Exception) -> Failed:
    if isinstance(failure, LostError):
        return Failed(job, "crashed", f"the replica that drew it has ended: {failure}")
    logger.error("the job %s failed on its way", job, exc_info=failure)
    return Failed(job, "internal", f"its replica failed: {type(failure).__name__}")
