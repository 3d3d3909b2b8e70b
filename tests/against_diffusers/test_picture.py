"""The same picture as diffusers for the same checkpoint, prompt, seed, scheduler, steps and guidance; fp32, CPU."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import SHAPES, Exported

from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.goldens import psnr, relative_error
from latentrt.runtime.scheduler import resolve

PSNR, LATENTS = 50.0, 1e-3
SEEDS = (3, 71, 2**32 + 5)
SCHEDULERS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "default": (None, {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


@cache
def reference(checkpoint: Path) -> Any:
    """diffusers' own pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_reference(checkpoint: Path, scheduler: str, prompt: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (1, C, h, w) and picture (H, W, 3) from diffusers."""
    import diffusers
    import torch

    pipe = reference(checkpoint)
    original = diffusers.DDIMScheduler.from_pretrained(checkpoint / "scheduler")
    name, changes = SCHEDULERS[scheduler]
    pipe.scheduler = original if name is None else getattr(diffusers, name).from_config(original.config, **changes)
    generator = [torch.Generator().manual_seed(options.pop("seed"))]
    latents = pipe(prompt, generator=generator, output_type="latent", **options).images
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    picture = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
    return latents.numpy(), np.asarray(picture)


def agrees(pipe: Pipeline, expected: tuple[np.ndarray, np.ndarray], prompt: str | None, **options: Any) -> bool:
    """Whether the picture's PSNR and the latents' relative error are within the limits."""
    result = pipe(prompt, output_type="np", **options)
    images = np.asarray(result.images)
    return psnr(images[0], expected[1]) >= PSNR and relative_error(result.latents, expected[0]) <= LATENTS


@pytest.fixture(scope="module", params=["random", "shapes"])
def case(request: pytest.FixtureRequest, sd1: Exported) -> tuple[Pipeline, Path, dict[str, Any]]:
    """A pipeline, its checkpoint, and a size that differs from the training size."""
    if request.param == "shapes":
        return Pipeline.load(SHAPES.bundle, device="cpu"), SHAPES.checkpoint, {"height": 104, "width": 152}
    return Pipeline.load(sd1.bundle, device="cpu"), sd1.checkpoint, {"height": 72, "width": 56}


NEGATIVES = ("", "a green heart, blurry")
QUICK = (("default", NEGATIVES[0]), ("euler_a", NEGATIVES[1]))


@pytest.mark.parametrize(
    ("scheduler", "negative"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow])
        for pair in itertools.product(SCHEDULERS, NEGATIVES)
    ],
)
def test_same_picture_as_diffusers(case: Any, scheduler: str, negative: str) -> None:
    pipe, checkpoint, size = case
    prompt = "a small yellow star on a purple background"
    for seed in SEEDS:
        options = {"negative_prompt": negative, "guidance_scale": 5.0, "num_inference_steps": 7, "seed": seed, **size}
        expected = draw_reference(checkpoint, scheduler, prompt, **options)
        chosen = None if scheduler == "default" else scheduler
        assert agrees(pipe, expected, prompt, scheduler=chosen, **options), (scheduler, seed)


def test_same_picture_without_guidance_and_in_a_batch(case: Any) -> None:
    pipe, checkpoint, size = case
    prompts = ["a red circle", "", "a large blue square on a white background"]
    options = {"guidance_scale": 1.0, "num_inference_steps": 5, **size}
    batch = pipe(prompts, seed=[9, 4, 4], output_type="np", **options)
    for i, (prompt, seed) in enumerate(zip(prompts, (9, 4, 4), strict=True)):
        latents, picture = draw_reference(checkpoint, "default", prompt, seed=seed, **options)
        assert psnr(np.asarray(batch.images)[i], picture) >= PSNR
        assert relative_error(batch.latents[i], latents[0]) <= LATENTS


def test_guidance_rescale_as_diffusers(case: Any) -> None:
    pipe, checkpoint, size = case
    options = {"guidance_scale": 6.0, "guidance_rescale": 0.6, "num_inference_steps": 5, "seed": 2, **size}
    expected = draw_reference(checkpoint, "default", "a white diamond", **options)
    assert agrees(pipe, expected, "a white diamond", **options)
    assert not agrees(pipe, expected, "a white diamond", **{**options, "guidance_rescale": 0.0})


def later(pipe: Pipeline, steps: int) -> Plan:
    """The default plan with every timestep too high by one."""
    config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
    plan = Plan.from_config(resolve(None, config), steps)
    return replace(plan, timesteps=plan.timesteps + 1)


def swapped(pipe: Pipeline, prompt: str) -> dict[str, Any]:
    """Embeddings with the two guidance groups swapped."""
    ids = pipe.tokenizer.encode([prompt, ""]).ids
    states = pipe.run("text_encoder", {"input_ids": ids})["hidden_states"][:, 0]
    return {"prompt_embeds": states[1:], "negative_prompt_embeds": states[:1]}


FAULTS: dict[str, Callable[[Pipeline, str, int], dict[str, Any]]] = {
    "timestep + 1": lambda pipe, _, steps: {"scheduler": later(pipe, steps), "num_inference_steps": None},
    "groups swapped": lambda pipe, prompt, _: {**swapped(pipe, prompt), "prompt": None},
    "wrong hidden layer": lambda *_: {"clip_skip": 1},
    "another scheduler": lambda *_: {"scheduler": "euler"},
    "another seed": lambda *_: {"seed": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_fail_the_same_check(case: Any, fault: str) -> None:
    pipe, checkpoint, size = case
    prompt, steps = "a small yellow star on a purple background", 7
    options = {"prompt": prompt, "guidance_scale": 5.0, "num_inference_steps": steps, "seed": 3, **size}
    expected = draw_reference(checkpoint, "default", **options)
    assert agrees(pipe, expected, **options)
    assert not agrees(pipe, expected, **{**options, **FAULTS[fault](pipe, prompt, steps)})
