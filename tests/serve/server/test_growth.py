"""A device that works does not grow: memory, engines, bound calls, threads and descriptors stay as they were."""

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from latentrt.runtime.backends.ort.on_cpu import OrtEngine
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.text.cache import EncoderCache
from latentrt.serve.dispatcher.dispatcher import Dispatcher
from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.dispatcher.policy import GROUPS_OPEN
from latentrt.serve.messages import (
    Called,
    DispatcherOptions,
    Done,
    Event,
    Failed,
    Job,
    ModelSpec,
    Output,
    Previews,
)

BATCH = 2
SIZES = ((64, 64), (128, 64), (64, 128))
WORDS = (5, 90, 170)  # one, two and three chunks of 75 tokens
GROWTH = 12.0  # MiB that memory may grow by
AT_A_TIME = 24


class Worked:
    """A dispatcher in this process, of which no event is kept."""

    def __init__(self, spec: ModelSpec, loader: str | None) -> None:
        options: dict[str, Any] = {} if loader is None else {"loader": loader}
        self.model = served_model(spec)
        self.done = 0
        self._room = threading.Semaphore(AT_A_TIME)
        self._failed: list[Failed] = []
        # A job is told to be done a moment before its place is free.
        limits = DispatcherOptions(device="cpu", batch=BATCH, client_jobs=2 * AT_A_TIME, **options)
        self._dispatcher = Dispatcher([spec], limits, self._listen)
        self._dispatcher.start()

    def _listen(self, event: Event | Called) -> None:
        if isinstance(event, Failed):
            self._failed.append(event)
        if isinstance(event, Done | Failed):
            self.done += 1
            self._room.release()

    def draw(self, number: int, size: tuple[int, int], words: int, *, guided: bool) -> None:
        """Submit a job; each has another prompt."""
        prompt = " ".join(["star", str(number), *["red"] * (words - 2)])
        options = {"width": size[0], "height": size[1], "num_inference_steps": 1 + number % 2, "seed": number}
        options |= {"guidance_scale": 3.0 if guided else 1.0, "long_prompt": "chunk"}
        kinds = ("png", "jpeg", "webp", "raw", "latents")
        output = Output(kinds[number % len(kinds)])  # type: ignore[arg-type]
        previews = Previews("rgb", 1) if number % 7 == 0 else None
        self._room.acquire()
        request = self.model.request(prompt, options)
        self._dispatcher.submit(Job(str(number), self.model.name, request, output=output, previews=previews))

    def wait(self) -> None:
        """Until all is done; all must have gone well."""
        for _ in range(AT_A_TIME):
            assert self._room.acquire(timeout=120)
        self._room.release(AT_A_TIME)
        assert not self._failed, self._failed[:3]

    def close(self) -> None:
        self._dispatcher.close()


def everything() -> Iterator[tuple[tuple[int, int], int, bool]]:
    """Every size, length and kind of guidance, again and again."""
    yield from itertools.cycle(itertools.product(SIZES, WORDS, (True, False)))


def drawn(device: Worked, first: int, count: int) -> None:
    for number, (size, words, guided) in zip(range(first, first + count), everything(), strict=False):
        device.draw(number, size, words, guided=guided)
    device.wait()


def counted() -> dict[str, int]:
    """What must not become more."""
    gc.collect()
    objects = gc.get_objects()
    slots = [each for each in objects if type(each) is HostSlots]
    process = psutil.Process()
    return {
        "engines": sum(type(each) is OrtEngine for each in objects),
        "slots": len(slots),
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "more bound calls than there can be": max(
            0, sum(len(each._bound) for each in slots) - GROUPS_OPEN * BATCH * 2 * 2
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loader", "count"),
    [("shapes", None, 600), ("delay-0", "benchmarks.serving.delayed:load_delayed", 5000)],
)
def test_a_device_does_not_grow(name: str, loader: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EncoderCache.__init__, "__kwdefaults__", {"bytes_kept": 1 << 20})  # full after some prompts
    device = Worked(ModelSpec(name, backend="onnxruntime", sizes=SIZES), loader)
    try:
        rounds = len(SIZES) * len(WORDS) * 2
        drawn(device, 0, 4 * rounds)
        before, memory = counted(), psutil.Process().memory_info().rss
        drawn(device, 1000, count)
        after, grown = counted(), (psutil.Process().memory_info().rss - memory) / 2**20
        print(f"{name}: {device.done} jobs, {grown:+.1f} MiB, {after}")
        assert after == before
        assert grown < GROWTH
    finally:
        device.close()
