"""One claimed job on its way through a service: what its events mean for the store and for those who follow it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from latentrt.serve.messages import Admitted, Done, Failed, Picture, Preview, Progress, Started
from latentrt.serve.service import Ticket

from .events import EventLog
from .outlook import Outlook
from .store import MAX_ATTEMPTS, POISON, Ended, Failure, JobStore, KeptJob, KeptPicture, StorageError

logger = logging.getLogger(__name__)
R = TypeVar("R")


class Insist(Protocol):
    """Tries to write until it works."""

    async def __call__(self, write: Callable[[], Awaitable[R]], /) -> R:
        """What `write` returns."""


class Drawing:
    """A claimed job. Writes what happens to it; all of that is void once the claim is lost."""

    def __init__(self, kept: KeptJob, store: JobStore, log: EventLog, insist: Insist) -> None:
        self.kept, self.log = kept, log
        self.started = False
        self.admitted: Admitted | None = None
        self.ticket: Ticket | None = None
        self.left = asyncio.Event()  # nothing here has to do with it any more
        self.pictures: list[KeptPicture] = []
        self._store, self._insist = store, insist
        self._admitted_at = 0.0
        self._is_cancelled = False
        self._problem: str | None = None
        log.state("waiting", kept.attempts)
        log.is_drawn_here = True

    def admit(self, ticket: Ticket, now: float) -> None:
        """The service has taken it."""
        self.ticket, self.admitted, self._admitted_at = ticket, ticket.admitted, now
        if self._is_cancelled:
            ticket.cancel()

    def cancel(self) -> None:
        """The store has cancelled it: it need not be drawn any more."""
        self._is_cancelled = True
        self.abandon()

    def has_lost(self, now: KeptJob | None) -> bool:
        """Whether the claim is lost. `now`: the job in the store, perhaps as it was before the claim."""
        claimed = self.kept.number
        return (
            now is None or now.has_ended or now.number > claimed or (now.number == claimed and now.state == "waiting")
        )

    def abandon(self) -> None:
        """Stop drawing it."""
        if self.ticket is not None:
            self.ticket.cancel()

    def outlook(self, now: float) -> Outlook:
        """What the service has promised."""
        assert self.admitted is not None
        left = max(0.0, self._admitted_at + self.admitted.estimate - now)
        return Outlook(0 if self.started else self.admitted.position, left)

    def start(self) -> None:
        """Its first image is being drawn."""
        self.started = True
        self.log.state("running", self.kept.attempts)

    def progress(self, event: Progress) -> None:
        """An image has made a call."""
        self.log.progress(event)
        self._store.tell(event)

    async def keep(self, picture: Picture) -> None:
        """Write a picture. Where that fails, this job fails, and the others go on."""
        if self._is_cancelled or self._problem is not None:
            return
        try:
            self.pictures.append(await self._store.keep_picture(self.kept.claim, picture))
        except StorageError as error:
            logger.warning("a picture of job %s cannot be kept: %s", self.kept.id, error)
            self._problem = f"picture {picture.image} cannot be kept: {error}"
            self.abandon()

    async def done(self, event: Done) -> None:
        """All of its pictures have been drawn."""
        if self._problem is not None:
            return await self.fail(Failure("internal", self._problem))
        pictures = sorted(self.pictures, key=lambda picture: picture.image)
        if [picture.image for picture in pictures] != list(range(self.kept.images)):
            return await self.fail(Failure("internal", "not all of its pictures have come from the device"))
        end = self._store.end
        await self._insist(lambda: end(self.kept.claim, "done", pictures=pictures, timings=event.timings))
        return await self._publish_end()

    async def failed(self, event: Failed) -> None:
        """It has ended without all of its pictures; after a crash or a stop, it waits for another try."""
        if self._problem is not None:
            await self.fail(Failure("internal", self._problem))
        elif event.kind == "crashed" and self.kept.attempts < MAX_ATTEMPTS:
            await self.give_back(counted=True, alone=True)
        elif event.kind == "crashed":
            await self.fail(Failure("poison", POISON))
        elif event.kind == "stopped" and self._store.durable:
            await self.give_back(counted=False)
        else:
            await self.fail(Failure(event.kind, event.message, event.image))

    async def fail(self, failure: Failure) -> None:
        """It ends now; the pictures that it has are kept."""
        state: Ended = "cancelled" if failure.kind == "cancelled" else "failed"
        end, pictures = self._store.end, sorted(self.pictures, key=lambda picture: picture.image)
        await self._insist(lambda: end(self.kept.claim, state, pictures=pictures, failure=failure))
        await self._publish_end()

    async def give_back(self, *, counted: bool, alone: bool = False) -> None:
        """It waits again."""
        give_back = self._store.give_back
        if await self._insist(lambda: give_back(self.kept.claim, counted=counted, alone=alone)):
            self.log.is_drawn_here = False
            self.log.state("waiting", self.kept.attempts)

    async def _publish_end(self) -> None:
        """What the store says now: also where the claim was lost, since the job was cancelled."""
        kept = await self._insist(lambda: self._store.get(self.kept.id))
        if kept is not None:
            self.log.is_drawn_here = False
            self.log.catch_up(kept)


async def draw(drawing: Drawing) -> Done | None:
    """Follow a submitted job to its end; None if it has not been drawn."""
    assert drawing.ticket is not None
    try:
        async for event in drawing.ticket.events():
            match event:
                case Started():
                    drawing.start()
                case Progress():
                    drawing.progress(event)
                case Preview():
                    drawing.log.preview(event)
                case Picture():
                    await drawing.keep(event)
                case Done():
                    await drawing.done(event)
                    return event
                case Failed():
                    await drawing.failed(event)
                    return None
        message = "the device has said nothing of its end"
    except Exception as error:
        logger.exception("job %s cannot be followed", drawing.kept.id)
        message = f"it cannot be followed: {type(error).__name__}"
        drawing.abandon()
    await drawing.fail(Failure("internal", message))
    return None
