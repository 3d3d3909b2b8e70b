"""Every model family and task against the pipeline of diffusers: fp32, CPU, random checkpoints."""

import json
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support.exports import Exported
from support.references import (
    DRAWS,
    LATENTS,
    LCM,
    PSNR,
    SD,
    SDXL,
    TASKS,
    agrees,
    expected,
    picture,
    reference,
    task_options,
)

from latentrt.runtime import InputError, LatentRTError, Pipeline
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens
from latentrt.runtime.request.time_inputs import guidance_embedding

PROMPT = "a lighthouse in a storm, oil painting"
TURBO = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
# family -> export, pipeline of each task (None: not supported), additional arguments of a call.
FAMILIES: dict[str, tuple[str, tuple[str | None, ...], dict[str, Any]]] = {
    "sd1": ("sd1-fp32", SD, {"negative_prompt": "fog", "guidance_scale": 5.0}),
    "sd2": ("sd2-fp32-opset18", SD, {"negative_prompt": "", "guidance_scale": 3.0}),
    "sdxl": ("sdxl-fp32", SDXL, {"negative_prompt": "fog", "guidance_scale": 6.0}),
    "sdxl-turbo": ("sdxl-fp32", SDXL, {"guidance_scale": 0.0, "scheduler": TURBO}),
    # diffusers' inpainting leaves out the VAE's latents_mean and latents_std.
    "sdxl-edm": ("sdxl-edm-fp32", (*SDXL[:2], None), {"negative_prompt": "fog", "guidance_scale": 3.0}),
    "sd1-inpaint": ("sd1-inpaint-fp32", (None, None, SD[2]), {"guidance_scale": 4.0}),
    "lcm": ("lcm-fp32", LCM, {"guidance_scale": 8.5}),
}
CASES = [
    pytest.param(family, task, marks=[] if family in ("sd1", "sdxl") else [pytest.mark.slow])
    for family, (_, classes, _) in FAMILIES.items()
    for task, name in zip(TASKS, classes, strict=True)
    if name
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_same_picture_as_diffusers(exported: Callable[[str], Exported], family: str, task: str) -> None:
    export, classes, more = FAMILIES[family]
    case, name = exported(export), str(classes[TASKS.index(task)])
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        for seed, size in DRAWS:
            options = {"prompt": PROMPT, "num_inference_steps": 6, **more, **task_options(task, size)}
            wanted = expected(case.checkpoint, name, seed, **options)
            assert agrees(pipe, wanted, seed=seed, **options), (seed, size)
        for wrong in ({"prompt": "a bowl of soup"}, {"scheduler": "dpm++_2m_sde"}, {"clip_skip": 1}, {"seed": 8}):
            assert not agrees(pipe, wanted, **{"seed": seed, **options, **wrong}), wrong


@pytest.mark.parametrize("name", ["sdxl-fp32", "sd1-inpaint-fp32", "lcm-fp32"])
def test_goldens_are_reproduced(exported: Callable[[str], Exported], name: str) -> None:
    with Pipeline.load(exported(name).bundle, device="cpu") as pipe:
        checks = verify_goldens(pipe)
    assert all(check.passed for check in checks), checks


def test_sdxl_is_told_of_sizes_and_of_no_negative_prompt(exported: Callable[[str], Exported]) -> None:
    case = exported("sdxl-fp32")
    options = {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 7.0, "height": 40, "width": 56}
    positive = {"original_size": (900, 60), "crops_coords_top_left": (80, 4), "target_size": (50, 700)}
    negative = {f"negative_{name}": (b, a) for name, (a, b) in positive.items()}
    options |= positive | negative
    wanted = expected(case.checkpoint, SDXL[0], 5, **options)
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        assert agrees(pipe, wanted, seed=5, **options)
        assert not agrees(pipe, wanted, seed=5, **options, negative_prompt="")  # which is not zeros
        for name in ("crops_coords_top_left", "negative_crops_coords_top_left", "target_size", "original_size"):
            assert not agrees(pipe, wanted, seed=5, **{**options, name: (1, 1)}), name


@pytest.mark.parametrize("width", [32, 33, 256])
@pytest.mark.parametrize("scale", [1.0, 1.5, 8.5, 30.0])
def test_guidance_embedding_is_that_of_diffusers(scale: float, width: int) -> None:
    pipe = diffusers.LatentConsistencyModelPipeline
    wanted = pipe.get_guidance_scale_embedding(None, torch.tensor(scale - 1).repeat(1), embedding_dim=width)[0]
    assert np.abs(guidance_embedding(scale, width) - wanted.numpy()).max() < 2e-3  # of angles up to 29,000


def test_latents_go_in_as_into_diffusers(exported: Callable[[str], Exported]) -> None:
    """What one call gives as latents is the picture that the next one starts from, with no draw of its own."""
    case = exported("sd1-fp32")
    options = {"prompt": PROMPT, "num_inference_steps": 5, "strength": 0.6, "guidance_scale": 3.0}
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        size = {"height": 40, "width": 56}
        first = pipe("a ship", seed=1, num_inference_steps=2, output_type="latent", **size).latents
        wanted = expected(case.checkpoint, SD[1], 6, image=torch.from_numpy(first), **options)
        assert agrees(pipe, wanted, seed=6, image=first, **options)
        assert not agrees(pipe, wanted, seed=6, image=first + np.float32(0.01), **options)


def test_denoising_in_two_parts(exported: Callable[[str], Exported]) -> None:
    """As an ensemble of SDXL's base and refiner shares the steps: each part, and both together."""
    case = exported("sdxl-fp32")
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 7, "guidance_scale": 4.0}
    size = {"height": 40, "width": 56}
    generator = torch.Generator().manual_seed(19)
    first = reference(case.checkpoint, SDXL[0])(
        generator=generator, output_type="latent", denoising_end=0.6, **size, **options
    ).images
    whole = reference(case.checkpoint, SDXL[1])(
        image=first, generator=generator, output_type="latent", denoising_start=0.6, **options
    ).images
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        options |= {"seed": 19, "output_type": "latent"}
        half = pipe(denoising_end=0.6, **size, **options).latents
        both = pipe(denoising_start=0.6, image=half, **options).latents
        assert relative_error(half, first.numpy()) <= LATENTS
        assert relative_error(both, whole.numpy()) <= LATENTS
        assert relative_error(half, both) > 0.01
        with pytest.raises(InputError, match="goes on from latents: pass them as image, or leave it out"):
            pipe(denoising_start=0.5, **options)
        with pytest.raises(InputError, match="goes on from latents: pass them as image, without strength"):
            pipe(denoising_start=0.5, image=half, strength=0.5, **options)


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.slow
def test_marks_of_a_single_file_are_followed(exported: Callable[[str], Exported]) -> None:
    """v-prediction with zero terminal SNR, which nothing but two empty tensors tells."""
    case = exported("sdxl-v-fp32")
    config = json.loads((case.bundle / "scheduler/scheduler_config.json").read_text())
    plain = json.loads((case.checkpoint / "scheduler/scheduler_config.json").read_text())
    assert config == plain | ZERO_SNR
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        assert all(check.passed for check in verify_goldens(pipe))
        for task, name in zip(TASKS, SDXL, strict=True):
            seed, size = DRAWS[0]
            options = {"prompt": PROMPT, "num_inference_steps": 6, "guidance_scale": 4.0, **task_options(task, size)}
            wanted = expected(case.checkpoint, name, seed, scheduler=config, **options)
            assert agrees(pipe, wanted, seed=seed, **options), task
            for wrong in ({"rescale_betas_zero_snr": False}, {"prediction_type": "epsilon"}):
                assert not agrees(pipe, wanted, seed=seed, scheduler=wrong, **options), (task, wrong)


EDM = {
    "euler": ("EDMEulerScheduler", {}),
    "euler_exponential": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    "dpm++_2m": ("EDMDPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("EDMDPMSolverMultistepScheduler", {}),
    "dpm++_2m_sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_3m": ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
}
# The model is another one, but what the pipeline computes is that of CosXL.
COSXL = {
    "_class_name": "EDMEulerScheduler",
    "sigma_min": 0.002,
    "sigma_max": 120.0,
    "sigma_data": 1.0,
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
}


@pytest.mark.slow
def test_samplers_of_edm_models(exported: Callable[[str], Exported]) -> None:
    case = exported("sdxl-edm-fp32")
    original = json.loads((case.checkpoint / "scheduler/scheduler_config.json").read_text())
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 7, "guidance_scale": 3.0}
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        for task, name in zip(TASKS[:2], SDXL[:2], strict=True):
            seed, size = DRAWS[0]
            more = options | task_options(task, size)
            chosen = {sampler: original | own | {"_class_name": kind} for sampler, (kind, own) in EDM.items()}
            for scheduler, config in [*chosen.items(), (COSXL, COSXL)]:
                wanted = expected(case.checkpoint, name, seed, scheduler=config, **more)
                assert agrees(pipe, wanted, seed=seed, scheduler=scheduler, **more), (task, scheduler)
        for scheduler in ("heun", "ddim", "euler_a", "dpm++_2m_sgm_uniform", "UniPC"):
            with pytest.raises(
                LatentRTError, match=r"does not work with a checkpoint of EDM preconditioning; expected"
            ):
                pipe(**options, scheduler=scheduler)
        with pytest.raises(LatentRTError, match="denoising_start and denoising_end have no meaning"):
            pipe(**options, denoising_end=0.5)


@pytest.mark.slow
def test_pictures_of_edm_models_are_those_of_the_pipeline(exported: Callable[[str], Exported]) -> None:
    """Decoded by the pipeline itself; inpainting, too, uses mean and std of the latents, which diffusers' does not."""
    case = exported("sdxl-edm-fp32")
    seed, size = DRAWS[0]
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 6, "guidance_scale": 3.0}
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        assert all(check.passed for check in verify_goldens(pipe))
        for task, name in zip(TASKS[:2], SDXL[:2], strict=True):
            more = task_options(task, size)
            theirs = reference(case.checkpoint, name)
            theirs.scheduler = diffusers.EDMDPMSolverMultistepScheduler.from_pretrained(case.checkpoint / "scheduler")
            wanted = theirs(generator=torch.Generator().manual_seed(seed), output_type="pil", **options, **more).images
            got = np.asarray(pipe(seed=seed, output_type="np", **options, **more).images)[0]
            assert psnr(got, np.asarray(wanted[0])) >= PSNR, task
        more = {"height": 48, "width": 40, "image": picture((45, 39)), "strength": 0.8}
        drawn_anew = Image.fromarray(np.uint8(np.arange(40) >= 20)[None].repeat(48, 0) * 255)
        latents = pipe(seed=seed, output_type="latent", mask_image=drawn_anew, **options, **more).latents
        vae, processor = theirs.vae, theirs.image_processor
        pixels = processor.preprocess(more["image"], height=48, width=40)
        with torch.no_grad():
            known = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(seed))
        mean, std = (torch.tensor(vae.config[f"latents_{key}"]).view(1, 4, 1, 1) for key in ("mean", "std"))
        known = ((known - mean) * vae.config.scaling_factor / std).numpy()
        half = known.shape[3] // 2
        assert relative_error(latents[..., :half], known[..., :half]) <= LATENTS
        assert relative_error(latents[..., half:], known[..., half:]) > 0.1
