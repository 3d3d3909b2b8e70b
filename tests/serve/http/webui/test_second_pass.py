"""The second pass that `enable_hr` asks for: two jobs, one answer."""

import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.exports import Exported
from support.fake_service import FakeService
from support.serving import Device
from support.webui import info, opened, web_ui

from latentrt.runtime import Pipeline
from latentrt.serve.http.webui.second_pass import first_job, second_job
from latentrt.serve.messages import DispatcherOptions, Done, Job, ModelSpec, Output, Picture

BODY: dict[str, Any] = {"prompt": "a star", "steps": 6, "seed": 5, "enable_hr": True, "width": 128, "height": 128}
BODY |= {"hr_scale": 1.0, "denoising_strength": 0.5, "sampler_name": "Euler a"}


@pytest.mark.parametrize(
    ("fields", "made", "upscaler", "between"),
    [
        ({}, 6, "latent", "latents"),
        ({"hr_second_pass_steps": 3}, 3, "latent", "latents"),
        ({"hr_upscaler": "Latent (antialiased)", "hr_cfg": 0, "hr_prompt": "a star"}, 6, "latent", "latents"),
        ({"hr_upscaler": "None", "hr_sampler_name": "Use same sampler"}, 6, "lanczos", "raw"),
        ({"hr_upscaler": "Nearest", "hr_scale": 4, "hr_resize_x": 128, "hr_resize_y": 128}, 6, "nearest", "raw"),
    ],
)
def test_two_jobs_are_drawn(
    client: httpx.Client, service: FakeService, fields: dict[str, Any], made: int, upscaler: str, between: str
) -> None:
    answer = client.post("/sdapi/v1/txt2img", json=BODY | {"batch_size": 2} | fields)
    told = info(answer)
    first, second = (ticket.job for ticket in service.tickets)
    assert first.output.format == between
    assert (len(first.request.plan), len(second.request.plan)) == (6, made)
    assert first.request.seeds == second.request.seeds == (5, 6)
    assert second.request.strength == 0.5
    assert second.request.image is not None
    assert (second.request.image.pixels is None) == (between == "latents")
    if between == "raw":  # the fake's pictures have the colour of their seeds
        assert second.request.image.pixels is not None
        assert np.allclose(second.request.image.pixels[:, 0, 0, 0], [5 / 127.5 - 1, 6 / 127.5 - 1])
    assert second.request.first is not None
    assert second.request.first.options["hires_upscaler"] == upscaler
    text = told["infotexts"][1]
    assert "Hires upscale: 1, Denoising strength: 0.5" in text
    assert f"Hires steps: {made}" in text
    assert (told["denoising_strength"], told["width"]) == (0.5, 128)
    assert len(answer.json()["images"]) == 2
    assert opened(answer.json()["images"][0]).size == (128, 128)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_real_device_draws_what_a_pipeline_draws(upscaler: str) -> None:
    """Both jobs, with stochastic noise: the picture and its text are those of one call."""
    options: dict[str, Any] = {
        "seed": [3, 8],
        "num_images_per_prompt": 2,
        "num_inference_steps": 3,
        "scheduler": "euler_a",
    }
    options |= {"hires_scale": 2.0, "hires_strength": 0.7, "hires_upscaler": upscaler, "height": 64, "width": 64}
    spec = ModelSpec("shapes", backend="onnxruntime", sizes=((64, 64), (128, 128)))
    device = Device(spec, DispatcherOptions(device="cpu", lazy=True))
    try:
        call = device.model.call("a red star", options)
        asked = Job("asked", "shapes", call.first, output=Output("png"))
        first = first_job(asked, call)
        pictures = drawn_by(device, first)
        second = second_job(asked, call, pictures, device.model, 0.5)
        files = [Image.open(io.BytesIO(picture.data)) for picture in drawn_by(device, second)]
    finally:
        device.close()
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        alone = pipe("a red star", **options).images
    for got, wanted in zip(files, alone, strict=True):
        assert np.array_equal(np.asarray(got), np.asarray(wanted))
        assert got.info["parameters"] == wanted.info["parameters"]
        assert json.loads(got.info["latentrt"])["hires_upscaler"] == upscaler


def drawn_by(device: Device, job: Job) -> list[Picture]:
    device.dispatcher.submit(job)
    assert isinstance(device.end(job), Done), device.end(job)
    return sorted((e for e in device.events[job.id] if isinstance(e, Picture)), key=lambda e: e.image)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl-refiner-fp32", "sd1-inpaint-fp32"])
def test_models_that_begin_from_pictures_are_served(exported: Callable[[str], Exported], name: str) -> None:
    """A device is prepared with pictures for them."""
    spec = ModelSpec("m", exported(name).bundle, backend="onnxruntime", sizes=((32, 32),))
    device = Device(spec, DispatcherOptions(device="cpu", lazy=True))
    try:
        picture = Image.effect_noise((32, 32), 60).convert("RGB")
        mask = {"mask_image": Image.new("L", (32, 32), 255)} if "inpaint" in name else {}
        job = device.submit("a star", {"image": picture, "num_inference_steps": 4, "strength": 0.6, **mask})
        assert np.isfinite(device.latents(job)).all()
    finally:
        device.close()


def test_without_enable_hr_there_is_one(client: httpx.Client, service: FakeService) -> None:
    for off in ({"enable_hr": False}, {"enable_hr": None}, {"enable_hr": 0}):
        assert client.post("/sdapi/v1/txt2img", json=BODY | off | {"hr_upscaler": "ESRGAN"}).status_code == 200
    assert len(service.tickets) == 3
    assert all(ticket.job.request.image is None for ticket in service.tickets)


def test_other_interfaces_say_who_draws_two_passes(client: httpx.Client, service: FakeService) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": "a star", "hires_scale": 1})
    if answer.status_code != 404:  # that interface is not among the routes of this test
        assert answer.status_code == 400
    with pytest.raises(Exception, match="a second pass is drawn by /sdapi/v1/txt2img alone"):
        service.models["shapes"].request("a star", {"hires_scale": 1})


def test_progress_goes_over_both_passes_and_each_can_be_interrupted() -> None:
    service = FakeService(0.05)
    with web_ui(service) as client:
        for passes in (1, 2):
            seen: list[float] = []
            answers: list[httpx.Response] = []
            body = BODY | {"force_task_id": f"task-{passes}"}

            def draw(body: dict[str, Any] = body, answers: list[httpx.Response] = answers) -> None:
                answers.append(client.post("/sdapi/v1/txt2img", json=body))

            thread = threading.Thread(target=draw)
            before = len(service.tickets)
            thread.start()
            while len(service.tickets) < before + passes or not seen or seen[-1] < (0.2, 0.7)[passes - 1]:
                answer = client.get("/sdapi/v1/progress", params={"force_task_id": body["force_task_id"]}).json()
                seen.append(answer["progress"])
                time.sleep(0.01)
            assert seen == sorted(seen)
            assert seen[-1] < 1
            client.post("/sdapi/v1/interrupt", params={"force_task_id": body["force_task_id"]})
            thread.join(30)
            assert answers[0].status_code == 409, answers[0].text
            assert "interrupted before a picture was finished" in json.dumps(answers[0].json())
            assert len(service.tickets) == before + passes
