"""Draws the jobs of a store with a service: in order, a bounded number at a time, each at most once at a time.

Knows stores and services. Which of the submitted jobs is drawn first is the dispatcher's business.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from latentrt.serve.messages import Failed, Job, Progress, RefusedError
from latentrt.serve.service import Service

from .drawing import Drawing, draw
from .events import EventLogs
from .outlook import Outlook, Pace
from .resolved import ModelChangedError, Resolver
from .store import Failure, IdempotencyKey, JobStore, KeptJob, StorageError

logger = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a runner works.

    Attributes:
        window: jobs that are submitted at a time.
        client_window: those of one client, so that the long queue of one does not hold up others.
        poll: seconds until the store is asked again, where nobody has said that there is work.
        look: seconds until devices are looked at again, while none is ready.
        sweep: seconds between two sweeps of the store.
        longest_pause: seconds between two tries, where the service is busy or the store cannot be written.
    """

    window: int = 64
    client_window: int = 16
    poll: float = 5.0
    look: float = 0.2
    sweep: float = 60.0
    longest_pause: float = 30.0


class Runner:
    """Accepts jobs, keeps them, and draws them. Used from one event loop."""

    def __init__(
        self,
        service: Service,
        store: JobStore,
        *,
        options: RunnerOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.logs = store, EventLogs()
        self._service, self._options, self._clock = service, options or RunnerOptions(), clock
        self._resolver = Resolver(lambda: service.models)
        self._pace = Pace()
        self._under_way: dict[str, Drawing] = {}
        self._followers: set[asyncio.Task[None]] = set()
        # Jobs that other servers have changed since they were looked at, and those that are looked at.
        self._unseen: set[str] = set()
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._submits: asyncio.Task[None] | None = None
        self._sweeps: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._stopping = False
        # In time that does not jump: when the service may be asked again, and when for jobs of these clients.
        self._rest, self._refusals = 0.0, 0
        self._resting_clients: dict[str, float] = {}
        self._resting_while_busy: set[str] = set()  # those that were refused while there was other work

    # --- for the faces

    async def accept(self, job: Job, key: IdempotencyKey | None = None) -> KeptJob:
        """Keep a job to draw it later; on return it is committed. Raises what `JobStore.add` raises."""
        new = await asyncio.to_thread(self._resolver.new_job, job, now=self._clock())
        kept = await self.store.add(dataclasses.replace(new, key=key))
        self._woken.set()
        return kept

    async def cancel(self, job: str) -> KeptJob | None:
        """Cancel a job that has not ended; the job as it is now. Raises `StorageError`."""
        kept = await self.store.cancel(job)
        if kept is not None and kept.has_ended:
            if (drawing := self._under_way.get(job)) is not None:
                drawing.cancel()
            if (log := self.logs.find(job)) is not None:
                log.end(kept)
        return kept

    async def outlook(self, job: KeptJob) -> Outlook:
        """How long a job may take from now on. Raises `StorageError`."""
        if job.has_ended:
            return Outlook(None, None)
        drawing = self._under_way.get(job.id)
        if drawing is not None and drawing.admitted is not None:
            return drawing.outlook(self._clock())
        if job.state == "running" and drawing is None:  # at another server
            return Outlook(0, None)
        ahead = await self.store.ahead(job.id)
        return self._pace.outlook(self._service.loads(), ahead, job.images)

    def is_started(self, job: KeptJob) -> bool:
        """Whether an image of a job has been begun, rather than that it waits in the store or at the service."""
        drawing = self._under_way.get(job.id)
        return job.state == "running" and (drawing is None or drawing.started)

    # --- what other servers of the store do; see `Listener`

    def waits(self) -> None:
        """There is a job to claim."""
        self._woken.set()

    def changed(self, job: str | None) -> None:
        """Look at a job that is drawn or followed here, or at all of them."""
        if self._stopping:
            return
        known = {*self._under_way, *self.logs.names()}
        for name in known if job is None else known & {job}:
            self._unseen.add(name)
            if name not in self._looks:
                self._looks[name] = asyncio.create_task(self._look_at(name))
        if job is None:
            self._woken.set()

    def progressed(self, event: Progress) -> None:
        """Tell those who follow the job here."""
        log = self.logs.find(event.job)
        if log is not None and not log.is_drawn_here:
            log.progress(event)

    async def _look_at(self, job: str) -> None:
        try:
            while job in self._unseen:
                self._unseen.remove(job)
                kept = await self.store.get(job)
                drawing, log = self._under_way.get(job), self.logs.find(job)
                if drawing is not None and drawing.has_lost(kept):
                    drawing.cancel()
                if log is not None and kept is not None:
                    log.catch_up(kept)
        except StorageError:  # followers ask again with the next heartbeat, and leases with the next beat
            self._unseen.discard(job)
        finally:
            del self._looks[job]

    # --- the loop

    def start(self) -> None:
        """Begin to draw what waits in the store."""
        self.store.listen(self)
        self._submits = asyncio.create_task(self._submit_for_ever())
        self._sweeps = asyncio.create_task(self._sweep_for_ever())

    async def stop(self, seconds: float) -> None:
        """Wait for what is under way, and then submit nothing more; what is not finished waits for the next start.

        Without a next start, as jobs in memory have none, those that wait are drawn as well while there is time.
        """
        until = time.monotonic() + seconds
        while not self.store.durable and time.monotonic() < until and await self._has_work():
            await asyncio.sleep(min(0.05, seconds))
        self._stopping = True
        self._woken.set()
        if self._submits is not None:  # what it submits last is followed, too
            await asyncio.wait([self._submits], timeout=max(0.0, until - time.monotonic()))
        if self._followers:
            await asyncio.wait(self._followers, timeout=max(0.0, until - time.monotonic()))
        tasks = (self._submits, self._sweeps, *self._followers, *self._looks.values())
        left = [task for task in tasks if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for drawing in list(self._under_way.values()):
            drawing.abandon()
            with suppress(StorageError):  # then it counts as under way when the process ended
                await self.store.give_back(drawing.kept.claim, counted=False)
        self._under_way.clear()

    async def _has_work(self) -> bool:
        return bool(self._under_way) or (await self.store.counts()).waiting_images > 0

    async def _submit_for_ever(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                pause = await self._top_up()
            except StorageError as error:
                logger.warning("%s", error)
                pause = self._options.poll
            except Exception:
                logger.exception("jobs cannot be submitted")
                pause = self._options.poll
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._options.sweep)
            try:
                if expired := await self.store.sweep():
                    logger.info("%d jobs have expired", expired)
            except StorageError as error:
                logger.warning("%s", error)

    async def _top_up(self) -> float:
        """Submit jobs while there are some and the service takes them; seconds until it is worth trying again."""
        while not self._stopping and len(self._under_way) < self._options.window:
            if (rest := self._rest - time.monotonic()) > 0:
                return rest
            if any(drawing.kept.alone for drawing in self._under_way.values()):
                break
            if not any(load.ready for load in self._service.loads()):
                # Nothing is claimed only to be given back: if the server were killed between the two, it would count.
                return self._options.look
            kept = await self.store.claim(alone=not self._under_way, without=self._left_out())
            if kept is None:
                break
            await self._submit(kept)
        rests = [until - time.monotonic() for until in self._resting_clients.values()]
        if self._resting_while_busy:
            rests.append(self._options.look)
        return max(0.01, min([self._options.poll, *rests]))

    def _left_out(self) -> set[str]:
        """Clients that have enough under way, or that the service has refused a moment ago."""
        now, over = time.monotonic(), set() if self._service_has_work() else self._resting_while_busy
        resting = self._resting_clients.items()
        self._resting_clients = {client: until for client, until in resting if until > now and client not in over}
        self._resting_while_busy &= self._resting_clients.keys()
        clients = [drawing.kept.client for drawing in self._under_way.values()]
        full = {client for client in clients if clients.count(client) >= self._options.client_window}
        return full | set(self._resting_clients)

    def _service_has_work(self) -> bool:
        return any(load.waiting or load.running for load in self._service.loads())

    async def _submit(self, kept: KeptJob) -> None:
        if (before := self._under_way.get(kept.id)) is not None:  # its claim was lost while the store was away
            before.cancel()
            await before.left.wait()
        drawing = Drawing(kept, self.store, self.logs.of(kept.id), self._insist)
        self._under_way[kept.id] = drawing
        try:
            job = await self._loaded(kept)
            if job.deadline is not None and job.deadline <= 0:
                raise RefusedError("deadline", "its deadline passed while it waited")
            drawing.admit(await self._service.submit(job), self._clock())
            self._refusals = 0
        except RefusedError as error:
            await self._refused(drawing, error)
        except ModelChangedError as error:
            await drawing.fail(Failure("model_changed", str(error)))
        except StorageError as error:
            await drawing.fail(Failure("internal", str(error)))
        except Exception as error:
            logger.exception("job %s cannot be submitted", kept.id)
            await drawing.fail(Failure("internal", f"it cannot be submitted: {type(error).__name__}"))
        if drawing.admitted is None:
            self._left(drawing)
            return
        task = asyncio.create_task(self._follow(drawing))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _loaded(self, kept: KeptJob) -> Job:
        inputs = {sha256: await self.store.input(sha256) for sha256 in self._resolver.inputs_of(kept)}
        return await asyncio.to_thread(self._resolver.job, kept, inputs.__getitem__, now=self._clock())

    async def _refused(self, drawing: Drawing, error: RefusedError) -> None:
        """The job waits on where trying again may help; its attempt does not count where it cannot have begun."""
        kept = drawing.kept
        if error.reason == "crashed":  # perhaps by this job, so this attempt counts
            return await drawing.failed(Failed(kept.id, "crashed", error.message))
        if error.reason == "deadline":
            return await drawing.fail(Failure("deadline", error.message))
        if error.reason == "unknown_model":
            return await drawing.fail(Failure("model_changed", error.message))
        if error.retry_after is None and error.reason in ("busy", "client_busy"):
            return await drawing.fail(Failure("input", error.message))
        await drawing.give_back(counted=False)
        self._refusals += 1
        pause = error.retry_after or 0.1 * 2 ** min(self._refusals, 10)
        until = time.monotonic() + min(max(pause, 0.01), self._options.longest_pause)
        if error.reason in ("busy", "client_busy"):  # jobs of others may fit in, in another group or set of LoRAs
            self._resting_clients[kept.client] = until
            if self._service_has_work():
                self._resting_while_busy.add(kept.client)
        elif error.reason == "unloaded":  # until the operator has it loaded again, others go on
            self._resting_clients[kept.client] = until
        else:
            self._rest = until
        return None

    async def _follow(self, drawing: Drawing) -> None:
        done = await draw(drawing)
        if done is not None:
            self._pace.note(done, drawing.kept.images)
        self._left(drawing)

    def _left(self, drawing: Drawing) -> None:
        drawing.left.set()
        if self._under_way.get(drawing.kept.id) is drawing:  # else it has been claimed again by now
            drawing.log.is_drawn_here = False
            del self._under_way[drawing.kept.id]
        self._woken.set()

    async def _insist(self, write: Callable[[], Awaitable[R]]) -> R:
        """Try to write until it works; a job is not ended before that is committed."""
        pause = 0.1
        while True:
            try:
                return await write()
            except StorageError as error:
                logger.warning("%s; trying again in %.1f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._options.longest_pause)
