"""What goes wrong at the server or on the way: answers tell nothing of the inside, and nothing is left behind."""

import asyncio
import base64
import json
import logging
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.fake_service import FakeService, FakeTicket, picture_bytes, served

from latentrt.serve.http import bodies, forms, openai
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.messages import Job

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
Sent = list[Mapping[str, Any]]


async def called(app: FastAPI, *messages: Mapping[str, Any], path: str = GENERATIONS) -> Sent:
    """What the app sends for a request of these messages; then nothing more comes."""
    sent: Sent = []
    waiting = list(messages)

    async def receive() -> Mapping[str, Any]:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(60)
        raise AssertionError("the app waits for too long")

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await asyncio.wait_for(app(scope, receive, send), 20)  # type: ignore[arg-type]
    return sent


def body(more: bool = False, **fields: object) -> Mapping[str, Any]:
    return {"type": "http.request", "body": json.dumps({"prompt": "a star"} | fields).encode(), "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "²x²"},
        {"size": 5},
        {"quality": []},
        {"quality": {}},
        {"\ud800": 1},
        {"prompt": "\ud800"},
        {"negative_prompt": "a\udfff"},
        {"scheduler": "\ud800"},
        {"scheduler": {"\ud800": 1}},
        {"loras": {"\ud800": 1}},
        {"image": {}},
        {"image": [["x"]]},
        {"image": []},
        {"n": True},
        {"n": [1]},
        {"priority": {}},
        {"output_format": []},
        {"response_format": {}},
        {"background": []},
        {"seed": 10**400},
        {"timesteps": [[]] * 200_000},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
def test_odd_values_are_refused(fields: dict[str, object]) -> None:
    start, *_ = sent = asyncio.run(called(make_app(FakeService()), body(**fields)))
    assert start["status"] == 400, sent


class Broken(FakeService):
    """Fails as nobody expects."""

    async def submit(self, job: Job) -> FakeTicket:
        raise RuntimeError(f"cannot draw {job.request.positive.texts[0][0].text}")


@pytest.mark.parametrize("log_prompts", [False, True])
def test_what_nobody_expected(caplog: pytest.LogCaptureFixture, log_prompts: bool) -> None:
    config = HttpConfig(log_prompts=log_prompts, cors=("https://page.example",))
    with served(make_app(Broken(), config)) as address:
        headers = {"X-Request-Id": "mine-7", "Origin": "https://page.example"}
        answer = httpx.post(address + GENERATIONS, json={"prompt": "a secret"}, headers=headers)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "mine-7"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "RuntimeError in the request mine-7" in told.getMessage()
    assert "in submit" in told.getMessage()
    assert ("secret" in caplog.text) == log_prompts


def test_a_path_makes_no_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with served(make_app(FakeService())) as address, caplog.at_level("INFO"):
        assert httpx.get(f"{address}/a%0AGET%20/b%20200").status_code == 404
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_client_that_leaves_while_it_sends_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(called(make_app(FakeService()), body(more=True), GONE)) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_before_the_answer_began_cancels_its_job(stream: bool) -> None:
    service = FakeService(0.02)
    asyncio.run(called(make_app(service), body(stream=stream, num_inference_steps=50), GONE))
    assert [ticket.cancelled for ticket in service.tickets] == [True]


def test_bodies_of_all_requests_are_limited_together() -> None:
    async def main() -> list[int]:
        service = FakeService(0.02)
        app = make_app(service, HttpConfig(body_bytes=1000, bodies_bytes=1500))
        long = body(user="x" * 900)
        drawing = asyncio.create_task(called(app, long))
        while not service.tickets:
            await asyncio.sleep(0.01)
        refused = await called(app, long)
        assert dict(refused[0]["headers"])[b"retry-after"] == b"2"
        answers = [refused, await drawing, await called(app, long)]
        return [answer[0]["status"] for answer in answers]

    assert asyncio.run(main()) == [429, 200, 200], "the first one counts until it is answered"


def test_what_was_drawn_is_answered_also_while_many_requests_are_read() -> None:
    async def main() -> Sent:
        service = FakeService(0.05)
        app = make_app(service)
        drawing = asyncio.create_task(called(app, body()))
        while not service.tickets:
            await asyncio.sleep(0.01)
        app.state.reader._reading = bodies.PARSING
        (busy, *_) = await called(app, body())
        assert busy["status"] == 429
        return await drawing

    assert asyncio.run(main())[0]["status"] == 200


def test_the_event_loop_does_no_work_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {}

    def watch(module: ModuleType, name: str) -> None:
        work = getattr(module, name)

        def watched(*arguments: object, **options: object) -> object:
            threads.setdefault(name, set()).add(threading.current_thread().name.partition("_")[0])
            return work(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    for module, name in (
        *((bodies, "json_object"), (bodies, "decoded_files"), (bodies, "fitted"), (forms, "picture")),
        *((forms, "fields_of"), (openai, "translated"), (openai, "base64_text")),
    ):
        watch(module, name)
    picture = picture_bytes(128, 128, 1)
    with served(make_app(FakeService())) as address, httpx.Client(base_url=address, timeout=60) as client:
        for stream in (False, True):
            json_body = {"prompt": "a", "image": base64.b64encode(picture).decode(), "stream": stream}
            assert client.post(GENERATIONS, json=json_body).status_code == 200
            form = {"prompt": "a", "stream": json.dumps(stream)}
            assert client.post(EDITS, data=form, files={"image": ("a.png", picture)}).status_code == 200
    assert threads.pop("base64_text") == {"answers"}
    assert len(threads) == 6
    assert all(names == {"bodies"} for names in threads.values()), threads
