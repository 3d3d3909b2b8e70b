"""The client library `webuiapi` against a server with the embedded model; its pictures are those of `Pipeline`."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image, ImageDraw
from support.lora_files import shapes_file
from support.real_server import ServerProcess, real_server

from latentrt.runtime import Pipeline

# What the web UI's API says of a call besides its fields.
WEB_UI: dict[str, Any] = {"rng": "cuda", "prompt_syntax": "web-ui", "long_prompt": "chunk", "width": 64, "height": 64}
SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    shapes_file(folder / "ink.safetensors", seed=3)
    return folder


@pytest.fixture(scope="module")
def server(loras: Path) -> Iterator[ServerProcess]:
    with real_server(f"--loras={loras}") as server:
        yield server


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="Euler a", steps=4)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipeline:
        yield pipeline


def equal(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def photo() -> Image.Image:
    picture = Image.new("RGB", (96, 80), "navy")
    ImageDraw.Draw(picture).ellipse((20, 10, 70, 60), fill="orange")
    return picture


def test_txt2img(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    prompt = "a (large:1.3) red star"
    result = api.txt2img(
        prompt=prompt, negative_prompt="blue", seed=12, batch_size=2, cfg_scale=5.0, scheduler="Karras", eta=0.8, **SIZE
    )
    wanted = pipeline(
        prompt, negative_prompt="blue", seed=12, num_images_per_prompt=2, guidance_scale=5.0, num_inference_steps=4,
        scheduler={"name": "euler_a", "schedule_type": "karras"}, eta=0.8, **WEB_UI,
    )  # fmt: skip
    assert [equal(got, own) for got, own in zip(result.images, wanted.images, strict=True)] == [True, True]
    assert [image.text["parameters"] for image in result.images] == result.info["infotexts"]
    assert result.info["infotexts"] == [image.info["parameters"] for image in wanted.images]
    assert (result.info["all_seeds"], result.info["seed"], result.info["prompt"]) == ([12, 13], 12, prompt)
    assert (result.info["sampler_name"], result.info["steps"], result.info["cfg_scale"]) == ("Euler a", 4, 5.0)
    told = api.png_info(result.image)
    assert told.info == result.info["infotexts"][0]
    assert told.parameters["Schedule type"] == "Karras"
    assert told.parameters["Negative prompt"] == "blue"


def test_every_sampler_draws(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    names = api.util_get_sampler_names()
    assert len(names) > 18
    for name in ("DPM++ 2M Karras", "DDIM", "UniPC", "dpmpp_3m_sde"):
        result = api.txt2img(prompt="a star", seed=5, cfg_scale=4.0, sampler_name=name, eta=0.0, **SIZE)
        stochastic = {"eta": 0.0} if name in ("DDIM", "dpmpp_3m_sde") else {}
        own = {
            "DPM++ 2M Karras": {"name": "dpm++_2m", "schedule_type": "karras"},
            "DDIM": {
                "name": "ddim", "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False
            },
            "UniPC": {"name": "unipc_bh1", "solver_order": 3, "schedule_type": "normal"},
            "dpmpp_3m_sde": {"name": "dpm++_3m_sde", "schedule_type": "exponential"},
        }[name]  # fmt: skip
        wanted = pipeline(
            "a star", seed=5, guidance_scale=4.0, num_inference_steps=4, scheduler=own, **stochastic, **WEB_UI
        )
        assert equal(result.image, wanted.images[0]), name


def test_a_lora_in_the_prompt(api: webuiapi.WebUIApi, loras: Path) -> None:
    assert [lora["name"] for lora in api.get_loras()] == ["ink"]
    result = api.txt2img(prompt="a star <lora:ink:0.7>", seed=5, cfg_scale=4.0, sampler_name="Euler", **SIZE)
    without = api.txt2img(prompt="a star", seed=5, cfg_scale=4.0, sampler_name="Euler", **SIZE)
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipeline:
        pipeline.set_loras({loras / "ink.safetensors": 0.7})
        scheduler = {"name": "euler", "schedule_type": "normal"}
        wanted = pipeline(
            "a star", seed=5, guidance_scale=4.0, num_inference_steps=4, scheduler=scheduler, **WEB_UI
        ).images[0]
    assert equal(result.image, wanted)
    assert not equal(result.image, without.image)
    assert result.info["infotexts"][0].split("\n")[0] == "a star <lora:ink:0.7>"
    assert result.image.text["parameters"] == result.info["infotexts"][0]


def test_img2img(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    for fit in (0, 1):
        result = api.img2img(
            images=[photo()], prompt="a heart", seed=8, denoising_strength=0.5, cfg_scale=4.0, sampler_name="Euler",
            resize_mode=fit, **SIZE,
        )  # fmt: skip
        given = photo() if fit == 0 else photo().crop((8, 0, 88, 80))
        wanted = pipeline(
            "a heart", seed=8, strength=0.5, guidance_scale=4.0, num_inference_steps=4, image=given,
            scheduler={"name": "euler", "schedule_type": "normal"}, **WEB_UI,
        )  # fmt: skip
        assert equal(result.image, wanted.images[0])
        assert result.info["denoising_strength"] == 0.5


@pytest.mark.parametrize("inverted", [0, 1])
def test_inpainting_the_whole_picture(api: webuiapi.WebUIApi, pipeline: Pipeline, inverted: int) -> None:
    mask = Image.new("L", (96, 80), 255 * inverted)
    ImageDraw.Draw(mask).rectangle((30, 20, 60, 50), fill=255 * (1 - inverted))
    result = api.img2img(
        images=[photo()], mask_image=mask, prompt="a heart", seed=8, denoising_strength=0.75, cfg_scale=4.0,
        sampler_name="Euler", inpainting_fill=1, inpaint_full_res=False, inpainting_mask_invert=inverted, **SIZE,
    )  # fmt: skip
    light = mask if not inverted else mask.point(lambda level: 255 - level)
    wanted = pipeline(
        "a heart", seed=8, strength=0.75, guidance_scale=4.0, num_inference_steps=4, image=photo(), mask_image=light,
        scheduler={"name": "euler", "schedule_type": "normal"}, **WEB_UI,
    )  # fmt: skip
    assert equal(result.image, wanted.images[0])


def test_inpainting_the_masked_part_alone(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    mask = Image.new("L", (96, 80))
    ImageDraw.Draw(mask).rectangle((30, 20, 59, 49), fill=255)
    result = api.img2img(
        images=[photo()], mask_image=mask, prompt="a heart", seed=8, denoising_strength=1.0, cfg_scale=4.0,
        sampler_name="Euler", inpaint_full_res=True, inpaint_full_res_padding=8, mask_blur=0, **SIZE,
    )  # fmt: skip
    box = (22, 12, 68, 58)
    drawn = pipeline(
        "a heart", seed=8, strength=1.0, guidance_scale=4.0, num_inference_steps=4, image=photo().crop(box),
        mask_image=mask.crop(box), scheduler={"name": "euler", "schedule_type": "normal"}, **WEB_UI,
    ).images[0]  # fmt: skip
    whole = photo()
    whole.paste(drawn.resize((46, 46), Image.Resampling.LANCZOS), box[:2])
    assert result.image.size == (96, 80)
    assert equal(result.image, Image.composite(whole, photo(), mask))
    assert result.image.text["parameters"] == result.info["infotexts"][0]


def test_models_and_lists(api: webuiapi.WebUIApi) -> None:
    api.util_set_model("shapes")
    assert api.util_get_current_model() == api.util_get_model_names()[0]
    assert "karras" in api.util_get_scheduler_names()
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    for empty in (api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles):
        assert empty() == []
    memory = api.get_memory()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]
    assert api.get_cmd_flags()["api"]
    assert api.refresh_checkpoints() is None
    with pytest.raises(RuntimeError, match="the nearest is 64x64"):
        api.txt2img(prompt="a star")


def test_progress_and_interrupt(api: webuiapi.WebUIApi, server: ServerProcess) -> None:
    results: list[Any] = []
    other = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="Euler")

    def draw() -> None:
        results.append(other.txt2img(prompt="a star", seed=1, steps=150, batch_size=5, n_iter=2, **SIZE))

    thread = threading.Thread(target=draw)
    thread.start()
    seen: dict[str, Any] = {}
    for _ in range(3000):
        seen = api.get_progress()
        if seen["state"]["job_no"] and seen["current_image"]:
            break
        time.sleep(0.01)
    api.interrupt()
    thread.join(60)
    assert 0 < seen["progress"] < 1
    assert seen["state"]["job_count"] == 10
    (result,) = results
    assert 1 <= len(result.images) < 10
    assert result.info["all_seeds"] == [*range(1, 1 + len(result.images))]
    api.util_wait_for_ready(check_interval=0.1)
    assert api.txt2img(prompt="a star", **SIZE).image.size == (64, 64), "the server goes on"
