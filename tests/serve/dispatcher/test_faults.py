"""What goes wrong on a device fails alone, is tried once more, or ends the process."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import PATIENCE, Device

from benchmarks.serving.delayed import DelayedBackend
from latentrt.runtime import Pipeline
from latentrt.runtime.errors import BackendError, InputError, OutOfMemoryError
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.stages import Stages
from latentrt.serve.messages import (
    DispatcherOptions,
    Done,
    Failed,
    Job,
    ModelSpec,
    Output,
    Picture,
    Preview,
    Previews,
    Progress,
    RefusedError,
)

OPTIONS: dict[str, Any] = {"num_inference_steps": 6, "seed": 5}
Start = Callable[..., Device]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts devices with the embedded model, on an engine of fixed delay in milliseconds or on ONNX Runtime."""
    devices: list[Device] = []

    def started(*, delay: float | None = 5, **options: Any) -> Device:
        name = "shapes" if delay is None else f"delay-{delay:g}"
        if delay is not None:
            options["loader"] = "benchmarks.serving.delayed:load_delayed"
        spec = ModelSpec(name, backend="onnxruntime")
        devices.append(Device(spec, DispatcherOptions(device="cpu", batch=4, lazy=True, **options)))
        return devices[-1]

    yield started
    for device in devices:
        device.close()


def failed_calls(monkeypatch: pytest.MonkeyPatch, error: Exception, *numbers: int) -> list[int]:
    """UNet calls of these numbers raise; returns the list that the counts of all calls are written to."""
    counts: list[int] = []
    call = HostSlots.call

    def failing(self: HostSlots, at: NDArray[np.int32]) -> None:
        counts.append(len(at))
        if len(counts) in numbers:
            raise error
        call(self, at)

    monkeypatch.setattr(HostSlots, "call", failing)
    return counts


def test_a_failed_call_is_made_again_and_the_pictures_are_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start(delay=None)
    expected = device.latents(device.submit("a red star", OPTIONS))
    counts = failed_calls(monkeypatch, BackendError("the library refused"), 4)
    jobs = [device.submit("a red star", OPTIONS), device.submit("a blue square", OPTIONS | {"seed": 6})]
    np.testing.assert_array_equal(device.latents(jobs[0]), expected)
    assert isinstance(device.end(jobs[1]), Done)
    assert len(counts) > 9


def test_a_second_failure_fails_the_jobs_and_not_the_device(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start()
    failed_calls(monkeypatch, BackendError("the library refused"), 2, 4)
    end = device.end(device.submit("a red star", OPTIONS))
    assert isinstance(end, Failed)
    assert (end.kind, end.message) == ("internal", "the library refused")
    assert isinstance(device.end(device.submit("a red star", OPTIONS)), Done)


def test_where_memory_runs_out_fewer_images_share_a_call(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start()
    counts: list[int] = []
    call = HostSlots.call

    def small(self: HostSlots, at: NDArray[np.int32]) -> None:
        if len(at) > 2:
            raise OutOfMemoryError("no memory is left")
        counts.append(len(at))
        call(self, at)

    monkeypatch.setattr(HostSlots, "call", small)
    job = device.submit("a red star", OPTIONS | {"num_images_per_prompt": 4})
    assert isinstance(device.end(job), Done)
    assert max(counts) == 2


def test_a_device_that_stays_broken_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start()
    monkeypatch.setattr(DelayedBackend, "engine", _raise_sticky)
    end = device.end(device.submit("a red star", OPTIONS))
    assert isinstance(end, Failed)
    for _ in range(100):
        if device.dispatcher.broken():
            break
        time.sleep(0.02)
    assert "sticky" in str(device.dispatcher.broken())
    with pytest.raises(RefusedError) as refused:
        device.dispatcher.submit(device.job("a red star", OPTIONS))
    assert refused.value.reason == "starting"


def _raise_sticky(*_: object) -> None:
    raise BackendError("a sticky error of the device")


def test_a_hung_call_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start(call_limit=0.2)
    assert isinstance(device.end(device.submit("a red star", OPTIONS)), Done)
    assert device.dispatcher.overdue() < 0
    release = threading.Event()
    monkeypatch.setattr(HostSlots, "call", lambda *_: release.wait(PATIENCE))
    device.submit("a red star", OPTIONS)
    for _ in range(200):
        if device.dispatcher.overdue() > 0:
            break
        time.sleep(0.02)
    assert device.dispatcher.overdue() > 0
    release.set()


def test_a_picture_with_nan_fails_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start(delay=None)
    decode = Stages.decode

    def bad(self: Stages, latents: NDArray[np.float32], *, tiling: bool) -> Any:
        pixels, nonfinite = decode(self, latents, tiling=tiling)
        return pixels, nonfinite | np.array([abs(float(row.mean()) - marked) < 1e-9 for row in latents])

    marked = float(device.latents(device.submit("a red star", OPTIONS)).mean())
    monkeypatch.setattr(Stages, "decode", bad)
    jobs = [device.submit("a red star", OPTIONS | {"seed": seed}, output=Output()) for seed in (4, 5, 6)]
    ends = [device.end(job) for job in jobs]
    assert [type(end) for end in ends] == [Done, Failed, Done]
    assert isinstance(ends[1], Failed)
    assert ends[1].kind == "non_finite"


def test_a_decoder_that_fails_on_one_picture_fails_it_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start()
    seen: list[int] = []

    def decode(_: Stages, latents: NDArray[np.float32], *, tiling: bool) -> Any:
        seen.append(len(latents))
        if len(seen) < 3:
            raise BackendError(f"no decoding with tiling={tiling}")
        return np.zeros((len(latents), 128, 128, 3), np.uint8), np.zeros(len(latents), bool)

    monkeypatch.setattr(Stages, "decode", decode)
    job = device.job("a red star", OPTIONS, output=Output())
    both = [job, device.job("a red star", OPTIONS, output=Output())]
    for each in both:
        device.dispatcher.submit(each)
    assert {type(device.end(each)) for each in both} <= {Done, Failed}
    assert isinstance(device.end(device.submit("a star", OPTIONS, output=Output())), Done)


def test_a_cancelled_job_frees_its_slots_before_the_next_call(start: Start) -> None:
    device = start(delay=40)
    long = device.submit("a red star", OPTIONS | {"num_inference_steps": 100, "num_images_per_prompt": 4})
    while not any(isinstance(event, Progress) for event in device.events[long.id]):
        time.sleep(0.005)
    other = device.submit("a blue star", OPTIONS)
    calls_before = len(device.calls)
    device.dispatcher.cancel(long.id)
    end = device.end(long)
    assert isinstance(end, Failed)
    assert end.kind == "cancelled"
    device.wait([other])
    after = [call.count for call in device.calls[calls_before + 2 :]]
    assert after
    assert set(after) == {1}, "only the other job runs at most one call later"
    device.dispatcher.cancel(long.id)  # again, when it is over
    assert device.dispatcher.load().work == 0


def test_deadlines_are_refused_or_given_up(start: Start) -> None:
    device = start(delay=30)
    device.wait([device.submit("a red star", OPTIONS)])
    with pytest.raises(RefusedError) as refused:
        device.dispatcher.submit(device.job("a red star", OPTIONS | {"num_inference_steps": 100}, deadline=0.5))
    assert refused.value.reason == "deadline"
    assert refused.value.retry_after is None
    job = device.submit("a red star", OPTIONS | {"num_inference_steps": 20}, deadline=60)
    assert isinstance(device.end(job), Done)


def test_the_operators_filter_sees_each_picture(start: Start) -> None:
    device = start(delay=None, filter="support.serving:turned_if_even")
    ends = [
        device.end(device.submit("a red star", OPTIONS | {"seed": seed}, output=Output("raw"))) for seed in (8, 9, 13)
    ]
    assert [type(end) for end in ends] == [Done, Failed, Failed]
    assert [end.kind for end in ends if isinstance(end, Failed)] == ["filtered", "internal"]
    assert "broken" not in str(ends[2]), "what an exception says stays in the log"


def test_previews_are_of_the_call_they_name(start: Start) -> None:
    device = start(delay=None)
    job = device.submit(
        "a red star", OPTIONS | {"num_inference_steps": 12}, output=Output("png"), previews=Previews("rgb", 3)
    )
    device.wait([job])
    previews = [event for event in device.events[job.id] if isinstance(event, Preview)]
    assert [preview.call for preview in previews] == [3, 6, 9]
    assert [preview.index for preview in previews] == [0, 1, 2]
    assert isinstance(device.events[job.id][-1], Done)
    assert sum(isinstance(event, Picture) for event in device.events[job.id]) == 1


def test_a_pipeline_that_was_lent_is_the_dispatchers() -> None:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        pipe.lend()
        with pytest.raises(InputError, match="dispatcher"):
            pipe("a red star")
        with pytest.raises(InputError, match="dispatcher"):
            pipe.set_loras({})


def test_what_is_left_at_the_end_is_told(start: Start) -> None:
    device = start(delay=50)
    jobs: list[Job] = [device.submit("a red star", OPTIONS | {"num_inference_steps": 100}) for _ in range(6)]
    device.close()
    for job in jobs:
        end = device.end(job)
        assert isinstance(end, Failed)
        assert end.kind == "stopped"
    with pytest.raises(RefusedError):
        device.dispatcher.submit(device.job("a red star", OPTIONS))
    assert not any(thread.name == "device" and thread.is_alive() for thread in threading.enumerate())
