"""What waits and runs on a device: images of jobs, in groups that can share a UNet call. Records without rules."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from latentrt.runtime.protocols import Bucket
from latentrt.serve.messages import LoraSet, Priority


@dataclass(frozen=True, slots=True)
class Weights:
    """The state of a model's weights: the model, and the LoRAs in it."""

    model: str
    loras: LoraSet = ()


@dataclass(frozen=True, slots=True)
class Group:
    """What images of one UNet call share."""

    weights: Weights
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Client:
    """Whom device time is charged to. Work of both priorities is queued apart."""

    name: str
    priority: Priority = "interactive"


class State(Enum):
    """Where an image is. CHOSEN has a slot and waits for its texts and pictures to be encoded."""

    WAITING = 0
    CHOSEN = 1
    RUNNING = 2
    FINISHED = 3
    GONE = 4


@dataclass(slots=True, eq=False)
class Image:
    """One image of a job."""

    job: "QueuedJob"
    index: int
    state: State = State.WAITING
    calls: int = 0

    @property
    def calls_left(self) -> int:
        """UNet calls that it has still to make."""
        return self.job.calls - self.calls


@dataclass(slots=True, eq=False)
class QueuedJob:
    """A job in the queue.

    Attributes:
        calls: UNet calls of each image.
        cost: milliseconds of device time of one image, from text to picture; of a job of two passes, in this pass.
        second: the pass after this one, which is queued when all images of this one are there.
        weight: its client's share of the device, in proportion to others'.
        expires: when it must have finished, on the policy's clock in seconds; None is never.
        client_jobs: jobs of its client that may be under way; None is the server's limit.
        promised: when its first image must start.
        urgent: from when on its client goes before others, until it has started.
        alone: no other job runs beside it.
        has_pictures: whether it begins from given pictures.
        encoded: whether its images can start.
        restarted: whether its images have started anew once.
    """

    id: str
    group: Group
    client: Client
    weight: float
    calls: int
    cost: float
    images: list[Image] = field(default_factory=list)
    expires: float | None = None
    client_jobs: int | None = None
    promised: float = float("inf")
    urgent: float = float("inf")
    alone: bool = False
    has_pictures: bool = False
    encoded: bool = False
    started: bool = False
    restarted: bool = False
    second: "QueuedJob | None" = None

    @property
    def later(self) -> float:
        """Milliseconds of device time of one image after this pass."""
        return 0.0 if self.second is None else self.second.cost

    def with_images(self, count: int) -> "QueuedJob":
        """The job with this many images."""
        self.images = [Image(self, i) for i in range(count)]
        return self

    def of_state(self, *states: State) -> list[Image]:
        """Its images in one of these states."""
        return [image for image in self.images if image.state in states]


class Line:
    """The images of one group: those that wait, by client, and those that have slots."""

    def __init__(self) -> None:
        self.waiting: dict[Client, deque[Image]] = {}
        self.chosen: list[Image] = []
        self.running: list[Image] = []

    @property
    def held(self) -> int:
        """Slots that are taken."""
        return len(self.chosen) + len(self.running)

    def weights(self) -> dict[Client, float]:
        """The clients with work here, and their weights."""
        of_slots = {image.job.client: image.job.weight for image in (*self.chosen, *self.running)}
        return of_slots | {client: images[0].job.weight for client, images in self.waiting.items()}

    def wait(self, images: Iterable[Image], *, first: bool = False) -> None:
        """Queue images of one client; `first`: before its others."""
        for image in images:
            image.state = State.WAITING
            line = self.waiting.setdefault(image.job.client, deque())
            line.appendleft(image) if first else line.append(image)

    def choose(self, image: Image) -> None:
        """Give a waiting image a slot."""
        self._unqueue(image)
        image.state = State.CHOSEN
        self.chosen.append(image)

    def remove(self, image: Image) -> None:
        """Take an image out, wherever it is."""
        if image.state is State.WAITING:
            self._unqueue(image)
        elif image.state is State.CHOSEN:
            self.chosen.remove(image)
        elif image.state is State.RUNNING:
            self.running.remove(image)

    def urgent(self, now: float) -> Client | None:
        """The client with the job that is urgent for longest."""
        late = [image.job for image in self.all_waiting() if image.job.urgent <= now and not image.job.started]
        return min(late, key=lambda job: job.urgent).client if late else None

    def all_waiting(self) -> Iterator[Image]:
        """The waiting images of all clients."""
        for images in self.waiting.values():
            yield from images

    def _unqueue(self, image: Image) -> None:
        line = self.waiting[image.job.client]
        line.remove(image)
        if not line:
            del self.waiting[image.job.client]

    def __bool__(self) -> bool:
        return bool(self.waiting or self.chosen or self.running)
