"""Calls of two passes against two calls of diffusers: drawing enlarged, and a second model that goes on."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support.exports import Exported

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr, relative_error

LATENTS, PSNR = 1e-5, 50.0
# Between the passes pictures have 8 bits: a level that another library rounds the other way is off by a whole one.
OF_PICTURES = 5e-5
PROMPT = "a lighthouse in a storm, oil painting"
OPTIONS: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "fog", "guidance_scale": 4.0}
DRAWS = [(17, (40, 56)), (2**31 + 5, (64, 32))]
CLASSES = {"sd1-fp32": "StableDiffusion", "sdxl-fp32": "StableDiffusionXL"}
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
MODES = {"latent": "bilinear", "latent-bicubic": "bicubic", "latent-nearest-exact": "nearest-exact"}
QUICK = ("latent", "lanczos")
CASES = [
    pytest.param(
        name, upscaler, backend, marks=[] if backend == "onnxruntime" and upscaler in QUICK else [pytest.mark.slow]
    )
    for name in CLASSES
    for upscaler in (*MODES, *FILTERS)
    for backend in ("onnxruntime", "openvino")
]


def pipelines(case: Exported, name: str, scheduler: str | None = None) -> tuple[Any, Any]:
    """diffusers' text-to-image and image-to-image of one checkpoint."""
    text = getattr(diffusers, f"{CLASSES[name]}Pipeline").from_pretrained(case.checkpoint)
    if scheduler is not None:
        text.scheduler = getattr(diffusers, scheduler).from_config(text.scheduler.config)
    safety = {} if "XL" in CLASSES[name] else {"requires_safety_checker": False}
    image = getattr(diffusers, f"{CLASSES[name]}Img2ImgPipeline")(**text.components, **safety)
    for pipe in (text, image):
        pipe.set_progress_bar_config(disable=True)
    return text, image


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoded(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return np.asarray(pipe.image_processor.postprocess(pixels, output_type="pil")[0])


def enlarged(text: Any, image: Any, seed: int, size: tuple[int, int], upscaler: str, **options: Any) -> torch.Tensor:
    """Latents of two calls of diffusers with a generator each, the second one half as large again."""
    height, width = (3 * side // 2 for side in size)
    first = {"generator": generator(seed), "height": size[0], "width": size[1], "num_inference_steps": 6}
    factor = text.vae_scale_factor
    if upscaler in MODES:
        small = text(**first, output_type="latent", **OPTIONS).images
        large = torch.nn.functional.interpolate(small, size=(height // factor, width // factor), mode=MODES[upscaler])
    else:
        large = text(**first, **OPTIONS).images[0].resize((width, height), FILTERS[upscaler])
    latents: torch.Tensor = image(
        image=large, generator=generator(seed), output_type="latent", **options, **OPTIONS
    ).images
    return latents


@pytest.mark.parametrize(("name", "upscaler", "backend"), CASES)
def test_drawn_enlarged(exported: Callable[[str], Exported], name: str, upscaler: str, backend: str) -> None:
    case = exported(name)
    text, image = pipelines(case, name)
    with Pipeline.load(case.bundle, device="cpu", backend=backend) as pipe:
        for seed, size in DRAWS:
            wanted = enlarged(text, image, seed, size, upscaler, strength=0.65, num_inference_steps=6)
            hires = {"hires_scale": 1.5, "hires_strength": 0.65, "hires_upscaler": upscaler}
            call: dict[str, Any] = {"seed": seed, "height": size[0], "width": size[1], "num_inference_steps": 6}
            result = pipe(**OPTIONS, **call, **hires)
            limit = OF_PICTURES if upscaler in FILTERS and backend == "openvino" else LATENTS
            assert relative_error(result.latents, wanted.numpy()) <= limit, (seed, size)
            assert psnr(np.asarray(result.images[0]), decoded(image, wanted)) >= PSNR, (seed, size)
            other = {**hires, "hires_upscaler": "latent-nearest"}, {**hires, "hires_strength": 0.9}
            for wrong in other:
                latents = pipe(**OPTIONS, **call, **wrong, output_type="latent").latents
                assert relative_error(latents, wanted.numpy()) > 10 * LATENTS, wrong


def test_a_number_of_steps_in_the_second_pass(exported: Callable[[str], Exported]) -> None:
    """With a stochastic sampler, whose draws begin anew, too."""
    case = exported("sd1-fp32")
    text, image = pipelines(case, "sd1-fp32", "EulerAncestralDiscreteScheduler")
    seed, size = DRAWS[0]
    wanted = enlarged(text, image, seed, size, "latent", strength=0.5, num_inference_steps=8)
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        call: dict[str, Any] = {"seed": seed, "height": size[0], "width": size[1], "num_inference_steps": 6}
        call |= {"hires_scale": 1.5, "hires_strength": 0.5, "scheduler": "euler_a", "output_type": "latent"}
        got = pipe(**OPTIONS, **call, hires_steps=4).latents
        assert relative_error(got, wanted.numpy()) <= LATENTS
        assert relative_error(pipe(**OPTIONS, **call, hires_steps=5).latents, wanted.numpy()) > 10 * LATENTS
        assert relative_error(pipe(**OPTIONS, **call).latents, wanted.numpy()) > 10 * LATENTS


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_second_model_goes_on_with_the_generator(exported: Callable[[str], Exported], scheduler: str) -> None:
    """Two calls of diffusers with one generator; the model is its own refiner."""
    case = exported("sdxl-fp32")
    text, image = pipelines(case, "sdxl-fp32", scheduler)
    with Pipeline.load(case.bundle, refiner=case.bundle, device="cpu") as pipe:
        for seed, (height, width) in DRAWS:
            shared, steps = generator(seed), {"num_inference_steps": 7}
            size = {"height": height, "width": width}
            half = text(generator=shared, denoising_end=0.6, output_type="latent", **size, **steps, **OPTIONS).images
            wanted = image(
                image=half, generator=shared, denoising_start=0.6, output_type="latent", **steps, **OPTIONS
            ).images
            call: dict[str, Any] = {"seed": seed, **size, **steps, "scheduler": scheduler}
            result = pipe(**OPTIONS, **call, refiner_start=0.6)
            assert relative_error(result.latents, wanted.numpy()) <= LATENTS, (seed, scheduler)
            assert psnr(np.asarray(result.images[0]), decoded(image, wanted)) >= PSNR


def test_unfinished_latents_take_no_initial_noise(exported: Callable[[str], Exported]) -> None:
    """A call with denoising_start and a generator of its own: a stochastic sampler draws at once."""
    case = exported("sdxl-fp32")
    text, image = pipelines(case, "sdxl-fp32", "EulerAncestralDiscreteScheduler")
    options = {**OPTIONS, "num_inference_steps": 7}
    seed, (height, width) = DRAWS[0]
    half = text(generator=generator(1), denoising_end=0.5, output_type="latent", height=height, width=width, **options)
    wanted = image(
        image=half.images, generator=generator(seed), denoising_start=0.5, output_type="latent", **options
    ).images
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        call: dict[str, Any] = {"image": half.images.numpy(), "denoising_start": 0.5, "scheduler": "euler_a"}
        got = pipe(**options, **call, seed=seed, output_type="latent").latents
        assert relative_error(got, wanted.numpy()) <= LATENTS
        assert relative_error(pipe(**options, **call, seed=1, output_type="latent").latents, wanted.numpy()) > 0.01
