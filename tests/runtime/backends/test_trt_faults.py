"""TensorRT engines on a simulated GPU: injected faults are caught, unsuitable engines and sizes raise errors."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from support.exports import SHAPES
from support.simulator import Fault, Machine, machine
from support.trt_engines import FEW, PROMPT, RTX, changed, engine_of, same

from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.backends.trt.library import REASONS
from latentrt.runtime.backends.trt.loaded_engine import LoadedEngine
from latentrt.runtime.bundle import shape_at
from latentrt.runtime.gpu.device import DeviceMemory, Event, Stream
from latentrt.runtime.loop.call_block import CallBlock
from latentrt.runtime.protocols import Bucket


def draw_two(pipe: Pipeline) -> None:
    pipe(PROMPT, seed=1, **FEW)
    pipe(PROMPT, seed=2, **FEW)


def test_a_wrong_address_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Stream.copy
    monkeypatch.setattr(Stream, "copy", lambda self, target, source, size: copy(self, target + 64, source, size))
    with pytest.raises(Fault, match="not allocated memory"):
        draw_two(pipe)


def test_memory_given_back_early_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = CallBlock.upload

    def and_close(self: CallBlock, turn: int, batch: int, *, whole: bool = False) -> None:
        upload(self, turn, batch, whole=whole)
        self._device.close()

    monkeypatch.setattr(CallBlock, "upload", and_close)
    with pytest.raises(Fault, match="not allocated memory"):
        draw_two(pipe)


def test_a_shape_outside_of_the_profile_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = lambda tensor, sizes: shape_at(tensor, {**sizes, "h": 17} if "h" in sizes else sizes)  # noqa: E731
    monkeypatch.setattr("latentrt.runtime.backends.trt.loaded_engine.shape_at", shape)
    with pytest.raises(BackendError, match=r"rejected 'state': .*is not within"):
        draw_two(pipe)


def test_a_changed_address_behind_a_capture_is_caught(pipe: Pipeline) -> None:
    """Scratch memory is replaced without a new capture."""
    pipe(PROMPT, seed=1, **FEW)
    ((_, _, slots),) = pipe._backend._slots._idle
    work = slots._work
    ((bound, _),) = work._contexts.values()
    bound._context.set_device_memory(work._scratch.address, work._scratch.size)
    work._scratch.close()
    with pytest.raises(Fault, match="not allocated memory"):
        pipe(PROMPT, seed=1, **FEW)


def test_changed_shapes_behind_a_capture_are_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One context of an engine serves all sizes, and graphs of earlier sizes are kept."""
    new_context, contexts = LoadedEngine._new_context, {}
    only = lambda self: contexts.setdefault(self, None) or contexts.update({self: new_context(self)}) or contexts[self]  # noqa: E731
    monkeypatch.setattr(LoadedEngine, "_new_context", only)
    call = {**FEW, "height": 64}
    pipe(PROMPT, **call, width=64)
    pipe(PROMPT, **call, width=72)
    with pytest.raises(Fault, match="after its context's shapes were changed"):
        pipe(PROMPT, **call, width=64)
    contexts.clear()


def test_a_pinned_piece_used_twice_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    unread = lambda self: self.reader is None or self.reader() is None  # noqa: E731  # but its copy may be pending
    monkeypatch.setattr("latentrt.runtime.gpu.staging._Piece.is_free", unread)
    with pytest.raises(Fault, match="pinned memory was changed"):
        pipe([PROMPT, "a star"], seed=1, **FEW)


def test_rows_written_before_their_upload_is_done_are_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait for the call before, the third call writes what the first has not copied yet."""
    pipe(PROMPT, seed=1, **FEW)
    monkeypatch.setattr(Event, "synchronize", lambda _self: None)
    stream = pipe.stream(PROMPT, seed=1, **FEW)
    for _ in range(3):
        next(stream)
    stream.close()
    with pytest.raises(Fault, match="pinned memory was changed"):
        pipe.close()


def test_two_streams_on_one_block_are_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = DeviceMemory(8 << 20)
    monkeypatch.setattr("latentrt.runtime.loop.gpu_work.DeviceMemory", lambda _size: shared)
    one, two = pipe.stream(PROMPT, seed=1, **FEW), pipe.stream(PROMPT, seed=2, **FEW)
    next(one)
    next(two)
    with pytest.raises(Fault, match="same memory on two streams"):
        next(one)
    with suppress(Fault):
        two.close()
    shared.close()


def test_an_aliased_state_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = LoadedEngine.bind

    def aliased(self: LoadedEngine, sizes: Any, addresses: Any, scratch: Any) -> Any:
        return bind(self, sizes, {**addresses, "next_state": addresses.get("state", 0)}, scratch)

    monkeypatch.setattr(LoadedEngine, "bind", aliased)
    with pytest.raises(Fault, match="writes to its own input"):
        draw_two(pipe)


def test_an_early_look_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the copy to the host, the result is garbage."""
    monkeypatch.setattr(Event, "synchronize", lambda _self: None)
    assert not np.isfinite(pipe.run("time", {"timesteps": np.ones(3, np.float32)})["time_features"]).any()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "facts", "reason"),
    [
        (RTX, {"version": "1.6.0.1"}, r"built with tensorrt_rtx 1\.6\.0\.1, but 1\.7\.1\.116 is installed"),
        (RTX, {"compute_capabilities": ["8.6", "12.0"]}, r"compute capability 8\.6, 12\.0, but Simulated GPU has 8\.9"),
        (RTX, {"onnx_sha256": "0" * 64}, r"built from another denoise\.onnx; the bundle has been exported again since"),
        (RTX, {"weights_sha256": "0" * 64}, r"weights that differ from denoise\.onnx\.data"),
        (RTX, {"host_code": True}, r"code that runs on the host: load it with trust_engines=True"),
        ("tensorrt", {"device": "NVIDIA L4"}, r"built for NVIDIA L4, but this GPU is Simulated GPU"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_an_engine_for_something_else_is_refused(
    engines: Path, tmp_path: Path, backend: str, facts: dict[str, Any], reason: str
) -> None:
    folder = changed(engines, tmp_path, **facts)
    with pytest.raises(BackendError, match=rf"{reason}.*Build: latentrt build .*shapes --backend {backend}"):
        Pipeline.load(backend=backend, engines=folder)


@pytest.mark.usefixtures("gpu")
def test_later_gpus_run_what_was_built_for_them(engines: Path, tmp_path: Path) -> None:
    folder = changed(engines, tmp_path, compute_capabilities=["8.0+"])
    Pipeline.load(backend=RTX, engines=folder).close()


@pytest.mark.parametrize(("version", "loads"), [("10.16.2.1", True), ("10.15.9.9", False), ("11.0.0.1", False)])
def test_a_version_compatible_engine_runs_on_later_versions(tmp_path: Path, version: str, loads: bool) -> None:
    with machine() as built_on:
        built_on.build(SHAPES.bundle, "tensorrt", options=BuildOptions(version_compatible=True), engines=tmp_path)
    with machine({"tensorrt": version}) as later:
        if not loads:
            with pytest.raises(BackendError, match=r"built with tensorrt 10\.16\.1\.11, but"):
                Pipeline.load(backend="tensorrt", engines=tmp_path, trust_engines=True)
            return
        with pytest.raises(BackendError, match=r"trust_engines=True"):
            Pipeline.load(backend="tensorrt", engines=tmp_path)
        with Pipeline.load(backend="tensorrt", engines=tmp_path, trust_engines=True) as pipe:
            pipe(PROMPT, **FEW)
        assert not any(later.cuda.held.values())


@pytest.mark.usefixtures("gpu")
def test_weights_that_were_left_out_come_from_the_onnx_file(tmp_path: Path, ort: Pipeline) -> None:
    with machine() as built_on:
        built_on.build(SHAPES.bundle, "tensorrt", options=BuildOptions(strip_weights=True), engines=tmp_path)
    with Pipeline.load(backend="tensorrt", engines=tmp_path) as pipe:
        same(pipe(PROMPT, seed=8, **FEW).latents, ort(PROMPT, seed=8, **FEW).latents)


def test_flipped_bits_are_refused_before_the_library_sees_them(
    gpu: Machine, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(engines, tmp_path)
    file = folder / engine_of(folder, "denoise", B=(1, 1, 1), G=(2, 2, 2))["file"]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    seen: list[bytes] = []
    monkeypatch.setattr(gpu.libraries[RTX].Runtime, "deserialize_cuda_engine", lambda _self, plan: seen.append(plan))
    with Pipeline.load(backend=RTX, engines=folder) as pipe, pytest.raises(BackendError, match="hash does not match"):
        pipe.slots(Bucket(2, 16, 16, 77), 1)
    assert seen == []


def test_engines_that_the_gpu_cannot_run_are_refused_before_they_are_loaded(
    gpu: Machine, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = gpu.libraries[RTX].Runtime
    monkeypatch.setattr(runtime, "invalid", 2 + 4)
    monkeypatch.setattr(runtime, "deserialize_cuda_engine", lambda _self, _plan: pytest.fail("loaded"))
    refusal = (
        r"does not run on this machine: tensorrt_rtx 1\.7\.1\.116 says that it does not support this GPU \(build it "
        r"for its compute capability, or use another backend\), and NVIDIA's driver is too old \(update it\)"
    )
    with Pipeline.load(backend=RTX, engines=engines) as pipe, pytest.raises(BackendError, match=refusal):
        pipe(PROMPT, **FEW)


def test_the_real_library_answers_as_the_simulated_one() -> None:
    """It looks at an engine's first bytes, also without a GPU."""
    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR))
    flags = tensorrt_rtx.EngineInvalidityDiagnostics
    answer = runtime.get_engine_validity(b"x" * 4096)
    assert answer == (tensorrt_rtx.EngineValidity.INVALID, int(flags.MALFORMED_ENGINE))
    assert set(REASONS) == set(flags.__members__)


@pytest.mark.usefixtures("gpu")
def test_a_size_that_was_not_built_names_what_is_there_and_the_command(pipe: Pipeline) -> None:
    with pytest.raises(BackendError) as caught:
        pipe(PROMPT, height=256, width=64, guidance_scale=1)
    text = str(caught.value)
    assert "no tensorrt_rtx engine of denoise for B=1 G=1 h=32 w=8 S=77" in text
    assert "B=4 G=2 h=16 w=16 S=77; " in text
    assert text.endswith("--backend tensorrt_rtx --batch 1 --groups 1 --height 256 --width 64 --tokens 77")


def test_without_gpu_or_engines(engines: Path, caplog: pytest.LogCaptureFixture) -> None:
    with machine(devices=0), pytest.raises(BackendError, match="needs an NVIDIA GPU, but CUDA finds none"):
        Pipeline.load(backend=RTX, engines=engines)
    with Pipeline.load(engines=engines) as pipe:  # no driver: the engines are for another machine
        assert pipe.backend == "onnxruntime-cpu"
    assert not caplog.records
    with machine(), pytest.raises(BackendError, match=r"no usable tensorrt engine of text_encoder, .*Build: latentrt"):
        Pipeline.load(backend="tensorrt")
    with machine(), pytest.raises(BackendError, match="NVIDIA GPUs only"):
        Pipeline.load(backend="tensorrt", device="cpu", engines=engines)
    with pytest.raises(BackendError, match=r"tensorrt cannot be imported.*pip install"):
        Pipeline.load(backend="tensorrt", engines=engines)
