"""ControlNets against the pipelines of diffusers: fp32, CPU, random checkpoints and nets."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.exports import CONTROLS, Exported

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.errors import BundleError
from latentrt.runtime.goldens import psnr, relative_error

LATENTS, PSNR = 1e-5, 50.0
DRAWS = [(3, (40, 56)), (2**32 + 5, (56, 48))]
CALL = {"prompt": "a harbour at night", "negative_prompt": "fog", "num_inference_steps": 7, "guidance_scale": 5.5}
# family -> checkpoint, its nets, name of diffusers' pipelines.
FAMILIES = {
    "sd1": ("sd1-ports-fp32", ("sd1-net", "sd1-bgr"), "StableDiffusionControlNet{}Pipeline"),
    "sd2": ("sd2-ports-fp32", ("sd2-net", "sd2-other"), "StableDiffusionControlNet{}Pipeline"),
    "sdxl": ("sdxl-ports-fp32", ("sdxl-net", "sdxl-other"), "StableDiffusionXLControlNet{}Pipeline"),
}
# case -> names of nets, options of ours; diffusers' differ only in lists for names.
OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"controlnet_conditioning_scale": 0.8}),
    "two": (2, {"controlnet_conditioning_scale": {0: 0.6, 1: 1.2}, "control_guidance_start": {1: 0.3}}),
    "range": (1, {"control_guidance_start": 0.25, "control_guidance_end": 0.8}),
    "guess": (1, {"controlnet_conditioning_scale": 0.9, "guess_mode": True}),
    "image": (1, {"strength": 0.6}),
    "inpaint": (2, {"strength": 0.9, "control_guidance_end": {0: 0.5}}),
}
DEFAULTS = {"controlnet_conditioning_scale": 1.0, "control_guidance_start": 0.0, "control_guidance_end": 1.0}
CASES = [
    pytest.param(family, case, marks=[] if family == "sd1" and case in ("two", "inpaint") else [pytest.mark.slow])
    for family in FAMILIES
    for case in OPTIONS
]


def blots(seed: int, size: tuple[int, int]) -> Image.Image:
    """A map that is a little larger than the picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((size[1] + 5, size[0] + 2))


def ellipse(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(mask).ellipse((size[1] // 5, size[0] // 4, size[1] - 4, size[0] - 9), fill=255)
    return mask


@cache
def components(checkpoint: Path) -> dict[str, Any]:
    return dict(diffusers.DiffusionPipeline.from_pretrained(checkpoint).components)


def reference(name: str, checkpoint: Path, nets: list[Any]) -> Any:
    parts = {k: v for k, v in components(checkpoint).items() if not ("XL" in name and "safety" in k)}
    more = {} if "XL" in name else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**parts, controlnet=nets if len(nets) > 1 else nets[0], **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(pipe: Any, seed: int, hints: list[Image.Image], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (1, C, h, w) and picture (H, W, 3) of diffusers; values by net become lists."""
    key = "control_image" if "image" in options else "image"
    several = len(hints) > 1
    for name, usual in DEFAULTS.items():
        value = options.get(name, usual)
        by_net = [value.get(i, usual) if isinstance(value, Mapping) else value for i in range(len(hints))]
        options[name] = by_net if several else by_net[0]
    options[key] = hints if several else hints[0]
    latents = pipe(generator=[torch.Generator().manual_seed(seed)], output_type="latent", **CALL, **options).images
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents.numpy(), np.asarray(pipe.image_processor.postprocess(pixels, output_type="pil")[0])


def drawn(pipe: Pipeline, seed: int, nets: list[str], hints: list[Image.Image], **options: Any) -> Any:
    named = {
        name: {nets[i]: one for i, one in value.items()} if isinstance(value, Mapping) else value
        for name, value in options.items()
    }
    pictures = dict(zip(nets, hints, strict=True))
    return pipe(control_image=pictures, seed=seed, output_type="np", **CALL, **named)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_same_picture_as_diffusers(exported: Callable[[str], Exported], family: str, case: str) -> None:
    base, names, pattern = FAMILIES[family]
    count, options = OPTIONS[case]
    checkpoint, used = exported(base), list(names[:count])
    nets = [diffusers.ControlNetModel.from_pretrained(exported(name).checkpoint) for name in used]
    task = {"image": "Img2Img", "inpaint": "Inpaint"}.get(case, "")
    theirs = reference(pattern.format(task), checkpoint.checkpoint, nets)
    controls = {name: exported(name).bundle for name in names}
    for backend in ("onnxruntime", "openvino"):
        with Pipeline.load(checkpoint.bundle, backend=backend, device="cpu", controls=controls) as pipe:
            for seed, size in DRAWS:
                hints = [blots(seed % 97 + i, size) for i in range(count)]
                more: dict[str, Any] = {"height": size[0], "width": size[1], **options}
                if case in ("image", "inpaint"):
                    more["image"] = blots(5, size).resize((size[1], size[0]))
                if case == "inpaint":
                    more["mask_image"] = ellipse(size)
                latents, picture = expected(theirs, seed, hints, **more)
                ours = drawn(pipe, seed, used, hints, **more)
                assert relative_error(ours.latents, latents) < LATENTS, (backend, seed)
                assert psnr(np.asarray(ours.images)[0], picture) > PSNR
            if backend == "openvino":
                continue
            half = {"controlnet_conditioning_scale": 0.5}
            late = {"control_guidance_start": 0.3}  # a call later than 0.25, and three later than 0
            for other, wrong in (([blots(1, size), *hints[1:]], {}), (hints, half), (hints, late)):
                ours = drawn(pipe, seed, used, other, **{**more, **wrong})
                assert relative_error(ours.latents, latents) > 10 * LATENTS, wrong


@pytest.mark.slow
def test_a_net_that_pools_its_residuals(exported: Callable[[str], Exported]) -> None:
    checkpoint, net = exported("sd1-ports-fp32"), exported("sd1-pools")
    theirs = reference(
        FAMILIES["sd1"][2].format(""),
        checkpoint.checkpoint,
        [diffusers.ControlNetModel.from_pretrained(net.checkpoint)],
    )
    latents, _ = expected(theirs, 6, [blots(6, (40, 40))], height=40, width=40)
    with Pipeline.load(checkpoint.bundle, device="cpu", controls={"shuffle": net.bundle}) as pipe:
        ours = drawn(pipe, 6, ["shuffle"], [blots(6, (40, 40))], height=40, width=40)
    assert relative_error(ours.latents, latents) < LATENTS


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0, 4])
def test_union(exported: Callable[[str], Exported], mode: int) -> None:
    checkpoint, net = exported("sdxl-ports-fp32"), exported("sdxl-union")
    parts = {k: v for k, v in components(checkpoint.checkpoint).items() if "safety" not in k}
    union = diffusers.ControlNetUnionModel.from_pretrained(net.checkpoint)
    theirs = diffusers.StableDiffusionXLControlNetUnionPipeline(**parts, controlnet=union)
    theirs.set_progress_bar_config(disable=True)
    with Pipeline.load(checkpoint.bundle, device="cpu", controls={"union": net.bundle}) as pipe:
        for seed, size in DRAWS:
            hint, more = blots(seed % 89, size), {"height": size[0], "width": size[1], **CALL}
            latents = theirs(
                control_image=[hint], control_mode=[mode], controlnet_conditioning_scale=0.7, output_type="latent",
                generator=[torch.Generator().manual_seed(seed)], **more,
            ).images.numpy()  # fmt: skip
            options = {
                "control_image": hint,
                "controlnet_conditioning_scale": 0.7,
                "seed": seed,
                "output_type": "latent",
            }
            ours = pipe(**options, control_mode=mode, **more)
            assert relative_error(ours.latents, latents) < LATENTS
            assert relative_error(pipe(**options, control_mode=mode + 1, **more).latents, latents) > 100 * LATENTS
        with pytest.raises(InputError, match="from 0 to 5"):
            pipe(**options, **more)


def test_without_a_net_it_draws_as_before(exported: Callable[[str], Exported]) -> None:
    checkpoint = exported("sd1-ports-fp32")
    plain = reference_pipeline(checkpoint.checkpoint)
    with Pipeline.load(checkpoint.bundle, device="cpu", controls={"net": exported("sd1-net").bundle}) as pipe:
        options = {**CALL, "height": 40, "width": 56, "output_type": "latent"}
        latents = plain(generator=[torch.Generator().manual_seed(9)], **options).images.numpy()
        ours = pipe(seed=9, **options).latents
        assert relative_error(ours, latents) < LATENTS
        off = pipe(seed=9, **options, control_image=blots(1, (40, 56)), controlnet_conditioning_scale=0).latents
        assert np.array_equal(off, ours)


def reference_pipeline(checkpoint: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline(**components(checkpoint), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_does_not_fit_is_refused(exported: Callable[[str], Exported], sd1: Exported) -> None:
    checkpoint, net = exported("sd1-ports-fp32"), exported("sd1-net")
    with pytest.raises(BundleError, match="exported without this port; export it with --ports control"):
        Pipeline.load(sd1.bundle, device="cpu", controls={"net": net.bundle})
    with pytest.raises(BundleError, match="is a control bundle"):
        Pipeline.load(net.bundle)
    with pytest.raises(BundleError, match="latentrt export-control"):
        Pipeline.load(checkpoint.bundle, controls={"net": checkpoint.bundle})
    hint = blots(1, (40, 40))
    with Pipeline.load(checkpoint.bundle, device="cpu", controls={"a": net.bundle, "b": net.bundle}) as pipe:
        for options, message in (
            ({"control_image": hint}, r"pass \{name: picture\}, with names of a, b"),
            ({"control_image": {"c": hint}}, "unknown ControlNet 'c'"),
            ({"controlnet_conditioning_scale": 0.5}, "pass control_image"),
            ({"control_image": {"a": hint}, "control_guidance_start": {"b": 0.1}}, "'b', which has no picture"),
            ({"control_image": {"a": hint}, "control_mode": 1}, "is for ControlNet-Union"),
            ({"control_image": {"a": hint}, "control_guidance_start": 0.5, "control_guidance_end": 0.4}, "less than"),
            ({"control_image": {"a": [hint] * 3}}, "3 images for 1 prompts"),
        ):
            with pytest.raises(InputError, match=message):
                pipe("a", **options)
    with (
        Pipeline.load(checkpoint.bundle, device="cpu") as pipe,
        pytest.raises(InputError, match="load one with controls="),
    ):
        pipe("a", control_image=hint)


def test_every_control_bundle_of_these_tests_is_used() -> None:
    assert {base for base, *_ in CONTROLS.values()} == {base for base, *_ in FAMILIES.values()}
