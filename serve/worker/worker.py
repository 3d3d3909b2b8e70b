"""A device, as the fleet knows it: what takes jobs and draws them, in another process or in this one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from latentrt.serve.messages import Admitted, Called, Done, Event, Failed, Job
from latentrt.serve.service import Load


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Watchers:
    """Who hears of what is not about one job, in the event loop.

    Attributes:
        called: a UNet call was made.
        restarted: the process of this device is started anew.
    """

    called: Callable[[Called], None] = _ignore
    restarted: Callable[[str], None] = _ignore


def hear(event: Event | Called, listeners: dict[str, Callable[[Event], None]], watchers: Watchers) -> None:
    """Hand an event to whom it is for; listeners hear the end of their job last."""
    if isinstance(event, Called):
        watchers.called(event)
    elif (listen := listeners.get(event.job)) is not None:
        if isinstance(event, Done | Failed):
            del listeners[event.job]
        listen(event)


class Worker(Protocol):
    """One device. Used from one event loop, which its methods never block."""

    @property
    def models(self) -> Collection[str]:
        """Names of the models that it serves."""

    @property
    def ready(self) -> bool:
        """Whether it takes jobs now."""

    @property
    def live(self) -> bool:
        """Whether it can become ready by itself; False asks for a new server."""

    @property
    def retry_after(self) -> float:
        """Seconds until it may be ready, where it is not."""

    async def start(self) -> None:
        """Load the models; returns when it is ready. Raises `LatentRTError` where trying again does not help."""

    async def submit(self, job: Job, listen: Callable[[Event], None]) -> Admitted:
        """Accept a job; its events go to `listen`, in the event loop, the first ones before this returns.

        Raises `RefusedError`. When this is cancelled the job is too.
        """

    def cancel(self, job: str) -> None:
        """Stop drawing a job; unknown ones are ignored."""

    async def set_loaded(self, model: str, loaded: bool) -> None:
        """Load a model, or refuse work for it from now on and free its memory when nothing of it is under way.

        Returns when it is so; raises `RefusedError`. A device that is started anew comes up so.
        """

    def load(self) -> Load:
        """What it did a moment ago."""

    async def close(self) -> None:
        """End it, its jobs with it."""

    def kill(self) -> None:
        """End it now, as far as that is possible, without waiting."""
