"""OpenAI's Python client against the server."""

import base64
import io
import time
from collections.abc import Iterator

import openai
import pytest
from PIL import Image
from support.fake_service import FakeService, picture_bytes, served

from latentrt.runtime.errors import InputError
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.forms import fields_of
from latentrt.serve.messages import RefusedError


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with served(make_app(service, HttpConfig(aliases={"gpt-image-1": "shapes"}))) as address:
        yield address


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def opened(b64: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64 or "")))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["shapes"]
    model = client.models.retrieve("gpt-image-1")
    assert (model.id, model.model_extra and model.model_extra["aliases"]) == ("shapes", ["gpt-image-1"])
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        client.models.retrieve("sd3")


def test_generate(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.images.generate(
        model="gpt-image-1", prompt="a red star", n=2, size="192x128", output_format="webp", quality="low",
        extra_body={"seed": 300, "guidance_scale": 3.5, "scheduler": "euler", "negative_prompt": "blue"},
    )  # fmt: skip
    assert answer.data is not None
    assert [opened(image.b64_json).size for image in answer.data] == [(192, 128)] * 2
    assert [image.seed for image in answer.data] == [300, 301]  # type: ignore[attr-defined]
    assert opened(answer.data[0].b64_json).format == "WEBP"
    assert (answer.size, answer.output_format, answer.quality, answer.background) == (
        "192x128",
        "webp",
        "low",
        "opaque",
    )
    request = service.tickets[0].job.request
    assert (request.guidance_scale, request.scheduler, request.num_inference_steps) == (3.5, "euler", 10)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 20


def test_answers_repeat_the_size_that_was_drawn(client: openai.OpenAI) -> None:
    assert client.images.generate(prompt="a star", size="auto").size == "128x128"
    with pytest.raises(openai.BadRequestError, match="the nearest is 192x128") as error:
        client.images.generate(prompt="a star", size="1024x512")  # type: ignore[arg-type]
    assert error.value.param == "size"


def test_edit_with_a_mask_that_is_transparent_where_it_is_drawn_anew(
    client: openai.OpenAI, service: FakeService
) -> None:
    mask = Image.new("RGBA", (192, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 96, 128))
    file = io.BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(
        image=("photo.png", picture_bytes(192, 128, 5)), mask=("mask.png", file.getvalue()), prompt="a star",
        extra_body={"strength": 0.5, "seed": 9},
    )  # fmt: skip
    assert answer.size == "192x128"
    request = service.tickets[0].job.request
    assert request.image is not None
    assert request.image.mask is not None
    assert request.strength == 0.5
    assert request.seeds == (9,)
    assert request.image.mask[0, 0, :, :96].min() == 1
    assert request.image.mask[0, 0, :, 96:].max() == 0
    with pytest.raises(openai.BadRequestError, match="same size"):
        client.images.edit(
            image=("photo.png", picture_bytes(128, 128, 5)), mask=("mask.png", file.getvalue()), prompt="a star"
        )


@pytest.mark.parametrize(
    ("fields", "option", "value"),
    [
        ({"seed": [7, 9]}, "seed", (7, 9)),
        ({"negative_prompt": "123"}, "negative_prompt", "123"),
        ({"negative_prompt": ["true"]}, "negative_prompt", ("true",)),
        ({"scheduler": "euler"}, "scheduler", "euler"),
        ({"scheduler": {"name": "euler", "steps_offset": 1}}, "scheduler", {"name": "euler", "steps_offset": 1}),
        ({"vae_tiling": True}, "vae_tiling", True),
        ({"strength": 0.25}, "strength", 0.25),
    ],
)
def test_options_in_a_form(
    client: openai.OpenAI, service: FakeService, fields: dict[str, object], option: str, value: object
) -> None:
    client.images.edit(image=("a.png", picture_bytes(128, 128, 5)), prompt="a", n=2, extra_body=fields)
    assert service.tickets[0].job.request.options[option] == value  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        ([("seed", "1"), ("seed", "2")], {"seed": [1, 2]}),
        ([("seed[]", "1")], {"seed": [1]}),
        ([("seed", "[1, 2]")], {"seed": [1, 2]}),
        ([("loras[ink]", "0.5"), ("loras[a]", "1")], {"loras": {"ink": 0.5, "a": 1}}),
        ([("loras", '{"ink": 0.5}')], {"loras": {"ink": 0.5}}),
        ([("prompt", "5"), ("prompt", "6")], {"prompt": ["5", "6"]}),
        ([("scheduler", "null")], {"scheduler": "null"}),
        ([("stream", "true"), ("size", "1024x1024")], {"stream": True, "size": "1024x1024"}),
        ([("a[b][c]", "x")], {"a[b][c]": "x"}),
        ([("seed", "[" * 100_000)], {"seed": "[" * 100_000}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_fields_of_forms(texts: list[tuple[str, str]], fields: dict[str, object]) -> None:
    assert fields_of(texts) == fields


def test_a_field_is_not_both_a_value_and_an_object() -> None:
    for texts in ([("loras[a]", "1"), ("loras", "2")], [("loras", "2"), ("loras[a]", "1")]):
        with pytest.raises(InputError, match="as an object"):
            fields_of(texts)


def test_stream_with_partial_images(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a star", stream=True, partial_images=2, extra_body={"seed": 77}))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert opened(events[-1].b64_json).getpixel((0, 0)) == (77, 0, 0)


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="as the test asked for"):
        list(client.images.generate(prompt="fail internal", stream=True))


@pytest.mark.parametrize(
    ("kind", "error", "retried"),
    [
        ("non_finite", openai.InternalServerError, False),
        ("filtered", openai.BadRequestError, False),
        ("deadline", openai.InternalServerError, False),
        ("crashed", openai.InternalServerError, True),
        ("poison", openai.InternalServerError, False),
        ("internal", openai.InternalServerError, False),
        ("out_of_memory", openai.InternalServerError, True),
    ],
)
def test_failures_are_typed_and_retried_where_that_helps(
    address: str, service: FakeService, kind: str, error: type[openai.APIStatusError], retried: bool
) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=1)
    client._calculate_retry_timeout = lambda *_: 0.01  # type: ignore[method-assign]
    with pytest.raises(error, match="as the test asked for"):
        client.images.generate(prompt=f"fail {kind}", extra_body={"num_inference_steps": 1})
    assert len(service.tickets) == 1 + retried


def test_a_busy_server_is_asked_again_after_its_time(address: str, service: FakeService) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=2)
    service.refusals = [RefusedError("busy", "the server is busy", 0.2), RefusedError("busy", "the server is busy", 1)]
    start = time.monotonic()
    assert client.images.generate(prompt="a star").data
    assert 1.9 < time.monotonic() - start < 4, "twice an integer of seconds, at least 1"


def test_refusals_are_typed(client: openai.OpenAI, service: FakeService) -> None:
    service.refusals = [RefusedError("busy", "the server is busy", 7.2)]
    with pytest.raises(openai.RateLimitError) as busy:
        client.images.generate(prompt="a star")
    assert busy.value.response.headers["retry-after"] == "8"
    assert busy.value.code == "server_busy"
    service.refusals = [RefusedError("deadline", "it would take 9 s")]
    with pytest.raises(openai.InternalServerError) as late:
        client.images.generate(prompt="a star", extra_body={"deadline_ms": 5})
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    assert late.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sed": 3}, "did you mean 'seed'"),
        ({"seed": "x"}, "seed='x'"),
        ({"num_inference_steps": 100000}, "expected"),
        ({"image": "/etc/passwd"}, "paths and addresses are not read"),
        ({"latents": "http://127.0.0.1/x.npy"}, "paths and addresses are not read"),
        ({"steps": 3, "num_inference_steps": 4}, "the same option"),
        ({"loras": {"none": 1.0}}, "has none"),
        ({"priority": "urgent"}, "interactive, batch"),
        ({"deadline_ms": 0}, "deadline_ms=0"),
        ({"output_compression": 101}, "0 to 100"),
        ({"response_format": "url"}, "/v1/jobs"),
        ({"background": "transparent"}, "auto or opaque"),
        ({"partial_images": 4}, "0 to 3"),
        ({"num_images_per_prompt": 3, "n": 2}, "differ"),
        ({"negative_prompt": "x" * 40_000}, "bytes"),
        ({"prompt_embeds": [1]}, "unknown field"),
    ],
)
def test_what_is_wrong_is_told(client: openai.OpenAI, fields: dict[str, object], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.generate(prompt="a star", extra_body=fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2000}, "n"),
        ({"steps": 0}, "steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_images_per_prompt": 2000}, "num_images_per_prompt"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_errors_name_what_the_client_gave(client: openai.OpenAI, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a star", extra_body=fields)
    assert caught.value.param == param
    assert str(caught.value.body["message"]).startswith(param)  # type: ignore[index]
    assert "LATENTRT" not in str(caught.value)
