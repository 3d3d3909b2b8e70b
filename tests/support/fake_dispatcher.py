"""A dispatcher that draws nothing: for tests of what is around it, in this process or in one of its own.

What it does wrong is said by the model's name, the job's id, and `DispatcherOptions.loader`, such as "delay=0.01".
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import BundleError
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.messages import (
    Admitted,
    Called,
    DispatcherOptions,
    Done,
    Event,
    Failed,
    Job,
    ModelSpec,
    Picture,
    Preview,
    Progress,
    RefusedError,
    Started,
    model_unloaded,
)
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Load

NAME = "support.fake_dispatcher:FakeDispatcher"


@cache
def served_model() -> ServedModel:
    """The embedded model, as the front end knows it."""
    return ServedModel("shapes", Bundle.open(embedded_bundle()))


def a_job(name: str, *, images: int = 1, steps: int = 4, client: str = "", **options: Any) -> Job:
    """A job of the embedded model. Names that begin with crash, hang, break, bug or busy do so."""
    request = served_model().request(
        "a star", {"num_images_per_prompt": images, "num_inference_steps": steps, "scheduler": "euler", "seed": 1}
    )
    return Job(name, "shapes", request, client=client, **options)


class FakeDispatcher:
    """One thread that draws one job after the other: each call takes `delay` seconds."""

    def __init__(
        self, models: Sequence[ModelSpec], options: DispatcherOptions, listen: Callable[[Event | Called], None]
    ) -> None:
        self._models, self._options, self._listen = models, options, listen
        self._does = dict(word.split("=") for word in options.loader.split() if "=" in word)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._left: dict[str, Job] = {}  # that have not ended
        self._cancelled: set[str] = set()
        self._overdue, self._broken = 0.0, ""
        self._unloaded = set(options.unloaded)

    def start(self) -> None:
        if "count" in self._does:  # of starts, over all processes
            with Path(self._does["count"]).open("a", encoding="ascii") as file:
                file.write(f"{os.getpid()} {time.monotonic()}\n")
        time.sleep(float(self._does.get("loading", 0)))
        names = [model.name for model in self._models]
        if "unloadable" in names:
            raise BundleError("there is no bundle")
        if "dies" in names:
            os._exit(3)
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, job: Job) -> Admitted:
        if job.id.startswith("bug"):
            raise KeyError(job.id)
        if job.model in self._unloaded:
            raise model_unloaded(job.model)
        if job.id.startswith("busy") or self._images() + job.images > self._options.max_queue:
            raise RefusedError("busy", "too much work waits", 7.0)
        waiting = self._images()
        self._left[job.id] = job
        self._jobs.put(job)
        return Admitted(waiting, 0.1 * waiting, 0.1 * (waiting + job.images))

    def cancel(self, job: str) -> None:
        self._cancelled.add(job)

    def set_loaded(self, model: str, loaded: bool) -> Callable[[], None]:
        if loaded and model == "damaged":
            raise RefusedError("starting", "the model damaged cannot be loaded", 7.0)
        self._unloaded = self._unloaded - {model} if loaded else self._unloaded | {model}

        def wait() -> None:
            if loaded:
                time.sleep(float(self._does.get("loading", 0)))
            while not loaded and any(job.model == model for job in list(self._left.values())):
                time.sleep(0.01)

        return wait

    def load(self) -> Load:
        each = float(self._does.get("work", 25))  # milliseconds a call
        work = each * sum(job.images * len(job.request.plan) for job in list(self._left.values()))
        return Load(self._options.device or "fake", True, self._images(), 0, work)

    def _images(self) -> int:
        return sum(job.images for job in list(self._left.values()))

    def overdue(self) -> float:
        return self._overdue

    def broken(self) -> str | None:
        return self._broken or None

    def close(self) -> None:
        pass

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._fail(job.id)
            self._draw(job)
            del self._left[job.id]

    def _fail(self, name: str) -> None:
        match name.partition("-")[0]:
            case "crash":
                os._exit(11)
            case "hang":
                self._overdue = 5.0
                time.sleep(60)
            case "break":
                self._broken = "CUDA error 700"
                time.sleep(60)
            case "die":
                raise RuntimeError("a bug of a thread")

    def _draw(self, job: Job) -> None:
        calls = len(job.request.plan)
        self._listen(Started(job.id))
        for call in range(1, calls + 1):
            time.sleep(float(self._does.get("delay", 0)))
            if job.id in self._cancelled:
                self._listen(Failed(job.id, "cancelled", "cancelled"))
                return
            self._listen(Called(job.model, job.request.width, job.request.height, job.images, 8, 0.1, 0.001))
            for image in range(job.images):
                self._listen(Progress(job.id, image, call, calls))
                if job.previews is not None:
                    self._listen(Preview(job.id, image, call, call, bytes(10_000), "png"))
        for image, seed in enumerate(job.request.seeds):
            data = bytes(int(self._does.get("bytes", 100)))
            self._listen(Picture(job.id, image, seed, 64, 64, data, "png"))
        self._listen(Done(job.id, {"total": 1.0}))
