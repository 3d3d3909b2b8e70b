"""What a device keeps of a job while it draws it. Records without rules."""

import time
from dataclasses import dataclass, field, replace

import numpy as np

from latentrt.runtime.protocols import Fetch, Trajectory
from latentrt.runtime.request import Request
from latentrt.runtime.stages import Generators, generators_of
from latentrt.serve.messages import Job

from .queue import Image


@dataclass(slots=True, eq=False)
class Drawing:
    """A job on the device. Trajectories stay until their images are done, so that these can begin again.

    Attributes:
        latents: copies of finished latents, by image.
        started: when its first image began, on the clock of `time.monotonic`.
        spent: milliseconds by stage.
        previews: how many were sent, by image.
        sent: pictures that have been sent.
        over: whether its last event has been sent.
        request: of the pass that is drawn.
        generators: of its images, which go on from pass to pass.
        before: UNet calls of each image in earlier passes.
        begun: when the first image of this pass began.
    """

    job: Job
    submitted: float = field(default_factory=time.monotonic)
    trajectories: list[Trajectory] | None = None
    latents: dict[int, Fetch] = field(default_factory=dict)
    started: float | None = None
    spent: dict[str, float] = field(default_factory=dict)
    previews: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    over: bool = False
    request: Request = field(init=False)
    generators: list[Generators] = field(init=False)
    before: int = 0
    begun: float | None = None

    def __post_init__(self) -> None:
        self.request, self.generators = self.job.request, generators_of(self.job.request)

    def go_on(self) -> None:
        """Begin the second pass from the latents of the first one."""
        second = self.job.second
        assert second is not None
        assert second.image is not None
        latents = np.stack([self.latents[i].result() for i in range(self.job.images)])
        self.request = replace(second, image=replace(second.image, latents=latents))
        self.before, self.trajectories, self.latents, self.begun = len(self.job.request.plan), None, {}, None

    def add(self, stage: str, milliseconds: float) -> None:
        """Time that it has spent in a stage."""
        self.spent[stage] = self.spent.get(stage, 0.0) + milliseconds

    def timings(self) -> dict[str, float]:
        """Milliseconds by stage: see `Done.timings`."""
        total = 1000 * (time.monotonic() - self.submitted)
        return {**self.spent, "total": total}

    def wants_preview(self, call: int) -> bool:
        """Whether the client wants to see the images after this call, counted from 1. The last one is the picture."""
        previews, calls = self.job.previews, self.job.calls
        if previews is None or call >= calls:
            return False
        count = previews.count or calls - 1
        return call * (count + 1) // calls > (call - 1) * (count + 1) // calls

    def tiling(self) -> bool:
        """Whether its pictures are decoded in tiles."""
        return bool(self.job.request.options["vae_tiling"])


@dataclass(frozen=True, slots=True, eq=False)
class PendingPreview:
    """Predicted clean latents on their way to the host."""

    drawing: Drawing
    image: Image
    call: int
    latents: Fetch
