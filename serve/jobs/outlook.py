"""How long a job that waits may take. Knows what devices say of their work, and how fast jobs were drawn before."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.serve.messages import Done
from latentrt.serve.service import Load

_SHARE = 0.2  # of the newest job in the mean


@dataclass(frozen=True, slots=True)
class Outlook:
    """`position`: images before the job's first; `seconds` until it has finished. None where that is not known."""

    position: int | None
    seconds: float | None


class Pace:
    """The mean seconds of device time that an image took."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, done: Done, images: int) -> None:
        """A job has been drawn."""
        drawn = (done.timings.get("total", 0.0) - done.timings.get("queue", 0.0)) / 1000 / max(images, 1)
        if drawn > 0:
            self._seconds = drawn if self._seconds is None else (1 - _SHARE) * self._seconds + _SHARE * drawn

    def outlook(self, loads: Sequence[Load], ahead: int, images: int) -> Outlook:
        """Of a job of so many images that waits in the store with so many images before it."""
        position = ahead + sum(load.waiting for load in loads)
        ready = sum(load.ready for load in loads)
        if self._seconds is None or not ready:
            return Outlook(position, None)
        work = sum(load.work for load in loads) / 1000
        return Outlook(position, (work + (ahead + images) * self._seconds) / ready)
