"""SDXL's refiner against diffusers: pictures and masks drawn with it, and base and refiner as one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.exports import Exported

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens

pytestmark = pytest.mark.slow
LATENTS, PSNR = 1e-5, 50.0
OPTIONS: dict[str, Any] = {"prompt": "a tower of glass", "guidance_scale": 5.5, "num_inference_steps": 9}
DRAWS = [(23, (40, 72)), (2**31 + 8, (64, 48))]
BACKENDS = ["onnxruntime", "openvino"]


def reference(checkpoint: Path, name: str, **more: Any) -> Any:
    """diffusers' pipeline, whatever pipeline the checkpoint was saved with; `more`: what this one does not load."""
    pipe = getattr(diffusers, name).from_pretrained(checkpoint, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(size: tuple[int, int]) -> Image.Image:
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / 12
    return Image.fromarray(np.uint8(127.5 + 120 * np.stack([np.sin(x), np.cos(y + 1), np.sin(x - y)], -1)))


def decoded(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return np.asarray(pipe.image_processor.postprocess(pixels, output_type="pil")[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_are_refined_as_by_diffusers(exported: Callable[[str], Exported], backend: str) -> None:
    case = exported("sdxl-refiner-fp32")
    theirs = reference(case.checkpoint, "StableDiffusionXLImg2ImgPipeline")
    assert theirs.config.requires_aesthetics_score
    told = {"aesthetic_score": 8.0, "negative_aesthetic_score": 1.5, "crops_coords_top_left": (9, 4)}
    told |= {"original_size": (300, 200), "negative_original_size": (40, 60)}
    with Pipeline.load(case.bundle, device="cpu", backend=backend) as pipe:
        assert all(check.passed for check in verify_goldens(pipe))
        for seed, size in DRAWS:
            for more in ({}, {**told, "negative_prompt": "fog"}):
                call: dict[str, Any] = {**OPTIONS, **more, "image": picture(size), "strength": 0.5}
                wanted = theirs(generator=generator(seed), output_type="latent", **call).images
                result = pipe(seed=seed, **call)
                assert relative_error(result.latents, wanted.numpy()) <= LATENTS, (seed, bool(more))
                assert psnr(np.asarray(result.images[0]), decoded(theirs, wanted)) >= PSNR
        for wrong in ({"aesthetic_score": 7.5}, {"negative_aesthetic_score": 2.5}, {"crops_coords_top_left": (0, 0)}):
            latents = pipe(seed=seed, output_type="latent", **{**call, **wrong}).latents
            assert relative_error(latents, wanted.numpy()) > 10 * LATENTS, wrong


def test_a_part_of_a_picture_is_refined_as_by_diffusers(exported: Callable[[str], Exported]) -> None:
    case = exported("sdxl-refiner-fp32")
    score = {"requires_aesthetics_score": True}
    theirs = reference(case.checkpoint, "StableDiffusionXLInpaintPipeline", text_encoder=None, tokenizer=None, **score)
    seed, size = DRAWS[1]
    mask = Image.new("L", size[::-1])
    ImageDraw.Draw(mask).ellipse((10, 5, 40, 50), fill=255)
    call: dict[str, Any] = {**OPTIONS, "image": picture(size), "mask_image": mask, "strength": 0.8}
    call |= {"height": size[0], "width": size[1], "aesthetic_score": 7.0}
    wanted = theirs(generator=generator(seed), output_type="latent", **call).images
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        got = pipe(seed=seed, output_type="latent", **call).latents
        assert relative_error(got, wanted.numpy()) <= LATENTS
        plain = pipe(seed=seed, output_type="latent", **{**call, "aesthetic_score": 6.0}).latents
        assert relative_error(plain, wanted.numpy()) > 10 * LATENTS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_base_and_refiner_in_one_call(exported: Callable[[str], Exported], backend: str, scheduler: str | None) -> None:
    """Two calls of diffusers with one generator: the ensemble of expert denoisers of its documentation."""
    base, refiner = exported("sdxl-fp32"), exported("sdxl-refiner-fp32")
    first = reference(base.checkpoint, "StableDiffusionXLPipeline")
    second = reference(refiner.checkpoint, "StableDiffusionXLImg2ImgPipeline")
    for pipe in (first, second) if scheduler else ():
        pipe.scheduler = getattr(diffusers, str(scheduler)).from_config(pipe.scheduler.config)
    with Pipeline.load(base.bundle, refiner=refiner.bundle, device="cpu", backend=backend) as pipe:
        for seed, (height, width) in DRAWS:
            shared, more = generator(seed), {"negative_prompt": "fog"}
            size = {"height": height, "width": width}
            half = first(generator=shared, denoising_end=0.7, output_type="latent", **size, **more, **OPTIONS).images
            wanted = second(
                image=half,
                generator=shared,
                denoising_start=0.7,
                aesthetic_score=7.0,
                output_type="latent",
                **more,
                **OPTIONS,
            ).images
            call: dict[str, Any] = {**OPTIONS, **more, **size, "seed": seed, "aesthetic_score": 7.0}
            call |= {"scheduler": scheduler} if scheduler else {}
            *_, last = pipe.stream(**call, refiner_start=0.7)
            assert last.result is not None
            assert relative_error(last.result.latents, wanted.numpy()) <= LATENTS, seed
            assert psnr(np.asarray(last.result.images[0]), decoded(second, wanted)) >= PSNR
            # Another score, and a refiner that begins one call earlier or later.
            for wrong in ({"aesthetic_score": 6.0}, {"refiner_start": 0.58}, {"refiner_start": 0.82}):
                latents = pipe(**{**call, "refiner_start": 0.7, **wrong, "output_type": "latent"}).latents
                assert relative_error(latents, wanted.numpy()) > 10 * LATENTS, wrong


def test_prompts_and_sizes_of_the_base_stay_with_it(exported: Callable[[str], Exported]) -> None:
    """The refiner has one text encoder, and reads no target size; diffusers ignores both there."""
    base, refiner = exported("sdxl-fp32"), exported("sdxl-refiner-fp32")
    first = reference(base.checkpoint, "StableDiffusionXLPipeline")
    second = reference(refiner.checkpoint, "StableDiffusionXLImg2ImgPipeline")
    seed, (height, width) = DRAWS[0]
    sizes = {"original_size": (90, 60), "target_size": (50, 70), "crops_coords_top_left": (3, 2)}
    sizes |= {f"negative_{name}": pair[::-1] for name, pair in sizes.items()}
    more = {"prompt_2": "a ship", "negative_prompt": "fog", "negative_prompt_2": "rain", **sizes}
    shared = generator(seed)
    half = first(
        generator=shared, denoising_end=0.5, output_type="latent", height=height, width=width, **more, **OPTIONS
    ).images
    wanted = second(image=half, generator=shared, denoising_start=0.5, output_type="latent", **more, **OPTIONS).images
    with Pipeline.load(base.bundle, refiner=refiner.bundle, device="cpu") as pipe:
        got = pipe(seed=seed, height=height, width=width, refiner_start=0.5, output_type="latent", **more, **OPTIONS)
        assert relative_error(got.latents, wanted.numpy()) <= LATENTS


def test_what_a_refiner_does_not_take_is_told(exported: Callable[[str], Exported]) -> None:
    with Pipeline.load(exported("sdxl-refiner-fp32").bundle, device="cpu") as pipe:
        for options, message in (
            ({}, "this model refines pictures, and was not trained to begin from noise: pass image"),
            ({"target_size": (8, 8)}, "target_size: SDXL's refiner takes an aesthetic score instead"),
            ({"prompt_2": "a ship"}, "prompt_2 is for models with two text encoders"),
            ({"aesthetic_score": 101}, "aesthetic_score=101: expected a number from 0 to 100"),
        ):
            image = {} if not options else {"image": picture((40, 40))}
            with pytest.raises(InputError, match=message):
                pipe("a tower", **image, **options)
