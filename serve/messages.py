"""What passes between the front end and the dispatcher of a device: jobs, and what happens to them.

Plain records without libraries, as they cross processes. Times are seconds unless a name says otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from latentrt.runtime.request import Request

Priority = Literal["interactive", "batch"]
# Names in the operator's LoRA folder and their weights, sorted by name; () is the checkpoint itself.
LoraSet = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that a device serves.

    Attributes:
        name: as clients call it.
        path: folder of the bundle; None is the embedded one.
        backend, engines, trust_engines: as for `Pipeline.load`.
        sizes: (width, height) that clients may ask for; None is `usual_sizes`, or those of the engines.
        loras: folder of the LoRA files that clients may name.
        controls: names and folders of control bundles.
        refiner: folder of a bundle that goes on from the option `refiner_start`.
    """

    name: str
    path: Path | None = None
    backend: str = "auto"
    engines: Path | None = None
    trust_engines: bool = False
    sizes: tuple[tuple[int, int], ...] | None = None
    loras: Path | None = None
    controls: tuple[tuple[str, Path], ...] = ()
    refiner: Path | None = None


@dataclass(frozen=True, slots=True)
class DispatcherOptions:
    """How the dispatcher of one device works.

    Attributes:
        device: "cpu", "cuda:0"; None is the best that the backend finds.
        name: of the device in logs and metrics; "" is `device`.
        max_wait: seconds that a job may be promised to wait for its first call.
        max_queue: images that may wait.
        max_batch: images of one UNet call, at most.
        batch: images of one UNet call at every size, instead of the most that are worth it, which is measured.
        client_jobs: jobs of one client that may be under way.
        loaded: models that are loaded at a time; the others are loaded when they are asked for. None is all of them.
        unloaded: models that refuse work and take no memory until the operator has them loaded.
        lazy: sizes are prepared and measured at first use, not before the device is ready.
        deterministic: each size runs at one count, so that pictures do not depend on load.
        call_limit: seconds that a UNet call may take before the device counts as hung; longer where calls are slow.
        filter: "module:function" that sees each finished picture.
        loader: "module:function" that makes the `Pipeline` of a `ModelSpec` on a device; for tests.
    """

    device: str | None = None
    name: str = ""
    max_wait: float = 30.0
    max_queue: int = 1000
    max_batch: int = 8
    batch: int | None = None
    client_jobs: int = 64
    loaded: int | None = None
    unloaded: tuple[str, ...] = ()
    lazy: bool = False
    deterministic: bool = False
    call_limit: float = 30.0
    filter: str | None = None
    loader: str = "latentrt.serve.dispatcher.models:load_pipeline"

    @property
    def shown_name(self) -> str:
        """What logs and metrics call the device."""
        return self.name or self.device or "auto"


@dataclass(frozen=True, slots=True)
class Output:
    """How finished pictures are encoded.

    Attributes:
        format: "png", "jpeg" or "webp"; "raw" is (H, W, 3) uint8 as bytes; "latents" is (C, h, w) float32 as bytes.
        quality: 0 to 100, of JPEG and WebP.
        text: whether a PNG holds the text that its picture can be drawn again from.
    """

    format: Literal["png", "jpeg", "webp", "raw", "latents"] = "png"
    quality: int = 90
    text: bool = True


@dataclass(frozen=True, slots=True)
class Previews:
    """Which previews a client wants.

    Attributes:
        method: as for `Step.preview`.
        count: spread evenly over the calls of each image; 0 is after every call.
    """

    method: Literal["auto", "rgb", "taesd", "vae"] = "auto"
    count: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A checked call, and who asked for it. All defaults and seeds are fixed.

    Attributes:
        model: name of the model at the server.
        second: what the refiner goes on with; None for one pass. Its image holds zeros until the first one is drawn.
        client: whom its device time is charged to.
        weight: the client's share, in proportion to those of others.
        client_jobs: jobs of the client that may be under way; None is what the server allows everyone.
        deadline: seconds from submission until it must have finished; None is without.
        previews: None for none.
        alone: no other work runs beside it, as it was under way when a process died.
    """

    id: str
    model: str
    request: Request
    loras: LoraSet = ()
    client: str = ""
    weight: float = 1.0
    client_jobs: int | None = None
    priority: Priority = "interactive"
    deadline: float | None = None
    output: Output = field(default_factory=Output)
    previews: Previews | None = None
    alone: bool = False
    second: Request | None = None

    @property
    def images(self) -> int:
        """How many it draws."""
        return len(self.request.seeds)

    @property
    def calls(self) -> int:
        """UNet calls of each image, in all passes."""
        return len(self.request.plan) + (0 if self.second is None else len(self.second.plan))


@dataclass(frozen=True, slots=True)
class Admitted:
    """A job has been accepted.

    Attributes:
        position: images that wait before it.
        wait: expected seconds until its first image starts; at most the server's `max_wait`.
        estimate: expected seconds until it has finished.
    """

    position: int
    wait: float
    estimate: float


# Why a job is not accepted: too much work waits; too many of this client's jobs; the deadline cannot be met; the server
# stops; the model is not there; the operator has unloaded it; the device's process is starting; it ended before it
# answered, perhaps by this job.
RefusedReason = Literal[
    "busy", "client_busy", "deadline", "stopping", "unknown_model", "unloaded", "starting", "crashed"
]


LONGEST_RETRY = 120  # seconds; clients ignore a longer Retry-After


def retry_seconds(seconds: float) -> int:
    """Seconds until a client should ask again, as `Retry-After` may hold them."""
    return min(max(1, math.ceil(seconds)), LONGEST_RETRY)


class RefusedError(Exception):
    """A job is not accepted. `retry_after`: seconds, None where trying again does not help."""

    def __init__(self, reason: RefusedReason, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_after = reason, message, retry_after

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[RefusedReason, str, float | None]]:
        return RefusedError, (self.reason, self.message, self.retry_after)


def model_unloaded(name: str) -> RefusedError:
    """The refusal of work for a model that the operator has unloaded."""
    return RefusedError("unloaded", f"the model {name} is unloaded: it draws when the operator has it loaded again", 30)


# --- events of a job, in this order: Started, then Progress, Preview and Picture, and at the end one Done or Failed


@dataclass(frozen=True, slots=True)
class Started:
    """The first image makes its first call."""

    job: str


@dataclass(frozen=True, slots=True)
class Progress:
    """An image has made a UNet call: number `call` of `calls`, counted from 1."""

    job: str
    image: int
    call: int
    calls: int


@dataclass(frozen=True, slots=True)
class Preview:
    """An unfinished picture, as PNG, JPEG or WebP; raw for "raw" and "latents". `index` counts those of an image."""

    job: str
    image: int
    call: int
    index: int
    data: bytes
    format: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture, encoded as the job's `Output` says."""

    job: str
    image: int
    seed: int
    height: int
    width: int
    data: bytes
    format: str


@dataclass(frozen=True, slots=True)
class Done:
    """All pictures have been sent. `timings`: milliseconds by stage: queue, encode, denoise, decode, total."""

    job: str
    timings: Mapping[str, float]


# cancelled: by the client; deadline: cannot be met any more; non_finite: the model overflowed; filtered: the operator's
# filter refused the picture; input: only visible when drawn; out_of_memory; crashed: its process died or hung;
# poison: that happened three times; model_changed: a kept job's model or LoRA is another one now; stopped: the server
# stopped before it was finished; internal: everything else.
FailedKind = Literal[
    "cancelled",
    "deadline",
    "non_finite",
    "filtered",
    "input",
    "out_of_memory",
    "crashed",
    "poison",
    "model_changed",
    "stopped",
    "internal",
]


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has ended without all of its pictures. `image`: which of them, where it is about one."""

    job: str
    kind: FailedKind
    message: str
    image: int | None = None


Event = Started | Progress | Preview | Picture | Done | Failed


@dataclass(frozen=True, slots=True)
class Called:
    """A UNet call, for metrics: not an event of one job. Seconds of the call, and of the host since the one before."""

    model: str
    width: int
    height: int
    count: int
    cap: int
    seconds: float
    gap: float
