"""TensorRT engines on the simulated GPU: the same pictures as ONNX Runtime, and correct use of CUDA."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.exports import SHAPES
from support.simulator import Fault, Machine, machine

from latentrt.export.build.trt_builder import BuildOptions
from latentrt.runtime import BackendError, InputError, Pipeline, Plan
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.gpu.device import DeviceMemory, Stream
from latentrt.runtime.gpu.lane import Execution, Lane
from latentrt.runtime.gpu.staging import Staging
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.loop.gpu import GpuDenoiser, _Table
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.scheduler import resolve

RTX = "tensorrt_rtx"
PROMPT = "a large yellow triangle on a purple background"
FEW: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of `shapes` for both libraries: for one image, four images, and a range of sizes."""
    folder = tmp_path_factory.mktemp("engines")
    with machine() as built_on:
        for backend in ("tensorrt_rtx", "tensorrt"):
            built_on.build(SHAPES.bundle, backend, {"batch": ["1", "4"], "groups": ["1", "2"]}, engines=folder)
            ranges = {"height": ["64:96:160"], "width": ["64:96:160"], "batch": ["1:1:2"], "tokens": ["77:77:154"]}
            built_on.build(SHAPES.bundle, backend, ranges, engines=folder)
    return folder


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine() as simulated:
        yield simulated


@pytest.fixture
def pipe(gpu: Machine, engines: Path) -> Iterator[Pipeline]:
    with Pipeline.load(backend=RTX, engines=engines) as pipeline:
        yield pipeline
    assert not any(gpu.cuda.held.values()), gpu.cuda.held


@pytest.fixture(scope="module")
def ort() -> Iterator[Pipeline]:
    """The same bundle on ONNX Runtime."""
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipeline:
        yield pipeline


def same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def engine_of(engines: Path, graph: str, **profile: tuple[int, int, int]) -> dict[str, Any]:
    records = json.loads((engines / "engines.json").read_text())["engines"]
    wanted = {symbol: list(span) for symbol, span in profile.items()}
    return next(r for r in records if r["graph"] == graph and wanted.items() <= r["profile"].items())


# --- the pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["dpm++_2m_karras", "euler_a"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("images", [1, 3])
def test_latents_are_those_of_onnxruntime(
    pipe: Pipeline, ort: Pipeline, scheduler: str, guidance_scale: float, images: int
) -> None:
    """Three images run on the engine for four."""
    call = {"scheduler": scheduler, "guidance_scale": guidance_scale, "num_images_per_prompt": images, "seed": 11}
    same(pipe(PROMPT, **FEW, **call).latents, ort(PROMPT, **FEW, **call).latents)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_pictures_and_goldens_are_those_of_onnxruntime(
    gpu: Machine, engines: Path, ort: Pipeline, backend: str
) -> None:
    with Pipeline.load(backend=backend, engines=engines) as pipe:
        assert pipe.backend == f"{backend} on Simulated GPU"
        assert all(check.passed for check in verify_goldens(pipe))
        call = {"num_images_per_prompt": 4, "seed": 5, "output_type": "np", "num_inference_steps": 3}
        got, expected = pipe(PROMPT, **call).images, ort(PROMPT, **call).images
        assert np.abs(np.int16(got) - np.int16(expected)).max() <= 1
    assert not any(gpu.cuda.held.values())


def test_sizes_change_between_pictures(pipe: Pipeline, ort: Pipeline) -> None:
    """Static and dynamic engines alternate; a repeated size uses its captured graph again."""
    sizes = [(128, 128, 2), (64, 160, 1), (96, 96, 2), (128, 128, 2), (160, 64, 2), (64, 160, 1)]
    for i, (height, width, images) in enumerate(sizes):
        call = {"height": height, "width": width, "num_images_per_prompt": images, "seed": i}
        same(pipe(PROMPT, **FEW, **call).latents, ort(PROMPT, **FEW, **call).latents)


def test_texts_of_two_pieces(pipe: Pipeline, ort: Pipeline) -> None:
    embeds = np.random.default_rng(3).standard_normal((2, 154, 64)).astype(np.float32)
    call = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds[::-1], "seed": 1}
    same(pipe(**FEW, **call).latents, ort(**FEW, **call).latents)


def test_a_batch_of_different_schedulers(pipe: Pipeline, ort: Pipeline) -> None:
    """Also with different numbers of calls, and noise for some images only."""
    config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
    names = {"euler_a": 5, "dpm++_2m": 3, "dpm2_a": 2}
    plans = [Plan.from_config(resolve(name, config), steps) for name, steps in names.items()]
    noise = []
    for seed, plan in enumerate(plans):
        generator = TorchGenerator(seed)
        noise.append(np.stack([generator.randn((4, 16, 16)) for _ in range(1 + int(plan.draws.sum()))]))
    rng = np.random.default_rng(0)
    context = rng.standard_normal((3, 2, 77, 64)).astype(np.float32)
    arguments = {"context": context, "guidance": np.float32([[-2, 3], [0, 1], [-6, 7]]), "noise": noise}
    arguments["guidance_rescale"] = np.float32([0, 0.5, 1])
    results = []
    for pipeline in (pipe, ort):
        steps = pipeline.denoiser(Bucket(3, 2, 16, 16, 77)).run(plans, **arguments)
        results.append([step.read(r) for step in steps for r in (0, 6)])
    assert len(results[0]) == 2 * max(map(len, plans))
    for got, expected in zip(*results, strict=True):
        same(got, expected)


def test_previews_do_not_change_the_picture(pipe: Pipeline) -> None:
    plain = pipe(PROMPT, seed=2, **FEW).latents
    steps = list(zip(range(4), pipe.stream(PROMPT, seed=2, **FEW), strict=True))
    with pytest.raises(InputError, match="state after call 2 is no longer available"):
        steps[2][1].latents()
    for step in pipe.stream(PROMPT, seed=2, **FEW):
        (preview,) = step.preview()
        assert preview.size == (128, 128)
        last = step.latents()
    assert np.array_equal(last, plain)


def test_many_prompts_are_spread_over_several_runs(pipe: Pipeline, ort: Pipeline) -> None:
    """More texts and pictures than fit one run of the text encoder and the decoder."""
    ids = np.random.default_rng(0).integers(0, 49406, (37, 77))
    latents = np.random.default_rng(1).standard_normal((6, 4, 16, 16)).astype(np.float32)
    for graph, inputs in (("text_encoder", {"input_ids": ids}), ("vae_decoder", {"latents": latents})):
        got, expected = pipe.run(graph, inputs), ort.run(graph, inputs)
        for name, array in expected.items():
            assert got[name].dtype == array.dtype
            assert got[name].shape == array.shape
            assert np.abs(got[name].astype(np.float64) - array).max() < 2, name


def test_a_thousand_calls_need_several_runs_of_time(pipe: Pipeline, ort: Pipeline) -> None:
    config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
    plan = Plan.from_config(resolve("ddim", config), 1000)
    denoiser = pipe.denoiser(Bucket(4, 1, 16, 16, 77))
    rows: list[NDArray[Any]] = []

    def look(_self: Any, lane: Lane, denoise: Execution, tables: Any, time_rows: Any, _blend: Any) -> Iterator[Any]:
        table = _Table(lane, denoise, "time_features", len(tables.timesteps))
        denoiser._compute_time_features(lane, table, time_rows)
        rows.append(lane.download(table.address, (4000, table.row_size // 16), "float32"))
        yield from ()

    noise = [np.zeros((1, 4, 16, 16), np.float32)] * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuDenoiser, "_calls", look)
        list(
            denoiser.run(
                [plan] * 4,
                context=np.zeros((4, 1, 77, 64), np.float32),
                guidance=np.ones((4, 1), np.float32),
                guidance_rescale=np.zeros(4, np.float32),
                noise=noise,
            )
        )
    same(rows[0], ort.run("time", {"timesteps": np.repeat(plan.timesteps, 4)})["time_features"])


# --- use of the GPU -------------------------------------------------------------------------------------------------


def test_nothing_waits_inside_the_loop(gpu: Machine, pipe: Pipeline) -> None:
    pipe(PROMPT, seed=1, **FEW)
    steps = pipe.stream(PROMPT, seed=3, num_inference_steps=51, scheduler="euler_a", output_type="latent")
    next(steps)
    waits, launches = len(gpu.cuda.waits), gpu.cuda.launches
    for _ in range(49):
        next(steps)
    assert gpu.cuda.waits[waits:] == []
    assert gpu.cuda.launches - launches == 49
    next(steps)
    assert gpu.cuda.waits[waits:] == ["cudaStreamSynchronize"]


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
    assert gpu.cuda.held == held


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
    """A running call finishes, and then its memory is freed."""
    pipe = Pipeline.load(backend=RTX, engines=engines)
    expected = pipe(PROMPT, seed=4, **FEW).latents
    stream = pipe.stream(PROMPT, seed=4, **FEW)
    next(stream)
    pipe.close()
    assert gpu.cuda.held["streams"] == 1
    *_, last = stream
    assert np.array_equal(last.result.latents, expected)
    assert not any(gpu.cuda.held.values())
    with pytest.raises(BackendError, match="is closed"):
        pipe(PROMPT, **FEW)


def test_sizes_that_were_not_drawn_for_long_are_forgotten(
    gpu: Machine, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentrt.runtime.gpu.lane.CONTEXTS_KEPT", 4)
    sizes = [(h, w) for h in (64, 72, 80) for w in (64, 88)]
    held = []
    for _ in range(2):
        for height, width in sizes:
            pipe(PROMPT, height=height, width=width, num_inference_steps=1, output_type="latent")
            held.append(gpu.cuda.held["graphs"])
    assert max(held) <= 4


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


@pytest.mark.usefixtures("gpu")
def test_compiled_kernels_are_kept(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for times in (1, 2):
        with Pipeline.load(backend=RTX, engines=engines) as pipe:
            pipe(PROMPT, seed=1, **FEW)
        (kernels,) = (tmp_path / "latentrt" / "kernels").glob("denoise-*.cache")
        assert kernels.read_bytes() == b"kernels " * times


def test_the_second_gpu(engines: Path) -> None:
    with machine(devices=2) as two:
        with Pipeline.load(backend=RTX, engines=engines, device="cuda:1") as pipe:
            pipe(PROMPT, **FEW)
            assert {stream.device for stream in two.cuda._streams.values()} == {1}
        with pytest.raises(BackendError, match=r"cuda:2 does not exist \(found 2\)"):
            Pipeline.load(backend=RTX, engines=engines, device="cuda:2")


def test_a_full_gpu_says_what_it_lacks(engines: Path) -> None:
    with machine(memory=3 << 20), Pipeline.load(backend=RTX, engines=engines) as pipe:  # noqa: SIM117
        with pytest.raises(BackendError, match=r"cannot allocate 3 MiB: \d+ of the GPU's 3 MiB are free. Draw fewer"):
            pipe(PROMPT, **FEW)


# --- injected faults are caught -------------------------------------------------------------------------------------


def draw_two(pipe: Pipeline) -> None:
    pipe(PROMPT, seed=1, **FEW)
    pipe(PROMPT, seed=2, **FEW)


def test_a_wrong_address_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Stream.copy
    monkeypatch.setattr(Stream, "copy", lambda self, target, source, size: copy(self, target + 64, source, size))
    with pytest.raises(Fault, match="not allocated memory"):
        draw_two(pipe)


def test_memory_given_back_early_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = GpuDenoiser._compute_time_features

    def and_close(self: GpuDenoiser, lane: Lane, table: _Table, rows: Any) -> None:
        compute(self, lane, table, rows)
        lane._blocks.pop("time_features").close()

    monkeypatch.setattr(GpuDenoiser, "_compute_time_features", and_close)
    with pytest.raises(Fault, match="not allocated memory"):
        draw_two(pipe)


def test_a_shape_outside_of_the_profile_is_caught(pipe: Pipeline) -> None:
    denoiser = pipe.denoiser(Bucket(1, 2, 16, 16, 77))
    denoiser._denoise.sizes["h"] = 17
    with pytest.raises(BackendError, match=r"rejected 'state': .*is not within"):
        next(
            denoiser.run(
                [Plan.from_config(pipe.bundle.read_json(pipe.bundle.manifest.scheduler), 2)],
                context=np.zeros((1, 2, 77, 64), np.float32),
                guidance=np.ones((1, 2), np.float32),
                guidance_rescale=np.zeros(1, np.float32),
                noise=[np.zeros((1, 4, 17, 16), np.float32)],
            )
        )


def test_a_changed_address_behind_a_capture_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory grows without a new capture."""
    pipe(PROMPT, seed=1, **FEW)
    monkeypatch.setattr(Execution, "forget_capture", lambda _self: None)
    lane = pipe._backend.lanes._idle[0]
    lane.scratch(64 << 20)
    with pytest.raises(Fault, match="not allocated memory"):
        pipe(PROMPT, seed=1, **FEW)
    monkeypatch.undo()


def test_changed_shapes_behind_a_capture_are_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {**FEW, "height": 64}
    context = Lane.context
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "context", lambda self, engine, sizes, **_: context(self, engine, sizes, kept=False))
        patch.setattr(Execution, "forget_capture", lambda _self: None)
        pipe(PROMPT, **call, width=64)
        with pytest.raises(Fault, match="after its context's shapes were changed"):
            pipe(PROMPT, **call, width=72)


def test_a_pinned_slot_used_twice_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Staging.take

    def always_the_first(self: Staging, size: int) -> Any:
        self._used = 0
        return take(self, size)

    monkeypatch.setattr(Staging, "take", always_the_first)
    with pytest.raises(Fault, match="pinned memory was changed"):
        draw_two(pipe)


def test_two_streams_on_one_block_are_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = DeviceMemory(8 << 20)
    monkeypatch.setattr(Lane, "scratch", lambda _self, _size: shared)
    one, two = pipe.stream(PROMPT, seed=1, **FEW), pipe.stream(PROMPT, seed=2, **FEW)
    next(one)
    with pytest.raises(Fault, match="same memory on two streams"):
        next(two)
    one.close()
    shared.close()


def test_an_aliased_state_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Execution.resize

    def aliased(self: Execution, sizes: Any, elsewhere: Any = None) -> None:
        resize(self, sizes, elsewhere)
        if "next_state" in self.addresses:
            resize(self, sizes, {**(elsewhere or {}), "next_state": self.addresses["state"]})

    monkeypatch.setattr(Execution, "resize", aliased)
    with pytest.raises(Fault, match="writes to its own input"):
        draw_two(pipe)


def test_an_early_look_is_caught(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the copy to the host, the result is garbage."""
    monkeypatch.setattr(Stream, "synchronize", lambda _self: None)
    assert not np.isfinite(pipe.run("time", {"timesteps": np.ones(3, np.float32)})["time_features"]).any()


# --- errors ---------------------------------------------------------------------------------------------------------


def changed(engines: Path, tmp_path: Path, **facts: Any) -> Path:
    """A copy of the engine folder with changed records."""
    folder = Path(shutil.copytree(engines, tmp_path / "changed"))
    data = json.loads((folder / "engines.json").read_text())
    for record in data["engines"]:
        record.update(facts)
    (folder / "engines.json").write_text(json.dumps(data))
    return folder


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
        pipe.denoiser(Bucket(1, 2, 16, 16, 77))
    assert seen == []


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


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_auto_takes_the_best_that_fits(engines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Pipeline.load(engines=engines) as pipe:
        assert pipe.backend == "tensorrt on Simulated GPU"
    with Pipeline.load() as pipe:
        assert pipe.backend == "onnxruntime-cpu"
    assert not caplog.records
    with Pipeline.load(engines=changed(engines, tmp_path, version="1.7.1.116")) as pipe:
        assert pipe.backend == "tensorrt_rtx on Simulated GPU"
    assert "tensorrt is not used: " in caplog.text
    with Pipeline.load(engines=engines, device="cpu") as pipe:
        assert pipe.backend == "onnxruntime-cpu"


def test_the_list_in_a_bundle_is_read_as_well(gpu: Machine, tmp_path: Path, ort: Pipeline) -> None:
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    gpu.build(bundle)
    assert len(EngineList.of_bundle(Bundle.open(bundle)).engines) == 7
    with Pipeline.load(bundle) as pipe:
        assert pipe.backend == "tensorrt_rtx on Simulated GPU"
        same(pipe(PROMPT, seed=8, **FEW).latents, ort(PROMPT, seed=8, **FEW).latents)
