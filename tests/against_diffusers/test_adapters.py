"""T2I-Adapters and IP-Adapters against the pipelines of diffusers: fp32, CPU, random checkpoints and adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from against_diffusers.test_control import CALL, DRAWS, LATENTS, blots, components
from support.controlnets import EMBEDDING, PATCHES
from support.exports import Exported
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.bundle import ControlBundle
from latentrt.runtime.errors import BundleError
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.latents.clip_pixels import clip_pixels

BASES = {"sd1": "sd1-ports-fp32", "sdxl": "sdxl-ports-fp32"}
FAMILIES = ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)]


def plain(checkpoint: Path) -> Any:
    """A pipeline with a UNet of its own, which an adapter changes."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe: Any, seed: int, size: tuple[int, int], **options: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(seed)]
    result = pipe(generator=generator, output_type="latent", height=size[0], width=size[1], **CALL, **options)
    latents: np.ndarray = result.images.numpy()
    return latents


@pytest.mark.parametrize("family", FAMILIES)
def test_t2i_adapter(exported: Callable[[str], Exported], family: str) -> None:
    checkpoint, adapter = exported(BASES[family]), exported(f"{family}-t2i")
    unused = ("safety_checker", "image_encoder") if family == "sdxl" else ("image_encoder",)
    parts = {k: v for k, v in components(checkpoint.checkpoint).items() if k not in unused}
    module = diffusers.T2IAdapter.from_pretrained(adapter.checkpoint)
    more = {} if family == "sdxl" else {"requires_safety_checker": False}
    name = f"StableDiffusion{'XL' if family == 'sdxl' else ''}AdapterPipeline"
    theirs = getattr(diffusers, name)(**parts, adapter=module, **more)
    theirs.set_progress_bar_config(disable=True)
    for backend in ("onnxruntime", "openvino"):
        controls = {"sketch": adapter.bundle}
        with Pipeline.load(checkpoint.bundle, backend=backend, device="cpu", controls=controls) as pipe:
            for seed, size in DRAWS:
                hint = blots(seed % 83, size).resize((size[1], size[0]))
                options: dict[str, Any] = {"adapter_conditioning_scale": 0.8}
                if family == "sdxl":
                    options["adapter_conditioning_factor"] = 0.5
                wanted = latents_of(theirs, seed, size, image=hint, **options)
                ours = {"seed": seed, "output_type": "latent", "t2i_image": hint, **CALL, **options}
                assert relative_error(pipe(**ours).latents, wanted) < LATENTS
                for wrong in ({"adapter_conditioning_scale": 0.7}, {"t2i_image": blots(1, size)}):
                    call = {**ours, **wrong, "height": size[0], "width": size[1]}
                    assert relative_error(pipe(**call).latents, wanted) > 100 * LATENTS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ip", pytest.param("ip-plus", marks=pytest.mark.slow)])
def test_ip_adapter(exported: Callable[[str], Exported], family: str, kind: str) -> None:
    """With ready embeddings, which diffusers takes, too."""
    checkpoint, adapter = exported(BASES[family]), exported(f"{family}-{kind}")
    theirs = plain(checkpoint.checkpoint)
    theirs.load_ip_adapter(
        str(adapter.checkpoint), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    rng = np.random.default_rng(5)
    with Pipeline.load(checkpoint.bundle, device="cpu", controls={"face": adapter.bundle}) as pipe:
        for seed, size in DRAWS:
            shape = (2, 1, PATCHES, EMBEDDING) if kind == "ip-plus" else (2, 1, EMBEDDING)
            embeds = rng.standard_normal(shape).astype(np.float32)
            theirs.set_ip_adapter_scale(0.7)
            wanted = latents_of(theirs, seed, size, ip_adapter_image_embeds=[torch.from_numpy(embeds)])
            ours = {"seed": seed, "output_type": "latent", "height": size[0], "width": size[1], **CALL}
            ours |= {"ip_adapter_image_embeds": embeds, "ip_adapter_scale": 0.7}
            assert relative_error(pipe(**ours).latents, wanted) < LATENTS
            for wrong in ({"ip_adapter_scale": 0.6}, {"ip_adapter_image_embeds": embeds[::-1].copy()}):
                assert relative_error(pipe(**{**ours, **wrong}).latents, wanted) > 100 * LATENTS
        off = pipe(**{**ours, "ip_adapter_scale": 0}).latents
        assert relative_error(off, latents_of(plain(checkpoint.checkpoint), seed, size)) < LATENTS


@pytest.mark.parametrize("kind", ["ip", pytest.param("ip-plus", marks=pytest.mark.slow)])
def test_ip_adapter_from_a_picture(exported: Callable[[str], Exported], kind: str) -> None:
    """The image encoder is a bundle of its own."""
    checkpoint, adapter, encoder = exported("sd1-ports-fp32"), exported(f"sd1-{kind}"), exported("encoder")
    theirs = plain(checkpoint.checkpoint)
    theirs.load_ip_adapter(
        str(adapter.checkpoint), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    theirs.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder.checkpoint),
        feature_extractor=CLIPImageProcessor(**side),
    )
    layers = len(ControlBundle.open(adapter.bundle).manifest.graphs["image_context"].outputs) // 2
    controls = {"face": adapter.bundle, "clip": encoder.bundle}
    with Pipeline.load(checkpoint.bundle, device="cpu", controls=controls) as pipe:
        for seed, size in DRAWS:
            picture = blots(seed % 71, (90, 70))
            theirs.set_ip_adapter_scale(0.5)
            wanted = latents_of(theirs, seed, size, ip_adapter_image=picture)
            ours = {"seed": seed, "output_type": "latent", "height": size[0], "width": size[1], **CALL}
            got = pipe(**ours, ip_adapter_image=picture, ip_adapter_scale=[0.5] * layers).latents
            assert relative_error(got, wanted) < LATENTS
            other = pipe(**ours, ip_adapter_image=blots(1, (90, 70)), ip_adapter_scale=0.5).latents
            assert relative_error(other, wanted) > 100 * LATENTS


def test_pixels_are_those_of_clips_processor() -> None:
    processor = CLIPImageProcessor()
    for size in ((300, 260), (100, 331), (224, 224)):
        picture = blots(size[0], size)
        expected = processor(picture, do_normalize=False, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        np.testing.assert_allclose(clip_pixels(picture, 224), expected, atol=1e-6)


def test_what_does_not_fit_is_refused(exported: Callable[[str], Exported], sd1: Exported) -> None:
    names = ("t2i", "ip")
    for name in names:
        with pytest.raises(BundleError, match="exported without this port"):
            Pipeline.load(sd1.bundle, device="cpu", controls={name: exported(f"sd1-{name}").bundle})
    controls = {name: exported(f"sd1-{name}").bundle for name in names}
    hint = blots(2, (40, 40))
    with Pipeline.load(exported("sd1-ports-fp32").bundle, device="cpu", controls=controls) as pipe:
        for options, message in (
            ({"ip_adapter_image": hint}, "needs the image encoder"),
            ({"ip_adapter_image_embeds": np.zeros((2, 3))}, r"expected \(2, 48\)"),
            ({"ip_adapter_image_embeds": np.zeros((2, 48)), "ip_adapter_scale": [1, 2, 3, 4, 5]}, "has 5 numbers"),
            ({"ip_adapter_scale": 0.5}, "is about ip_adapter_image"),
            ({"adapter_conditioning_scale": 0.5}, "is about t2i_image"),
            ({"t2i_image": [hint] * 3}, "3 images for 1 prompts"),
        ):
            with pytest.raises(InputError, match=message):
                pipe("a", **options)
