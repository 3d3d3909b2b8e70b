"""What tests of the dispatcher share: one in this process that collects events."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.serve.dispatcher.dispatcher import Dispatcher
from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.dispatcher.pictures import FilteredPicture
from latentrt.serve.messages import (
    Called,
    DispatcherOptions,
    Done,
    Event,
    Failed,
    Job,
    ModelSpec,
    Output,
    Picture,
    RefusedError,
)

PATIENCE = 120.0  # seconds that any job of a test may take


class Device:
    """A dispatcher in this process, and what it told."""

    def __init__(self, spec: ModelSpec, options: DispatcherOptions, *more: ModelSpec) -> None:
        """`more`: further models, which jobs name."""
        self.model = served_model(spec)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.calls: list[Called] = []
        self._ended: dict[str, threading.Event] = defaultdict(threading.Event)
        self._number = 0
        self.dispatcher = Dispatcher([spec, *more], options, self._listen)
        self.dispatcher.start()

    def _listen(self, event: Event | Called) -> None:
        if isinstance(event, Called):
            self.calls.append(event)
            return
        self.events[event.job].append(event)
        if isinstance(event, Done | Failed):
            self._ended[event.job].set()

    def job(self, prompt: str, options: Mapping[str, Any], **facts: Any) -> Job:
        """A job that has not been submitted."""
        self._number += 1
        facts.setdefault("output", Output("latents"))
        model = facts.pop("model", self.model.name)
        return Job(str(self._number), model, self.model.request(prompt, options), **facts)

    def submit(self, prompt: str, options: Mapping[str, Any], **facts: Any) -> Job:
        """Submit a job; waits while the queue is full."""
        job = self.job(prompt, options, **facts)
        while True:
            try:
                self.dispatcher.submit(job)
                return job
            except RefusedError as error:
                if error.reason not in ("busy", "client_busy"):
                    raise
                time.sleep(0.05)

    def wait(self, jobs: Iterable[Job]) -> None:
        """Wait until jobs have ended."""
        for job in jobs:
            assert self._ended[job.id].wait(PATIENCE), f"job {job.id} has not ended: {self.events[job.id][-3:]}"

    def end(self, job: Job) -> Event:
        """The last event of a job."""
        self.wait([job])
        return self.events[job.id][-1]

    def latents(self, job: Job) -> NDArray[np.float32]:
        """(images, values) of a job that asked for latents."""
        assert isinstance(self.end(job), Done), self.end(job)
        pictures = sorted((e for e in self.events[job.id] if isinstance(e, Picture)), key=lambda e: e.image)
        return np.stack([np.frombuffer(picture.data, "<f4") for picture in pictures])

    def close(self) -> None:
        self.dispatcher.close()


def turned_if_even(picture: FilteredPicture) -> Any:
    """A filter: pictures of even seeds pass, turned; others are refused, and 13 makes it fail."""
    if picture.seed == 13:
        raise ValueError("the filter is broken")
    return None if picture.seed % 2 else picture.image.rotate(180)
