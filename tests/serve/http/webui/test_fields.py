"""Fields of the web UI's bodies: what they become, and what is refused."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.fake_service import FakeService
from support.webui import encoded, info, last_request, opened

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.runtime.request.options import json_options
from latentrt.runtime.scheduler import resolve
from latentrt.runtime.scheduler.web_ui_names import AUTOMATIC1111_TYPES, WEB_UI_SAMPLERS, from_web_ui
from latentrt.serve.http.webui import fields
from latentrt.serve.http.webui.names import samplers, schedule_types, scheduler_of
from latentrt.serve.http.webui.prompts import refuse_loras, without_loras
from latentrt.serve.messages import RefusedError

CHECKPOINT = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PICTURE = encoded(Image.new("RGB", (128, 128), "red"))


def drawn(client: httpx.Client, **body: Any) -> httpx.Response:
    path = "img2img" if "init_images" in body else "txt2img"
    return client.post(f"/sdapi/v1/{path}", json={"prompt": "a star", "steps": 2} | body)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {"prompt_syntax": "web-ui", "long_prompt": "chunk", "rng": "cuda", "clip_skip": 0}),
        ({"override_settings": {"randn_source": "CPU"}}, {"rng": "cpu"}),
        ({"override_settings": {"emphasis": "None"}}, {"prompt_syntax": "plain"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 1}),
        ({"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 1}),
        ({"override_settings": {"eta_noise_seed_delta": 9}, "sampler_name": "Euler a"}, {"noise_seed_delta": 9}),
        ({"batch_size": 2, "n_iter": 3, "seed": 40}, {"num_images_per_prompt": 6, "seed": 40}),
        ({"seed": -1}, {"seed": None}),
        ({"cfg_scale": 5}, {"guidance_scale": 5.0}),
        ({"cfg_scale": 12.5, "sampler_name": "DDIM CFG++"}, {"guidance_scale": 1.0}),
        ({"sampler_name": "Euler a", "eta": 0.5}, {"eta": 0.5}),
        ({"sampler_name": "Euler", "eta": 1.0}, {"eta": None}),
        ({"sampler_index": "Heun"}, {"scheduler": {"name": "heun", "schedule_type": "normal"}}),
        (
            {"sampler_name": "Euler", "sampler_index": "Heun", "s_churn": 3, "s_tmax": 0, "s_noise": 1},
            {"scheduler": {"name": "euler", "schedule_type": "normal", "s_churn": 3.0}},
        ),
        ({"guidance_rescale": 0.5, "vae_tiling": True}, {"guidance_rescale": 0.5, "vae_tiling": True}),
        ({"init_images": [PICTURE], "denoising_strength": 0.4, "steps": 5}, {"strength": 0.4}),
        ({"denoising_strength": 0.4}, {"strength": None}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_fields_become_options(
    client: httpx.Client, service: FakeService, body: dict[str, Any], options: dict[str, Any]
) -> None:
    assert drawn(client, **body).status_code == 200
    given = last_request(service).options
    assert {name: given[name] for name in options} == options  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"enable_hr": True, "init_images": [PICTURE]}, 400, "enable_hr is not served: a second pass is drawn from a"),
        ({"enable_hr": True, "hr_scale": 4}, 400, "size 512x512: shapes draws"),
        ({"enable_hr": "yes"}, 400, "enable_hr='yes'"),
        ({"enable_hr": True, "hr_scale": 0.5}, 400, "hr_scale=0.5"),
        ({"enable_hr": True, "hr_scale": 1, "hr_upscaler": "Latent (nearst)"}, 400, "did you mean 'Latent (nearest)'"),
        ({"enable_hr": True, "hr_scale": 1, "hr_prompt": "a circle"}, 400, "hr_prompt is not served"),
        ({"enable_hr": True, "hr_scale": 1, "hr_sampler_name": "Euler"}, 400, "hr_sampler_name is not served"),
        ({"enable_hr": True, "hr_resize_x": 256, "hr_resize_y": 128}, 400, "has another shape than 128x128"),
        ({"enable_hr": True, "hr_scale": 1, "denoising_strength": 0}, 400, "denoising_strength=0: expected"),
        ({"hires_scale": 1.0, "enable_hr": True}, 400, "hr_scale and hires_scale differ"),
        ({"restore_faces": True}, 400, "restore_faces"),
        ({"tiling": True}, 400, "tiling"),
        ({"styles": ["ink"]}, 400, "styles"),
        ({"subseed_strength": 0.1}, 400, "subseed_strength"),
        ({"seed_resize_from_w": 512}, 400, "seed_resize_from_w"),
        ({"script_name": "X/Y/Z plot"}, 400, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"model": "x"}]}}}, 400, "alwayson_scripts"),
        ({"s_min_uncond": 1.5}, 400, "s_min_uncond"),
        ({"refiner_checkpoint": "xl-refiner"}, 400, "refiner_checkpoint"),
        ({"override_settings": {"sd_vae": "x.safetensors"}}, 400, "override_settings: sd_vae"),
        ({"override_settings": {"sd_vea": "x"}}, 400, "did you mean 'sd_vae'"),
        ({"override_settings": {"sd_model_checkpoint": "sd3"}}, 404, "unknown model 'sd3'"),
        ({"override_settings": []}, 400, "override_settings"),
        ({"cfgscale": 3}, 400, "did you mean 'cfg_scale'"),
        ({"mask": PICTURE}, 400, "unknown field 'mask'"),
        ({"width": 512, "height": 512}, 400, "the nearest is 128x128"),
        ({"width": 1024, "height": 512}, 400, "the nearest is 192x128"),
        ({"sampler_name": "DPM+ 2M"}, 400, "did you mean"),
        ({"sampler_name": "DPM adaptive"}, 400, "dpm_fast"),
        ({"sampler_name": "Euler", "scheduler": "Karas"}, 400, "did you mean"),
        ({"scheduler": "Karras"}, 400, "pass sampler_name"),
        ({"steps": 0}, 400, "steps=0"),
        ({"cfg_scale": "much"}, 400, "cfg_scale='much'"),
        ({"batch_size": 4, "n_iter": 4}, 400, "at most 10"),
        ({"batch_size": 0}, 400, "batch_size=0"),
        ({"clip_skip": 1, "override_settings": {"CLIP_stop_at_last_layers": 2}}, 400, "differ"),
        ({"clip_skip": 0}, 400, "clip_skip=0: expected an integer from 1"),
        ({"prompt": "a <lora:ink:1>"}, 400, "unknown LoRA 'ink'"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"send_images": "yes"}, 400, "send_images"),
        ({"force_task_id": 5}, 400, "force_task_id"),
        ({"init_images": []}, 400, "init_images"),
        ({"init_images": ["/etc/passwd"]}, 400, "paths and addresses are not read"),
        ({"init_images": ["http://127.0.0.1/x.png"]}, 400, "paths and addresses are not read"),
        ({"init_images": [PICTURE, PICTURE]}, 400, "a list of one picture"),
        ({"init_images": [PICTURE], "resize_mode": 3}, 400, "resize_mode=3"),
        ({"init_images": [PICTURE], "denoising_strength": 0}, 400, "denoising_strength"),
        ({"init_images": [PICTURE], "mask": PICTURE, "inpainting_fill": 2}, 400, "inpainting_fill=2"),
        ({"init_images": [PICTURE], "width": 10**400}, 400, "width"),
        ({"init_images": [PICTURE], "width": 100}, 400, "a multiple of"),
        (
            {"init_images": [PICTURE], "mask": encoded(Image.new("L", (64, 64), 255))},
            400,
            "the same size",
        ),
        ({"init_images": [PICTURE], "mask": encoded(Image.new("L", (128, 128)))}, 400, "dark everywhere"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_is_wrong_is_told(client: httpx.Client, body: dict[str, Any], status: int, told: str) -> None:
    answer = drawn(client, **body)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]
    assert answer.json()["error"]["message"] == answer.json()["detail"]


def test_what_asks_for_nothing_is_no_error(client: httpx.Client) -> None:
    nothing: dict[str, Any] = dict.fromkeys(fields.properties(pictures=False))
    del nothing["prompt"], nothing["steps"]
    empty = {name: value for name, (_, values) in fields.REFUSED.items() for value in values[:1]}
    off = {"alwayson_scripts": {"ADetailer": {"args": [False, {"ad_model": "x"}]}, "ControlNet": {"args": []}}}
    for body in (nothing, empty, off, {"styles": [], "tiling": False, "script_name": "", "subseed_strength": 0.0}):
        assert drawn(client, **body).status_code == 200, body


def test_a_size_that_is_not_given_is_the_models(client: httpx.Client) -> None:
    assert info(drawn(client))["width"] == 128
    wide = encoded(Image.new("RGB", (300, 200), "red"))
    assert info(drawn(client, init_images=[wide]))["width"] == 192, "whose shape is most like the picture's"


def test_the_answer_repeats_what_was_given_without_pictures(client: httpx.Client) -> None:
    body = {
        "init_images": [PICTURE],
        "prompt": "a star",
        "auth": "user:secret",
        "force_task_id": "t",
        "override_settings": {"CLIP_stop_at_last_layers": 1, "filter_nsfw": True},
    }
    given = drawn(client, **body).json()["parameters"]
    read = {"init_images": None, "prompt": "a star", "force_task_id": "t", "steps": 2}
    assert given == {**read, "override_settings": {"CLIP_stop_at_last_layers": 1}}
    assert drawn(client, **body, include_init_images=True).json()["parameters"]["init_images"] == [PICTURE]
    settings_alone = drawn(client, send_images=False, seed=5)
    assert settings_alone.json()["images"] == []
    assert info(settings_alone)["all_seeds"] == [5]


@pytest.mark.parametrize("name", ["alwayson_scripts", "script_args", "styles", "override_settings", "scheduler"])
def test_nested_as_deeply_as_json_may_be(client: httpx.Client, name: str) -> None:
    for depth in range(100, 4000, 100):
        for opening, end in (("[", "]"), ('{"a":', "}")):
            inner = "1" if opening != "[" else ""
            body = f'{{"steps": 1, "{name}": {opening * depth}{inner}{end * depth}}}'
            assert client.post("/sdapi/v1/txt2img", content=body).status_code in (200, 400)


def test_refusals_and_failures_have_detail(client: httpx.Client, service: FakeService) -> None:
    service.refusals = [RefusedError("busy", "the server is busy", 7.2)]
    busy = drawn(client)
    assert (busy.status_code, busy.headers["retry-after"], busy.json()["detail"]) == (429, "8", "the server is busy")
    failed = drawn(client, prompt="fail non_finite")
    assert (failed.status_code, failed.json()["detail"]) == (500, "as the test asked for")
    assert client.get("/sdapi/v1/progress", params={"skip_current_image": "x"}).status_code == 400
    damaged = client.post("/sdapi/v1/txt2img", content="{")
    assert damaged.json()["detail"].startswith("the body is not JSON")


def test_every_option_of_the_table_is_a_field() -> None:
    other_names = {"image": "init_images", "mask_image": "mask", "num_inference_steps": "steps"}
    for pictures in (False, True):
        # Pictures of ControlNets come in alwayson_scripts.
        named = {other_names.get(name, name) for name in json_options()} - {"control_image"}
        assert named - ({"init_images", "mask"} if not pictures else set()) <= {*fields.properties(pictures)}


def test_no_name_is_in_two_tables() -> None:
    read = {*fields.FIELDS, *fields.PICTURE_FIELDS} - {"denoising_strength"}
    assert not read & (fields.IGNORED.keys() | fields.REFUSED.keys())
    assert not fields.IGNORED.keys() & fields.REFUSED.keys()
    assert not fields.SETTINGS.keys() & (fields.SETTINGS_IGNORED.keys() | fields.SETTINGS_REFUSED.keys())


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_png_without_its_text(client: httpx.Client, service: FakeService) -> None:
    drawn(client, override_settings={"enable_pnginfo": False})
    drawn(client)
    assert [ticket.job.output.text for ticket in service.tickets] == [False, True]


def test_formats_of_pictures(client: httpx.Client, service: FakeService) -> None:
    for given, kind in (("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")):
        answer = drawn(client, override_settings={"samples_format": given, "jpeg_quality": 40})
        assert opened(answer.json()["images"][0]).format == kind
        assert info(answer)["infotexts"], "also where the file cannot hold it"
        assert service.tickets[-1].job.output.quality == 40


def test_the_scale_of_cfg_plus_plus_is_told_as_it_was_given(client: httpx.Client) -> None:
    assert info(drawn(client, sampler_name="DDIM CFG++", cfg_scale=7.5))["cfg_scale"] == pytest.approx(7.5)


def test_options_are_kept_by_the_call_alone(client: httpx.Client) -> None:
    now = client.get("/sdapi/v1/options").json()
    assert client.post("/sdapi/v1/options", json=now).json() is None
    for name, value in (("randn_source", "CPU"), ("CLIP_stop_at_last_layers", 2)):
        refused = client.post("/sdapi/v1/options", json={**now, name: value})
        assert refused.status_code == 400
        assert f"{name} is not kept" in refused.json()["detail"]
        assert drawn(client, override_settings={name: value}).status_code == 200
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "x"}).status_code == 404
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shapes"}).status_code == 200
    assert client.get("/sdapi/v1/options").json() == now


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_listed_name_and_alias_draws_what_the_table_says() -> None:
    listed = samplers()
    assert len({item.name for item in listed}) == len(listed)
    by_name = {known.automatic1111 or known.comfyui: known for known in reversed(WEB_UI_SAMPLERS)}
    for item in listed:
        ours = from_web_ui(item.name)
        assert ours["name"] == by_name[item.name].ours["name"]  # type: ignore[index]
        assert ours.get("schedule_type", "normal") == item.options.get("scheduler", "normal")
        for name in (item.name, *item.aliases):
            config = resolve(scheduler_of(name, "Automatic", {}), CHECKPOINT)
            assert config["_class_name"] == resolve(ours, CHECKPOINT)["_class_name"], name
    refused = {known.automatic1111 for known in WEB_UI_SAMPLERS if known.ours is None}
    assert {k.automatic1111 for k in WEB_UI_SAMPLERS} - refused <= {item.name for item in listed} | {None}


def test_schedule_types_by_name_and_label() -> None:
    assert [item.label for item in schedule_types()] == [*AUTOMATIC1111_TYPES]
    for item in schedule_types():
        wanted = from_web_ui("Euler", item.label)
        assert scheduler_of("Euler", item.name, {}) == scheduler_of("Euler", item.label, {}) == wanted


@pytest.mark.parametrize(
    ("sampler", "kind", "wanted"),
    [
        ("DPM++ 2M Karras", None, "karras"),
        ("DPM++ 2M Karras", "Automatic", "karras"),
        ("DPM++ 2M Karras", "Exponential", "exponential"),
        ("dpm++ 2m", "automatic", "karras"),
        ("DPM++ 2M", "simple", "simple"),
    ],
)
def test_names_of_before_the_schedule_type_was_a_field(sampler: str, kind: str | None, wanted: str) -> None:
    assert scheduler_of(sampler, kind, {}) == {"name": "dpm++_2m", "schedule_type": wanted}


def test_our_own_names() -> None:
    assert scheduler_of("dpm++_2m", "sgm_uniform", {}) == {"name": "dpm++_2m_sgm_uniform"}
    assert scheduler_of("tcd", None, {"s_noise": 2}) == {"name": "tcd", "s_noise": 2}
    with pytest.raises(SchedulerError, match="did you mean"):
        scheduler_of("dpm++_2m", "karas", {})


# --- LoRAs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a star", "a star", {}),
        ("a <lora:ink:0.8> star", "a star", {"ink": 0.8}),
        ("<lora:ink:0.5>a star, (red:1.2)<lyco:line art:-1>", "a star, (red:1.2)", {"ink": 0.5, "line art": -1.0}),
        ("<lora:ink>", "", {"ink": 1.0}),
        ("<LORA:ink:te=0.5:unet=.5> <lora:ink:0.25> x", "x", {"ink": 0.75}),
        ("a < b <lora ink> \n\nc  d", "a < b <lora ink> \n\nc  d", {}),
    ],
)
def test_loras_of_a_prompt(prompt: str, text: str, loras: dict[str, float]) -> None:
    assert without_loras(prompt) == (text, loras)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("<lora:ink:much>", "expected a number"),
        ("<lora:ink:nan>", "expected a number"),
        ("<lora::1>", "expected <lora:NAME:WEIGHT>"),
        ("<lora:ink:1:0.5>", "one weight"),
        ("<lora:ink:dyn=1>", "expected a number"),
        ("<hypernet:x:1>", "no hypernetworks"),
    ],
)
def test_what_is_wrong_with_a_lora(prompt: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        without_loras(prompt)


def test_a_lora_in_a_negative_prompt() -> None:
    with pytest.raises(InputError, match="put it into the prompt"):
        refuse_loras("blurry <lora:ink:1>")


# --- texts of pictures ------------------------------------------------------------------------------------------------


def test_png_info(client: httpx.Client) -> None:
    text = 'a star, red\nsecond line\nNegative prompt: blue\nSteps: 7, Sampler: Euler a, Seed: 5, Note: "a, b"'
    chunks = PngInfo()
    chunks.add_itxt("parameters", text)
    chunks.add_text("other", "é")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    told = client.post("/sdapi/v1/png-info", json={"image": data}).json()
    assert told["info"] == text
    assert told["items"] == {"parameters": text, "other": "é"}
    assert told["parameters"] == {
        "Prompt": "a star, red\nsecond line", "Negative prompt": "blue",
        "Steps": "7", "Sampler": "Euler a", "Seed": "5", "Note": "a, b",
    }  # fmt: skip
    assert client.post("/sdapi/v1/png-info", json={"image": PICTURE}).json() == {
        "info": "", "items": {}, "parameters": {}
    }  # fmt: skip
    for body in ({}, {"image": 5}, {"image": "/etc/passwd"}, {"image": "aGk="}):
        refused = client.post("/sdapi/v1/png-info", json=body)
        assert (refused.status_code, "image" in refused.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    "body",
    [
        {"sampler_name": "\ud800"},
        {"scheduler": "\ud800", "sampler_name": "Euler"},
        {"prompt": "<lora:\ud800:1>"},
        {"override_settings": {"\ud800": 1}},
        {"override_settings": {"sd_model_checkpoint": {}}},
        {"alwayson_scripts": "x"},
        {"seed": 10**400},
        {"seed": 0.5},
        {"s_churn": 10**400},
        {"init_images": {"a": 1}},
        {"init_images": [PICTURE], "mask": 5},
        {"n_iter": 10**400},
        {"model": 5},
        {"styles": {"a": [[1]]}},
    ],
    ids=lambda body: ascii(body)[:50],
)
def test_odd_values_are_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    path = "img2img" if "init_images" in body else "txt2img"
    answer = client.post(f"/sdapi/v1/{path}", content=json.dumps(body))
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["detail"]
