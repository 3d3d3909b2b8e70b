"""What the ingress knows of the engine's replicas: draw a job on one of them, and ask all of them what they do.

The seam between `HandleService` and Ray. Knows neither.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from latentrt.serve.messages import Admitted, Event, Job, RefusedError
from latentrt.serve.service import Load

# Of one job: first `Admitted` or `RefusedError`; then its events in batches, the last of which ends with `Done` or
# `Failed`.
Message = Admitted | RefusedError | list[Event]


class LostError(Exception):
    """The replica that a job was sent to is gone, perhaps by this job."""


class Draw(Protocol):
    """A job on its way to a replica, or on it."""

    def messages(self) -> AsyncIterator[Message]:
        """To be called once. Raises `LostError`, and `RefusedError` where the job reached no replica."""

    def cancel(self) -> None:
        """Stop it, wherever it is; does nothing where it has ended."""


class Engines(Protocol):
    """All replicas. Used from one event loop."""

    def draw(self, job: Job) -> Draw:
        """Send a job to a replica with room for it."""

    async def loads(self) -> list[Load]:
        """Of all replicas that answer."""
