"""What the faces (HTTP, later Ray and Triton) know of the machinery behind them: submit a job, follow it, cancel it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from .messages import Admitted, Event, Job
from .served_model import ServedModel


class Ticket(Protocol):
    """An accepted job."""

    @property
    def job(self) -> Job:
        """What was submitted."""

    @property
    def admitted(self) -> Admitted:
        """Its place and expected times."""

    def events(self) -> AsyncIterator[Event]:
        """Events from the first on; ends after `Done` or `Failed`. To be called once.

        A slow reader loses old progress and old previews, and never a picture or the end.
        """

    def cancel(self) -> None:
        """Stop drawing; the job's slots are free for the next UNet call, and its events end with `Failed`."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a device does now, for metrics and for placing work.

    Attributes:
        device: its name, such as "cuda:0".
        ready: whether its models are loaded and its process is alive.
        waiting, running: images.
        work: milliseconds of device time that were accepted and are not done.
        memory: resident bytes of its process; None where the system does not tell. Of GPUs, NVIDIA's exporter tells.
    """

    device: str
    ready: bool
    waiting: int
    running: int
    work: float
    memory: int | None = None


class Service(Protocol):
    """All devices and models of a server. Used from one event loop."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models by name, the default one first."""

    async def submit(self, job: Job) -> Ticket:
        """Accept a job and start it as soon as its turn comes; raises `RefusedError`."""

    def loads(self) -> list[Load]:
        """Of every device."""

    def ready(self, model: str | None = None) -> bool:
        """Whether work (for this model) can be drawn now: loaded, and not stopping."""

    def live(self) -> bool:
        """Whether the process can go on; False asks to be restarted."""


# Of a model on all devices that serve it. Only "loaded" ones take work; "unloading" ones still draw what they accepted.
ModelState = Literal["loaded", "loading", "unloading", "unloaded"]


class Repository(Protocol):
    """The operator's hand on the models of a server. Used from one event loop."""

    def state(self, model: str) -> ModelState:
        """Of a model that the server has."""

    async def load(self, model: str) -> None:
        """Load a model on all of its devices; returns when it takes work, and goes on where this is cancelled.

        Raises `RefusedError` where a device cannot load it; then it is unloaded everywhere.
        """

    def unload(self, model: str) -> None:
        """Refuse work for a model from now on; its memory is freed when what was accepted is done."""
