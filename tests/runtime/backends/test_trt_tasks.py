"""Families and tasks on the simulated GPU: the same pictures as ONNX Runtime, without synchronisation in the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import SHAPES, Exported
from support.references import mask, picture
from support.simulator import Machine
from support.simulator.tensorrt import SCRATCH
from support.steps import launches_of

from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.goldens import psnr

RTX = "tensorrt_rtx"
SIZE = (64, 72)
FEW: dict[str, Any] = {"num_inference_steps": 5, "output_type": "latent", "seed": 4, "height": 64, "width": 72}


def build(gpu: Machine, bundle: Path, folder: Path, **sizes: list[str]) -> Path:
    gpu.build(bundle, RTX, {"height": ["64"], "width": ["72"], "groups": ["2"], **sizes}, engines=folder)
    return folder


def same_as_onnxruntime(bundle: Path, engines: Path, prompt: str, **call: Any) -> None:
    with (
        Pipeline.load(bundle, backend=RTX, engines=engines) as pipe,
        Pipeline.load(bundle, backend="onnxruntime", device="cpu") as ort,
    ):
        for _ in range(2):  # the second time with captured graphs
            got, expected = pipe(prompt, **FEW, **call).latents, ort(prompt, **FEW, **call).latents
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_pictures_and_masks(gpu: Machine, tmp_path: Path) -> None:
    """Three images on engines for four, with a scheduler that draws noise."""
    engines = build(gpu, SHAPES.bundle, tmp_path, batch=["4"])
    call = {"image": picture(SIZE), "strength": 0.7, "num_images_per_prompt": 3, "scheduler": "euler_a"}
    same_as_onnxruntime(SHAPES.bundle, engines, "a red star", **call)
    same_as_onnxruntime(SHAPES.bundle, engines, "a red star", **call, mask_image=mask(SIZE))


@pytest.mark.parametrize("name", ["sdxl-fp32", "sd1-inpaint-fp32", "sd1-inpaint-taesd-fp32"])
def test_other_inputs_of_the_unet(gpu: Machine, exported: Callable[[str], Exported], tmp_path: Path, name: str) -> None:
    bundle = exported(name).bundle
    engines = build(gpu, bundle, tmp_path, batch=["2"])
    more = {"image": picture(SIZE), "mask_image": mask(SIZE)} if "inpaint" in name else {"original_size": (90, 40)}
    same_as_onnxruntime(bundle, engines, "a lighthouse", guidance_scale=4.0, negative_prompt="fog", **more)


def test_blending_waits_for_nothing(gpu: Machine, tmp_path: Path) -> None:
    engines = build(gpu, SHAPES.bundle, tmp_path)
    call = {**FEW, "num_inference_steps": 20, "image": picture(SIZE), "mask_image": mask(SIZE)}
    with Pipeline.load(backend=RTX, engines=engines) as pipe:
        pipe("a star", **call)
        steps = pipe.stream("a star", **call)
        assert launches_of(gpu, steps, 18) == 18  # each with the blend
        steps.close()
    assert not any(gpu.cuda.held.values())


def test_blending_may_need_more_scratch_memory_than_the_unet(
    gpu: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRATCH, "blend", 12 << 20)
    engines = build(gpu, SHAPES.bundle, tmp_path)
    same_as_onnxruntime(SHAPES.bundle, engines, "a star", image=picture(SIZE), mask_image=mask(SIZE))


def test_without_an_engine_of_blend_the_command_is_named(gpu: Machine, tmp_path: Path) -> None:
    sizes = {"height": ["64"], "width": ["72"]}
    graphs = ["text_encoder", "context", "time", "denoise", "vae_decoder", "vae_encoder"]
    gpu.build(SHAPES.bundle, RTX, sizes, engines=tmp_path, graphs=graphs)
    with Pipeline.load(backend=RTX, engines=tmp_path) as pipe:
        with pytest.raises(BackendError, match=r"no tensorrt_rtx engine of blend .* latentrt build"):
            pipe("a star", **FEW, image=picture(SIZE), mask_image=mask(SIZE))
        pipe("a star", **FEW)


def test_previews_with_and_without_an_engine(
    gpu: Machine, exported: Callable[[str], Exported], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = exported("sd1-taesd-fp32").bundle
    sizes = {"height": ["64"], "width": ["72"]}
    graphs = ["text_encoder", "context", "time", "denoise", "vae_decoder", "vae_encoder"]
    gpu.build(bundle, RTX, sizes, engines=tmp_path, graphs=graphs)
    call = {**FEW, "image": picture(SIZE), "strength": 0.7}
    with Pipeline.load(bundle, backend=RTX, engines=tmp_path) as pipe, caplog.at_level("INFO"):
        steps = pipe.stream("a star", **call)
        step = next(steps)
        assert np.array_equal(step.preview()[0], step.preview("rgb")[0])
        assert "the preview is by rgb" in caplog.text
        with pytest.raises(BackendError, match=r"no tensorrt_rtx engine of preview_decoder .* latentrt build"):
            step.preview("taesd")
        steps.close()
    gpu.build(bundle, RTX, sizes, engines=tmp_path)
    with (
        Pipeline.load(bundle, backend=RTX, engines=tmp_path) as pipe,
        Pipeline.load(bundle, backend="onnxruntime", device="cpu") as ort,
    ):
        for got, wanted in zip(pipe.stream("a star", **call), ort.stream("a star", **call), strict=True):
            assert psnr(np.asarray(got.preview()[0]), np.asarray(wanted.preview("taesd")[0])) > 50
            assert psnr(np.asarray(got.preview("rgb")[0]), np.asarray(wanted.preview("taesd")[0])) < 30
