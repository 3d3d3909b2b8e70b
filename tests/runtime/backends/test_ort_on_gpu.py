"""ONNX Runtime on the simulated GPU: the same pictures as on the CPU, one stream, no waiting, captured graphs."""

import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.lora_files import shapes_file
from support.simulator import Fault, Machine, machine
from support.simulator.ort import IOBinding
from support.steps import WAIT, launches_of
from support.trt_engines import RTX

from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.backends.ort.on_gpu import BoundSession
from latentrt.runtime.goldens import verify_goldens

PROMPT = "a small blue diamond on a white background"
FEW: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine(onnxruntime={}) as simulated:
        yield simulated


@pytest.fixture
def pipe(gpu: Machine) -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime") as pipeline:
        assert pipeline.backend == "onnxruntime-cuda on Simulated GPU"
        yield pipeline
    assert not any(gpu.cuda.held.values()), gpu.cuda.held


@pytest.fixture(scope="module")
def cpu() -> Iterator[Pipeline]:
    with Pipeline.load(device="cpu") as pipeline:
        yield pipeline


def same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("scheduler", "images", "guidance_scale"), [("unipc", 1, 1.0), ("euler_a", 3, 6.0)])
def test_latents_are_those_of_the_cpu(
    pipe: Pipeline, cpu: Pipeline, scheduler: str, images: int, guidance_scale: float
) -> None:
    call = {"scheduler": scheduler, "num_images_per_prompt": images, "guidance_scale": guidance_scale, "seed": 8}
    same(pipe(PROMPT, **FEW, **call).latents, cpu(PROMPT, **FEW, **call).latents)


def test_it_reproduces_the_goldens(pipe: Pipeline) -> None:
    assert all(check.passed for check in verify_goldens(pipe))


def test_sizes_take_turns(pipe: Pipeline, cpu: Pipeline) -> None:
    for i, (height, width, images) in enumerate([(128, 96, 1), (64, 64, 2), (128, 96, 1)]):
        call = {"height": height, "width": width, "num_images_per_prompt": images, "seed": i}
        same(pipe(PROMPT, **FEW, **call).latents, cpu(PROMPT, **FEW, **call).latents)


def test_the_loop_waits_for_the_call_before_alone(gpu: Machine, pipe: Pipeline) -> None:
    pipe(PROMPT, seed=1, **FEW)
    steps = pipe.stream(PROMPT, seed=3, num_inference_steps=51, scheduler="euler_a", output_type="latent")
    launches_of(gpu, steps, 49)
    waits = len(gpu.cuda.waits)
    next(steps)
    assert gpu.cuda.waits[waits:] == [WAIT] * 2  # the last one is for the latents


def test_threads_share_the_stream(pipe: Pipeline, cpu: Pipeline) -> None:
    calls = [{"seed": i, "num_images_per_prompt": 1 + i % 2} for i in range(4)]
    got: dict[int, NDArray[Any]] = {}

    def draw(i: int) -> None:
        got[i] = pipe(PROMPT, **FEW, **calls[i]).latents

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, call in enumerate(calls):
        same(got[i], cpu(PROMPT, **FEW, **call).latents)


def test_first_calls_of_threads_do_not_record_each_other(cpu: Pipeline) -> None:
    """While ONNX Runtime records for long, four threads draw, encode and allocate."""
    with machine(onnxruntime={"recording_seconds": 0.05}) as slow, Pipeline.load(backend="onnxruntime") as pipe:
        errors: list[BaseException] = []
        got: dict[int, NDArray[Any]] = {}

        def draw(i: int) -> None:
            try:
                got[i] = pipe(PROMPT, **FEW, height=64 + 8 * i, width=64, seed=i).latents
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(slow.cuda.recordings) == 8  # two directions of four sizes
        assert len({thread for thread, _ in slow.cuda.recordings}) == 1
    for i, latents in got.items():
        same(latents, cpu(PROMPT, **FEW, height=64 + 8 * i, width=64, seed=i).latents)


def test_other_pipelines_of_the_process_do_not_break_a_recording(engines: Path) -> None:
    """It is global: meanwhile nothing may be allocated or waited for, on TensorRT neither."""
    with (
        machine(onnxruntime={"recording_seconds": 0.05}),
        Pipeline.load(backend="onnxruntime") as ours,
        Pipeline.load(backend=RTX, engines=engines) as other,
    ):
        sizes = [{**FEW, "height": height, "width": 64} for height in (64, 72, 80)]
        threads = [threading.Thread(target=ours, args=(PROMPT,), kwargs=size) for size in sizes]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            other(PROMPT, **FEW)
        assert ours._backend._captures  # type: ignore[attr-defined]


def test_threads_that_come_and_go_capture_once(gpu: Machine, pipe: Pipeline) -> None:
    """A captured graph belongs to its thread, and lives as long as its session."""
    for _ in range(5):
        thread = threading.Thread(target=lambda: pipe(PROMPT, **FEW))
        thread.start()
        thread.join()
    assert len(gpu.cuda.recordings) == 2


def test_a_capture_that_fails_is_run_without(cpu: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    """The session can be made, but its first run fails and leaves the stream unusable."""
    with machine(onnxruntime={"capture_fails": True}) as broken:
        with Pipeline.load(backend="onnxruntime") as pipe:
            for seed in (2, 3):
                same(pipe(PROMPT, **FEW, seed=seed).latents, cpu(PROMPT, **FEW, seed=seed).latents)
        assert not any(broken.cuda.held.values()), broken.cuda.held
    assert caplog.text.count("is not captured as a CUDA graph") == 1


def test_streams_of_two_calls_take_turns(pipe: Pipeline) -> None:
    alone = [pipe(PROMPT, seed=seed, **FEW).latents for seed in (1, 2)]
    for one, two in zip(pipe.stream(PROMPT, seed=1, **FEW), pipe.stream(PROMPT, seed=2, **FEW), strict=True):
        got = [one.latents(), two.latents()]
    assert np.array_equal(got, alone)


def test_lora_and_back(pipe: Pipeline, cpu: Pipeline, tmp_path: Path) -> None:
    call = {**FEW, "seed": 6}
    base = pipe(PROMPT, **call).latents
    lora = shapes_file(tmp_path / "style.safetensors", seed=4)
    pipe.set_loras({lora: 0.7})
    cpu.set_loras({lora: 0.7})
    changed = pipe(PROMPT, **call).latents
    same(changed, cpu(PROMPT, **call).latents)
    assert np.abs(changed - base).max() > 0.01 * np.abs(base).max()
    for pipeline in (pipe, cpu):
        pipeline.set_loras({})
    assert np.array_equal(pipe(PROMPT, **call).latents, base)


def test_a_graph_that_cannot_be_captured_is_run_without(cpu: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with machine(onnxruntime={"captures": False}), Pipeline.load(backend="onnxruntime") as pipe:
        same(pipe(PROMPT, **FEW, seed=2).latents, cpu(PROMPT, **FEW, seed=2).latents)
    assert caplog.text.count("cannot be captured as a CUDA graph") == 1


def test_changed_addresses_are_captured_anew(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The injected fault keeps the id of the old graph."""
    pipe(PROMPT, **FEW, seed=1)
    bound = BoundSession.__init__
    keep = lambda self, session, binding, graph_id: bound(self, session, binding, min(graph_id, "1"))  # noqa: E731
    monkeypatch.setattr(BoundSession, "__init__", keep)
    pipe(PROMPT, **FEW, seed=1, num_images_per_prompt=2)
    assert "other addresses" in caplog.text


def test_a_closed_pipeline_says_so(gpu: Machine) -> None:
    pipe = Pipeline.load(backend="onnxruntime", device="cuda")
    stream = pipe.stream(PROMPT, **FEW, seed=1)
    next(stream)
    pipe.close()
    assert gpu.cuda.held["streams"] == 1  # of the running call
    with pytest.raises(BackendError, match="is closed"):
        next(stream)
    assert not any(gpu.cuda.held.values())
    with pytest.raises(BackendError, match="is closed: load the bundle again"):
        pipe(PROMPT, **FEW)


@pytest.mark.parametrize("version", ["1.30.2", "1.9.0"])
def test_an_old_library_is_refused(gpu: Machine, version: str, caplog: pytest.LogCaptureFixture) -> None:
    gpu.libraries["onnxruntime"].__version__ = version
    with pytest.raises(BackendError, match=rf"onnxruntime-gpu {version} is installed, but CUDA needs 1\.31 or later"):
        Pipeline.load(backend="onnxruntime", device="cuda")
    assert not any(gpu.cuda.held.values())
    with Pipeline.load(backend="onnxruntime") as pipe:
        assert pipe.backend == "onnxruntime-cpu"
    assert "CUDA needs 1.31" in caplog.text


@pytest.mark.parametrize(("gibibytes", "strategy"), [(8, "kSameAsRequested"), (24, None)])
def test_options_of_the_cuda_provider(gibibytes: int, strategy: str | None) -> None:
    """Only a VAE that is fp32 beside a UNet of 16 bits is computed in TF32; small cards get what is asked for."""
    with machine(onnxruntime={}, memory=gibibytes << 30) as gpu:
        seen, new = {}, gpu.libraries["onnxruntime"].InferenceSession

        def session(model: Any, options: Any, providers: Any, **others: Any) -> Any:
            seen[Path(str(model)).stem] = providers[0][1]
            return new(model, options, providers, **others)

        gpu.libraries["onnxruntime"].InferenceSession = session
        for recipe, tf32 in (("fp32", "0"), ("fp16", "1")):
            with Pipeline.load(backend="onnxruntime", device="cuda") as pipe:
                object.__setattr__(pipe.bundle.manifest.recipe, "precision", recipe)
                pipe("a star", num_inference_steps=1)
            assert seen["vae_decoder"]["use_tf32"] == tf32
            assert seen["denoise"]["use_tf32"] == "0"
            assert seen["denoise"].get("arena_extend_strategy") == strategy


@pytest.mark.usefixtures("gpu")
def test_devices_are_named() -> None:
    with pytest.raises(BackendError, match=r"cuda:1 does not exist \(found 1\)"):
        Pipeline.load(backend="onnxruntime", device="cuda:1")
    with machine(onnxruntime={}, devices=0), pytest.raises(BackendError, match="CUDA finds none"):
        Pipeline.load(backend="onnxruntime", device="cuda")


def test_the_simulation_binds_as_the_real_library_does() -> None:
    for name in ("bind_input", "bind_output"):
        real = list(inspect.signature(getattr(onnxruntime.IOBinding, name)).parameters)
        assert list(inspect.signature(getattr(IOBinding, name)).parameters) == real
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "3")
    assert options.get_run_config_entry("gpu_graph_id") == "3"


def test_tensors_on_the_host_would_be_a_fault() -> None:
    with pytest.raises(Fault, match="copied at each run"):
        IOBinding().bind_input("x", "cpu", 0, np.float32, (1,), 0)
