"""TensorRT engines on a simulated GPU: threads, streams, memory, and captured graphs."""

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.simulator import Machine, machine
from support.steps import WAIT, launches_of
from support.trt_engines import FEW, PROMPT, RTX, same

from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.backends.trt.loaded_engine import BoundContext
from latentrt.runtime.errors import OutOfMemoryError


def test_the_loop_waits_for_the_call_before_alone(gpu: Machine, pipe: Pipeline) -> None:
    pipe(PROMPT, seed=1, **FEW)
    steps = pipe.stream(PROMPT, seed=3, num_inference_steps=51, scheduler="euler_a", output_type="latent")
    assert launches_of(gpu, steps, 49) == 49
    waits = len(gpu.cuda.waits)
    next(steps)
    assert gpu.cuda.waits[waits:] == [WAIT] * 2  # the last one is for the latents


@pytest.mark.slow
def test_eight_threads_draw_at_once(pipe: Pipeline, ort: Pipeline) -> None:
    calls = [{"seed": i, "scheduler": ("ddim", "euler_a")[i % 2], "num_images_per_prompt": 1 + i % 2} for i in range(8)]
    got: dict[int, NDArray[Any]] = {}

    def draw(i: int) -> None:
        got[i] = pipe(PROMPT, **FEW, **calls[i]).latents

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, call in enumerate(calls):
        same(got[i], ort(PROMPT, **FEW, **call).latents)


def test_two_streams_take_turns(gpu: Machine, pipe: Pipeline) -> None:
    alone = [pipe(PROMPT, seed=seed, **FEW).latents for seed in (1, 2)]
    for one, two in zip(pipe.stream(PROMPT, seed=1, **FEW), pipe.stream(PROMPT, seed=2, **FEW), strict=True):
        got = [one.latents(), two.latents()]
    assert np.array_equal(got, alone)
    held = gpu.cuda.held
    pipe(PROMPT, seed=1, **FEW)
    assert gpu.cuda.held == held


def test_a_cancelled_picture_leaves_nothing(gpu: Machine, pipe: Pipeline) -> None:
    before = pipe(PROMPT, seed=1, **FEW).latents
    held = gpu.cuda.held
    for steps in range(1, 4):
        stream = pipe.stream(PROMPT, seed=9, **FEW)
        for _ in range(steps):
            next(stream)
        stream.close()
    assert np.array_equal(pipe(PROMPT, seed=1, **FEW).latents, before)
    more = {name: held[name] for name in ("pinned", "events")}  # for uploads behind those that were pending
    assert gpu.cuda.held | more == held


@pytest.mark.slow
def test_a_hundred_pipelines_leave_nothing(gpu: Machine, engines: Path) -> None:
    for i in range(100):
        with Pipeline.load(backend=RTX, engines=engines) as pipe:
            if i % 20 == 0:
                pipe(PROMPT, seed=1, num_inference_steps=1)
            else:
                pipe.run("time", {"timesteps": np.zeros(i, np.float32)})
            assert gpu.cuda.held["device"] > 0
        assert not any(gpu.cuda.held.values())


def test_closing_waits_for_nobody(gpu: Machine, engines: Path) -> None:
    """A call under way is refused at its next step, and then its memory is freed."""
    pipe = Pipeline.load(backend=RTX, engines=engines)
    stream = pipe.stream(PROMPT, seed=4, **FEW)
    next(stream)
    pipe.close()
    assert gpu.cuda.held["streams"] > 0
    with pytest.raises(BackendError, match="is closed"):
        next(stream)
    assert not any(gpu.cuda.held.values())
    with pytest.raises(BackendError, match="is closed"):
        pipe(PROMPT, **FEW)


def test_sizes_that_were_not_drawn_for_long_are_forgotten(
    gpu: Machine, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentrt.runtime.loop.gpu_pool.IDLE_KEPT", 2)
    sizes = [(h, w) for h in (64, 72, 80) for w in (64, 88)]
    held = []
    for _ in range(2):
        for height, width in sizes:
            pipe(PROMPT, height=height, width=width, num_inference_steps=3, output_type="latent")
            held.append((gpu.cuda.held["graphs"], gpu.cuda.held["streams"]))
    assert max(held) == (2, 3)  # of two sizes, and the stream for text encoders and VAE


def test_an_engine_that_cannot_be_captured_draws_the_same(
    gpu: Machine, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = pipe(PROMPT, seed=6, **FEW).latents
    monkeypatch.setattr(gpu.libraries[RTX].IExecutionContext, "capturable", False)
    with Pipeline.load(backend=RTX, engines=pipe._backend._files.folder) as plain:
        launches = gpu.cuda.launches
        assert np.array_equal(plain(PROMPT, seed=6, **FEW).latents, expected)
        assert gpu.cuda.launches == launches
    assert "cannot be captured" in caplog.text


class Garbage:
    """An object of a library that only the garbage collector frees, which calls CUDA."""

    def __init__(self, freed: Callable[[], object]) -> None:
        self.itself = self
        weakref.finalize(self, freed)


@pytest.mark.parametrize("kept_off", [True, False])
def test_garbage_is_not_collected_during_a_capture(
    gpu: Machine, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, kept_off: bool
) -> None:
    """Freeing a library's object in the thread that captures breaks the capture."""
    call = BoundContext.__call__

    def littering(self: BoundContext, stream: int) -> None:
        Garbage(gpu.cuda.breaks_capture)
        call(self, stream)

    monkeypatch.setattr(BoundContext, "__call__", littering)
    if not kept_off:
        monkeypatch.setattr("latentrt.runtime.gpu.device._without_garbage_collection", nullcontext)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with nullcontext() if kept_off else pytest.raises(BackendError, match="cudaErrorStreamCaptureInvalidated"):
            pipe(PROMPT, **FEW)
    finally:
        gc.set_threshold(*threshold)
        gc.collect()


@pytest.mark.usefixtures("gpu")
def test_compiled_kernels_are_kept(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for times in (1, 2):
        with Pipeline.load(backend=RTX, engines=engines) as pipe:
            pipe(PROMPT, seed=1, **FEW)
        (kernels,) = (tmp_path / "latentrt" / "kernels").glob("denoise-*.cache")
        assert kernels.read_bytes() == b"kernels " * 2 * times  # one context for each of the two directions


def test_the_second_gpu(engines: Path) -> None:
    with machine(devices=2) as two:
        with Pipeline.load(backend=RTX, engines=engines, device="cuda:1") as pipe:
            pipe(PROMPT, **FEW)
            assert {stream.device for stream in two.cuda._streams.values()} == {1}
        with pytest.raises(BackendError, match=r"cuda:2 does not exist \(found 2\)"):
            Pipeline.load(backend=RTX, engines=engines, device="cuda:2")


def test_the_current_gpu_stays_what_it_was(engines: Path) -> None:
    """Of a program that uses another one, also in threads that never called CUDA before."""
    with machine(devices=3) as three:
        three.cuda.cudaSetDevice(2)
        with Pipeline.load(backend=RTX, engines=engines, device="cuda:1") as pipe:
            assert three.cuda.device == 2
            for step in pipe.stream(PROMPT, **FEW):
                assert three.cuda.device == 2
                step.latents()
            thread = threading.Thread(target=lambda: pipe(PROMPT, **FEW))
            thread.start()
            thread.join()
            pipe("a star", num_inference_steps=1)
        assert three.cuda.device == 2
        assert not any(three.cuda.held.values())


def test_smaller_calls_work_after_the_gpu_was_full(engines: Path) -> None:
    """Whatever the allocation is that fails: nothing refers to memory that is not there."""
    failed = 0
    with machine(memory=64 << 20) as gpu, Pipeline.load(backend=RTX, engines=engines) as pipe:
        expected = pipe(PROMPT, seed=1, **FEW).latents
        pipe._backend._slots.free_idle()
        used = gpu.cuda.held["device"]
        for extra in range(0, 12 << 20, 256 << 10):
            gpu.cuda.memory = used + extra
            try:
                pipe(PROMPT, seed=1, num_images_per_prompt=4, **FEW)
            except OutOfMemoryError:
                failed += 1
            gpu.cuda.memory = 64 << 20
            assert np.array_equal(pipe(PROMPT, seed=1, **FEW).latents, expected)
            pipe._backend._slots.free_idle()
    assert failed > 10


def test_idle_sizes_make_room(engines: Path) -> None:
    with machine(memory=64 << 20) as gpu, Pipeline.load(backend=RTX, engines=engines) as pipe:
        pipe(PROMPT, **FEW)
        pipe(PROMPT, num_images_per_prompt=4, **FEW)
        gpu.cuda.memory = gpu.cuda.held["device"]
        pipe(PROMPT, height=96, width=96, **FEW)
        assert len(pipe._backend._slots._idle) == 1


def test_a_full_gpu_says_what_it_lacks(engines: Path) -> None:
    with machine(memory=3 << 20), Pipeline.load(backend=RTX, engines=engines) as pipe:  # noqa: SIM117
        with pytest.raises(BackendError, match=r"cannot allocate \d MiB: \d+ of the GPU's 3 MiB are free. Draw fewer"):
            pipe(PROMPT, **FEW)
