"""Calls of the web UI's API that are under way: who asks for them, how far they are, and their end by others' hand.

A client sees and stops its own calls alone. Used from one event loop; knows no HTTP.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.following import Drawn, drawn
from latentrt.serve.messages import Admitted, Done, Event, Job, Picture, Preview, Progress, Started
from latentrt.serve.service import Ticket

REMEMBERED = 1000  # ended calls whose ids are known


@dataclass(eq=False)
class Task:
    """A call; a `Ticket` that keeps what happens.

    Attributes:
        id: the client's, or else the job's.
        before, after: UNet calls of each picture in another pass of the call.
    """

    ticket: Ticket
    client: str
    id: str
    submitted: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    started: float | None = None
    calls: dict[int, int] = field(default_factory=dict)  # that each picture has made
    step: int = 0
    preview: Preview | None = None
    previews: int = 0  # how many have come
    pictures: dict[int, Picture] = field(default_factory=dict)
    skipped: bool = False
    interrupted: bool = False
    before: int = 0
    after: int = 0

    def go_on(self, ticket: Ticket) -> None:
        """Follow the second pass."""
        self.before, self.after = self.steps, 0
        self.ticket, self.calls, self.pictures = ticket, {}, {}
        self.began, self.started = time.monotonic(), None
        if self.interrupted or self.skipped:
            self.cancel()

    @property
    def job(self) -> Job:
        """See `Ticket`."""
        return self.ticket.job

    @property
    def admitted(self) -> Admitted:
        """See `Ticket`."""
        return self.ticket.admitted

    def cancel(self) -> None:
        """See `Ticket`."""
        self.ticket.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """See `Ticket`."""
        async for event in self.ticket.events():
            self._keep(event)
            yield event

    def _keep(self, event: Event) -> None:
        match event:
            case Started():
                self.started = time.monotonic()
            case Progress():
                self.calls[event.image], self.step = event.call, event.call
            case Preview():
                self.preview, self.previews = event, self.previews + 1
            case Picture():
                self.pictures[event.image] = event

    @property
    def steps(self) -> int:
        """UNet calls of each picture."""
        return self.job.calls

    @property
    def progress(self) -> float:
        """Share of its UNet calls that have been made."""
        total = self.before + self.steps + self.after
        return min(1.0, (self.before + self._made) / max(1, total))

    @property
    def _made(self) -> float:
        """UNet calls of each picture in this pass, on average."""
        return sum(self.calls.values()) / self.job.images

    @property
    def seconds_left(self) -> float:
        """Until it is finished, about."""
        now, made = time.monotonic(), self._made
        if self.started is None or not made:
            return max(0.0, self.began + self.admitted.estimate - now)
        return (now - self.started) * max(0.0, self.steps + self.after - made) / made

    async def drawn(self) -> Drawn:
        """All pictures, or those that were finished when it was stopped; raises `ApiError` where there are none."""
        try:
            return await drawn(self)
        except ApiError:
            if not (self.interrupted or self.skipped):
                raise
            if not self.pictures or self.after:
                text = "interrupted before a picture was finished"
                raise ApiError(409, text, "cancelled", retry=False) from None
            pictures = tuple(self.pictures[image] for image in sorted(self.pictures))
            return Drawn(self.job, pictures, Done(self.job.id, {}))


class Tasks:
    """The calls that are under way."""

    def __init__(self) -> None:
        self._under_way: list[Task] = []
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    @contextmanager
    def following(self, ticket: Ticket, name: str | None) -> Iterator[Task]:
        """A call while it is drawn. `name`: the client's id for it."""
        task = Task(ticket, ticket.job.client, name or ticket.job.id)
        self._under_way.append(task)
        try:
            yield task
        finally:
            self._under_way.remove(task)
            self._ended[task.client, task.id] = None
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def of(self, client: str, name: str | None = None) -> list[Task]:
        """A client's calls, or those of them with an id, the oldest first."""
        return [task for task in self._under_way if task.client == client and name in (None, task.id)]

    def has_ended(self, client: str, name: str) -> bool:
        """Whether a client's call with an id is over, if it is not too long ago."""
        return (client, name) in self._ended

    def interrupt(self, client: str, name: str | None) -> None:
        """Stop a client's calls, or those with an id."""
        for task in self.of(client, name):
            task.interrupted = True
            task.cancel()

    def skip(self, client: str, name: str | None) -> None:
        """Stop the oldest of a client's calls, or of those with an id."""
        going = [task for task in self.of(client, name) if not (task.skipped or task.interrupted)]
        for task in going[:1]:
            task.skipped = True
            task.cancel()
