"""Programs that speak the web UI's API, by the requests that they send, in their order."""

import base64
from pathlib import Path

import httpx
import pytest
from support.fake_service import FakeService, picture_bytes
from support.webui import info, last_request, opened, web_ui

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.keys import new_key
from latentrt.serve.served_model import ServedModel

SIZES = ((512, 512), (1024, 1024), (640, 512))


@pytest.fixture
def service() -> FakeService:
    """Two models that draw the sizes which these clients ask for."""
    service = FakeService()
    bundle = Bundle.open(embedded_bundle())
    service.models = {name: ServedModel(name, bundle, sizes=SIZES) for name in ("shapes", "forms")}
    return service


def test_open_webui(client: httpx.Client, service: FakeService) -> None:
    client.headers["authorization"] = "Basic Og=="  # no user, no password
    options = client.get("/sdapi/v1/options").raise_for_status().json()
    models = [(m["title"], m["model_name"]) for m in client.get("/sdapi/v1/sd-models").json()]
    assert [name for _, name in models] == ["shapes", "forms"]
    assert options["sd_model_checkpoint"] == models[0][0]
    options["sd_model_checkpoint"] = models[1][0]
    client.post("/sdapi/v1/options", json=options).raise_for_status()
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == models[1][0]
    body = {"prompt": "a red star", "batch_size": 2, "width": 512, "height": 512, "steps": 50}
    params = {"cfg_scale": 7.5, "sampler_name": "Euler a", "scheduler": "Karras", "negative_prompt": "blue"}
    answer = client.post("/sdapi/v1/txt2img", json=body | params)
    told = info(answer)
    images = answer.json()["images"]
    assert [opened(image).size for image in images] == [(512, 512)] * 2
    assert base64.b64decode(images[1]) == picture_bytes(512, 512, told["all_seeds"][1])
    assert service.tickets[-1].job.model == told["sd_model_name"] == "forms"
    request = last_request(service)
    assert (request.guidance_scale, request.num_inference_steps) == (7.5, 50)
    assert request.options["scheduler"] == {"name": "euler_a", "schedule_type": "karras"}
    assert request.negative.texts[0][0].text == "blue"


def test_librechat(client: httpx.Client) -> None:
    body = {
        "prompt": "a large red star on a blue background, detailed, 8k",
        "negative_prompt": "semi-realistic, cgi, 3d, render, sketch",
        "cfg_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }
    answer = client.post("/sdapi/v1/txt2img", json=body)
    told = info(answer)
    assert (told["width"], told["height"]) == opened(answer.json()["images"][0]).size == (1024, 1024)
    settings = told["infotexts"][0].split("\n").pop()
    assert settings.startswith("Steps: 22, ")
    assert f"Seed: {told['seed']}," in settings
    assert "CFG scale: 4.5," in settings
    assert "Size: 1024x1024," in settings


def test_sillytavern(client: httpx.Client, service: FakeService) -> None:
    client.get("/sdapi/v1/options").raise_for_status()  # is it there?
    upscalers = [upscaler["name"] for upscaler in client.get("/sdapi/v1/upscalers").json()]
    assert upscalers == ["Lanczos", "Nearest", "None"]
    modes = [mode["name"] for mode in client.get("/sdapi/v1/latent-upscale-modes").json()]
    assert modes[:2] == ["Latent", "Latent (bicubic)"]
    assert client.get("/sdapi/v1/sd-vae").json() == []
    assert client.get("/sdapi/v1/sd-modules").status_code == 404, "as of any web UI but Forge"
    samplers = [sampler["name"] for sampler in client.get("/sdapi/v1/samplers").json()]
    schedulers = [scheduler["name"] for scheduler in client.get("/sdapi/v1/schedulers").json()]
    title = client.get("/sdapi/v1/sd-models").json()[1]["title"]
    client.post("/sdapi/v1/options", json={"sd_model_checkpoint": title}).raise_for_status()
    waiting = client.get("/sdapi/v1/progress").json()
    assert (waiting["progress"], waiting["state"]["job_count"]) == (0, 0), "the model is loaded"
    assert "forge_preset" not in client.get("/sdapi/v1/options").json()
    assert "DPM++ 2M" in samplers
    for scheduler in schedulers:
        body = {
            "url": "http://127.0.0.1:8000",
            "auth": "user:sk-secret",
            "prompt": "a red star",
            "negative_prompt": "",
            "sampler_name": "DPM++ 2M",
            "scheduler": scheduler,
            "steps": 5,
            "cfg_scale": 7,
            "width": 512,
            "height": 512,
            "restore_faces": False,
            "enable_hr": False,
            "hr_upscaler": "None",
            "hr_scale": 1,
            "hr_additional_modules": [],
            "denoising_strength": 0.7,
            "hr_second_pass_steps": 0,
            "override_settings": {"CLIP_stop_at_last_layers": 1},
            "override_settings_restore_afterwards": True,
            "clip_skip": 1,
            "save_images": True,
            "send_images": True,
            "do_not_save_grid": False,
            "do_not_save_samples": False,
        }
        answer = client.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == 200, answer.text
        assert "sk-secret" not in answer.text
    assert service.tickets[-1].job.model == "forms"
    assert last_request(service).options["clip_skip"] == 0
    face = {"alwayson_scripts": {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}}
    refused = client.post("/sdapi/v1/txt2img", json=body | face)
    assert refused.status_code == 400
    assert refused.json()["detail"].startswith("alwayson_scripts is not served")


def test_basic_authentication(service: FakeService, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.toml", "alice")
    with web_ui(service, HttpConfig(keys=tmp_path / "keys.toml")) as client:
        for path in ("options", "samplers", "progress", "scripts", "loras", "memory"):
            assert client.get(f"/sdapi/v1/{path}").status_code == 401
            assert client.get(f"/sdapi/v1/{path}", auth=("anyone", key)).status_code == 200
        refused = client.post("/sdapi/v1/txt2img", json={"prompt": "a star"}, auth=("anyone", "wrong"))
        assert (refused.status_code, "valid key" in refused.json()["detail"]) == (401, True)
        assert client.post("/sdapi/v1/interrupt").status_code == 401
        assert client.post("/internal/progress", json={"id_task": "x"}).status_code == 401
        assert client.post("/sdapi/v1/txt2img", json={"steps": 1}, auth=("anyone", key)).status_code == 200
