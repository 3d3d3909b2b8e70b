"""What has happened to a job, for those who follow it: numbered, resumable, and bounded in memory.

State changes are always kept; of the progress the latest of each image, and of the previews the latest. A slow reader
thus loses nothing that still matters. Logs live while somebody draws or follows the job; a new one begins with what the
store says, so that following works after a restart and at any server of a store. Knows nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any
from weakref import WeakValueDictionary

from latentrt.serve.messages import Preview, Progress

from .store import KeptJob, State, StorageError

HEARTBEAT = 15.0  # seconds
LAST = "end"  # the id of every job's last event


@dataclass(frozen=True, slots=True)
class Entry:
    """One event.

    Attributes:
        id: what a reader gives back to go on after this event.
        name: "state", "progress", "preview", "picture", or at the end "done", "failed" or "cancelled".
        data: what JSON can hold, and bytes.
    """

    number: int
    id: str
    name: str
    data: Mapping[str, Any]


class EventLog:
    """The events of one job. Used from one event loop."""

    def __init__(self) -> None:
        self._epoch = token_hex(4)  # ids of another log are not of this one
        self._count = 0
        self._kept: list[Entry] = []
        self._progress: dict[int, Entry] = {}
        self._preview: Entry | None = None
        self._changed = asyncio.Event()
        self._state: State | None = None
        self.ended = False
        self.is_drawn_here = False

    def _entry(self, name: str, data: Mapping[str, Any], *, last: bool = False) -> Entry:
        self._count += 1
        # Each reader waits for the event that was current when it looked.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return Entry(self._count, LAST if last else f"{self._epoch}-{self._count}", name, data)

    def state(self, state: State, attempts: int) -> None:
        """The job waits or is drawn, from its beginning."""
        if not self.ended and state != self._state:
            self._state, self._progress, self._preview = state, {}, None
            self._kept.append(self._entry("state", {"status": state, "attempts": attempts}))

    def progress(self, event: Progress) -> None:
        """An image has made a call."""
        if not self.ended:
            data = {"image": event.image, "call": event.call, "calls": event.calls}
            self._progress[event.image] = self._entry("progress", data)

    def preview(self, event: Preview) -> None:
        """There is a newer preview."""
        if not self.ended:
            data = {name: getattr(event, name) for name in ("image", "call", "index", "format", "data")}
            self._preview = self._entry("preview", data)

    def end(self, job: KeptJob) -> None:
        """The job has ended, and that is committed: its pictures can be fetched from now on."""
        if self.ended:
            return
        self._preview = None
        for picture in job.pictures:
            data = {name: getattr(picture, name) for name in ("image", "seed", "height", "width", "format")}
            self._kept.append(self._entry("picture", {**data, "bytes": picture.size}))
        failure = job.failure
        error = failure and {"kind": failure.kind, "message": failure.message, "image": failure.image}
        # Set first: who is woken by the entry looks at it.
        self.ended = True
        data = {"status": job.state, "error": error, "timings": dict(job.timings)}
        self._kept.append(self._entry(job.state, data, last=True))

    def catch_up(self, job: KeptJob) -> None:
        """Note what the store says, where nobody here draws the job and would know better."""
        if job.has_ended:
            self.end(job)
        elif not self.is_drawn_here:
            self.state(job.state, job.attempts)

    def after(self, last: str | None) -> list[Entry]:
        """The events after the one with this id, as far as they are kept; all if the id is not of this log."""
        epoch, _, number = (last or "").partition("-")
        seen = int(number) if epoch == self._epoch and number.isascii() and number.isdigit() else 0
        entries = [*self._kept, *self._progress.values(), *([self._preview] if self._preview else [])]
        return sorted((entry for entry in entries if entry.number > seen), key=lambda entry: entry.number)

    async def changed(self, seconds: float) -> bool:
        """Wait for another event; whether there was one in this time."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._changed.wait(), seconds)
        return False


class EventLogs:
    """The logs in use, by the ids of jobs."""

    def __init__(self) -> None:
        self._logs: WeakValueDictionary[str, EventLog] = WeakValueDictionary()

    def of(self, job: str) -> EventLog:
        """The log of a job; it lives as long as somebody holds it."""
        log = self._logs.get(job)
        if log is None:
            log = self._logs[job] = EventLog()
        return log

    def find(self, job: str) -> EventLog | None:
        """The log of a job that somebody holds."""
        return self._logs.get(job)

    def names(self) -> list[str]:
        """The jobs whose logs somebody holds."""
        return list(self._logs.keys())

    async def follow(
        self,
        job: str,
        get: Callable[[str], Awaitable[KeptJob | None]],
        *,
        last: str | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> AsyncGenerator[Entry | None, None]:
        """The events of a job until its end; None where nothing has happened for a while.

        Args:
            get: asks the store for the job; None if it is not there any more.
            last: id of the last event that the reader has.
        """
        if last == LAST:
            return
        # Held before the store is asked: whoever draws the job after that writes to this log.
        log = self.of(job)
        while True:
            if not log.ended:
                with suppress(StorageError):  # it is asked again with the next heartbeat
                    if (kept := await get(job)) is None:
                        return
                    log.catch_up(kept)
            while True:
                changed = log.after(last)
                for entry in changed:
                    last = entry.id
                    yield entry
                if log.ended and last == LAST:
                    return
                if not log.after(last) and not await log.changed(heartbeat):
                    break
            yield None
