"""All devices of a server: the `Service` that HTTP sees. Places work, and stops it.

Knows neither processes nor HTTP.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from latentrt.serve.messages import Admitted, Done, Event, Failed, Job, Progress, RefusedError
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Load, Service

from .repository import ModelRepository
from .stream import EventStream
from .worker import Worker

logger = logging.getLogger(__name__)

# Another device may take what one refused for these. Not for "starting" and "crashed": a device that was ready has
# ended just now, perhaps by this job, and the others shall not follow.
_ELSEWHERE = ("busy", "client_busy", "deadline")
_STOPPING_RETRY = 10.0  # seconds; by then another server has taken over


@dataclass(eq=False)
class FleetTicket:
    """An accepted job; see `Ticket`."""

    job: Job
    worker: Worker
    stream: EventStream = field(default_factory=EventStream)
    answer: Admitted | None = None
    _calls: dict[int, int] = field(default_factory=dict)  # that each image has made

    @property
    def admitted(self) -> Admitted:
        """See `Ticket`."""
        assert self.answer is not None
        return self.answer

    def events(self) -> AsyncIterator[Event]:
        """See `Ticket`."""
        return self.stream.read()

    def cancel(self) -> None:
        """See `Ticket`."""
        self.worker.cancel(self.job.id)

    def heard(self, event: Event) -> None:
        """An event of this job."""
        if isinstance(event, Progress):
            self._calls[event.image] = event.call
        self.stream.put(event)

    @property
    def work(self) -> float:
        """UNet calls that are not made yet, times megapixels."""
        request = self.job.request
        calls = self.job.images * self.job.calls - sum(self._calls.values())
        return calls * request.width * request.height / 1e6


class Fleet:
    """Workers with the same models. Used from one event loop."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        workers: Sequence[Worker],
        *,
        client_jobs: int = 64,
        happened: Callable[[str, Event], None] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            client_jobs: of one client, on all devices.
            happened: hears every event, with the name of its job's model; for metrics.
        """
        self._happened = happened
        self._models, self._workers, self._client_jobs = models, workers, client_jobs
        self.repository = ModelRepository(models, workers)
        self._tickets: dict[str, FleetTicket] = {}
        self._speeds: dict[Worker, float] = {}  # milliseconds for each unit of `FleetTicket.work`
        self._stopping = self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """See `Service`."""
        return self._models

    async def start(self) -> None:
        """Start all devices; returns when they are ready. Raises `LatentRTError` where one cannot load."""
        starts = [asyncio.ensure_future(worker.start()) for worker in self._workers]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()

    async def submit(self, job: Job, *, accepted: bool = False) -> FleetTicket:
        """See `Service`. `accepted`: it was before the server was told to stop, so it may still start."""
        self._check(job, accepted)
        refused: list[RefusedError] = []
        for worker in self._by_load(job.model):
            try:
                return await self._submit_to(worker, job)
            except RefusedError as error:
                if error.reason not in _ELSEWHERE:
                    raise
                refused.append(error)
                self._check(job, accepted)
        if refused:
            raise min(refused, key=lambda error: float("inf") if error.retry_after is None else error.retry_after)
        wait = min(worker.retry_after for worker in self._workers if job.model in worker.models)
        raise RefusedError("starting", "the models are being loaded", wait)

    def _check(self, job: Job, accepted: bool) -> None:
        if self._closed or (self._stopping and not accepted):
            raise RefusedError("stopping", "the server stops", _STOPPING_RETRY)
        if not any(job.model in worker.models for worker in self._workers):
            raise RefusedError("unknown_model", f"no device serves the model {job.model!r}")
        self.repository.require(job.model)
        if job.id in self._tickets:
            raise ValueError(f"the job {job.id} is under way")
        own = [ticket for ticket in self._tickets.values() if ticket.job.client == job.client]
        most = job.client_jobs or self._client_jobs
        if len(own) >= most:
            first = min((t.answer.estimate for t in own if t.answer is not None), default=1.0)
            text = f"{len(own)} of your jobs are under way: expected at most {most}"
            raise RefusedError("client_busy", text, max(1.0, first))

    def _by_load(self, model: str) -> list[Worker]:
        """Workers that are ready for it, the one with the least work first."""
        ready = [worker for worker in self._workers if worker.ready and model in worker.models]
        return sorted(ready, key=self._work)

    def _work(self, worker: Worker) -> tuple[float, int]:
        """Milliseconds of work, as far as is known, and jobs.

        The jobs tell what is left of them at every moment, and `_measure` how long the device takes for it.
        """
        own = [ticket for ticket in self._tickets.values() if ticket.worker is worker]
        units = sum(ticket.work for ticket in own)
        return units * self._speeds.get(worker, 1.0), len(own)

    def _measure(self, worker: Worker) -> None:
        """Learn a device's speed from the work that it has just told, which is that of its accepted jobs."""
        units = sum(t.work for t in self._tickets.values() if t.worker is worker and t.answer is not None)
        if (told := worker.load().work) > 0 and units > 0:
            self._speeds[worker] = told / units

    async def _submit_to(self, worker: Worker, job: Job) -> FleetTicket:
        ticket = FleetTicket(job, worker)
        self._tickets[job.id] = ticket
        self._idle.clear()

        def listen(event: Event) -> None:
            self._hear(ticket, event)

        try:
            ticket.answer = await worker.submit(job, listen)
        except BaseException:
            self._forget(ticket)
            raise
        self._measure(worker)
        return ticket

    def _hear(self, ticket: FleetTicket, event: Event) -> None:
        if ticket.stream.ended:  # what a device still says of a job that was stopped
            return
        ticket.heard(event)
        if isinstance(event, Done | Failed):
            self._forget(ticket)
        if self._happened is not None:
            self._happened(ticket.job.model, event)

    def _forget(self, ticket: FleetTicket) -> None:
        if self._tickets.get(ticket.job.id) is ticket:
            del self._tickets[ticket.job.id]
        if not self._tickets:
            self._idle.set()

    def loads(self) -> list[Load]:
        """See `Service`."""
        return [worker.load() for worker in self._workers]

    def ready(self, model: str | None = None) -> bool:
        """See `Service`."""
        wanted = [name for name in self._models if self.repository.state(name) == "loaded"]
        names = wanted if model is None else [model]
        return not self._stopping and bool(names) and all(name in wanted and self._is_up(name) for name in names)

    def _is_up(self, model: str) -> bool:
        return any(worker.ready and model in worker.models for worker in self._workers)

    def live(self) -> bool:
        """See `Service`."""
        return all(worker.live for worker in self._workers)

    @property
    def for_accepted_work(self) -> Service:
        """The same service for work that was accepted before, such as kept jobs: it may start while stopping."""
        return _ForAcceptedWork(self)

    @property
    def stopping(self) -> bool:
        """Whether it takes no work any more."""
        return self._stopping

    @property
    def accepted(self) -> int:
        """Jobs that were accepted and have not ended."""
        return len(self._tickets)

    def refuse(self) -> None:
        """Take no new work from now on."""
        self._stopping = True

    async def stop(self, drain_seconds: float) -> int:
        """Take no new work, wait for what was accepted, fail what is left, and end the devices.

        Returns how many jobs were failed.
        """
        self.refuse()
        try:
            await asyncio.wait_for(self._idle.wait(), drain_seconds)
        except TimeoutError:
            logger.warning("%d jobs were not finished in %g s and are stopped", len(self._tickets), drain_seconds)
        self._closed = True
        left = list(self._tickets.values())
        for ticket in left:
            ticket.cancel()
            self._hear(ticket, Failed(ticket.job.id, "stopped", "the server stopped before it was finished"))
        await asyncio.gather(*(worker.close() for worker in self._workers))
        return len(left)

    def kill(self) -> None:
        """End all at once."""
        self.refuse()
        for worker in self._workers:
            worker.kill()


@dataclass(frozen=True, slots=True)
class _ForAcceptedWork:
    """A fleet's `for_accepted_work`."""

    fleet: Fleet

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return self.fleet.models

    async def submit(self, job: Job) -> FleetTicket:
        return await self.fleet.submit(job, accepted=True)

    def loads(self) -> list[Load]:
        return self.fleet.loads()

    def ready(self, model: str | None = None) -> bool:
        return self.fleet.ready(model)

    def live(self) -> bool:
        return self.fleet.live()
