"""TensorRT engines on a simulated GPU: the images of ONNX Runtime, and which engines are chosen."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.exports import SHAPES
from support.simulator import Machine
from support.trt_engines import FEW, PROMPT, changed, same

from latentrt.runtime import InputError, Pipeline, Plan
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.gpu.staging import Staging
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.loop.resident import run
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import resolve


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
    scales, rescales = (3, 1, 7), (0, 0.5, 1)
    together = [
        Trajectory(
            plan, context[i], np.tile(np.float32([1 - scales[i], scales[i]]), (len(plan), 1)), noise[i], rescales[i]
        )
        for i, plan in enumerate(plans)
    ]
    results = []
    for pipeline in (pipe, ort):
        with closing(pipeline.slots(together[0].bucket, 3)) as slots:
            results.append([p.fetch(r).result() for passed in run(slots, together) for p in passed for r in (0, 6)])
    assert len(results[0]) == 2 * sum(map(len, plans))
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


def test_only_the_layers_of_the_text_encoder_that_are_read_are_copied(
    pipe: Pipeline, ort: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(0).integers(0, 49406, (5, 77))
    expected = ort.run("text_encoder", {"input_ids": ids})["hidden_states"]
    for layers in ([1], [0, 1]):
        got = pipe.run("text_encoder", {"input_ids": ids}, layers)["hidden_states"]
        same(got, expected[:, layers])
    with pytest.raises(InputError, match="layer 2 of hidden_states: expected less than 2"):
        pipe.run("text_encoder", {"input_ids": ids}, [2])
    copied: list[int] = []
    download = Staging.download
    monkeypatch.setattr(
        Staging,
        "download",
        lambda self, at, shape, dtype: copied.append(int(np.prod(shape))) or download(self, at, shape, dtype),
    )
    pipe("a star", clip_skip=1, **FEW)
    assert copied.count(77 * 64) == 4  # two texts, two layers


def test_a_thousand_calls_need_several_runs_of_time(pipe: Pipeline, ort: Pipeline) -> None:
    config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
    plan = Plan.from_config(resolve("ddim", config), 1000)
    inputs = {"timesteps": np.repeat(plan.timesteps, 4)}
    same(pipe.run("time", inputs)["time_features"], ort.run("time", inputs)["time_features"])


# --- selection -------------------------------------------------------------------------------------------------------


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
