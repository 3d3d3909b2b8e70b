"""The routes of native jobs: what they answer, to whom, and that OpenAPI says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI, Request

from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import json_options
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.errors import add_handlers
from latentrt.serve.http.job_answers import server_sent
from latentrt.serve.http.jobs import job_schema, jobs_router
from latentrt.serve.http.keys import Key
from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.store import JobStore, StorageError
from tests.serve.jobs.fakes import FakeService, picture_of, shapes_model

MODEL = shapes_model()


class Server:
    """An app with the routes, a fake service, and a client that checks each answer against OpenAPI."""

    def __init__(self, *, store: JobStore | None = None, **bounds: Any) -> None:
        self.now = 1000.0
        self.service = FakeService(MODEL)
        self.store = store or store_in_memory(Bounds(**bounds), clock=lambda: self.now)
        options = RunnerOptions(poll=0.02, longest_pause=0.02)
        self.runner = Runner(self.service, self.store, options=options, clock=lambda: self.now)
        self.app = FastAPI()
        reader = CallReader({MODEL.name: MODEL}, HttpConfig())
        clock = lambda: self.now  # noqa: E731
        router = jobs_router(self.runner, reader=reader, sender=self.sender, clock=clock, heartbeat=0.01)
        self.app.include_router(router)
        add_handlers(self.app)
        self.documented = self.app.openapi()["paths"]
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, root_path="/root"), base_url="http://here"
        )

    @staticmethod
    def sender(request: Request) -> Key:
        """The client's name is in a header."""
        return Key(request.headers.get("who", "me"))

    async def __call__(self, method: str, url: str, who: str = "me", **options: Any) -> httpx.Response:
        """Ask, and check that OpenAPI knows the answer's status."""
        headers = {"who": who, **options.pop("headers", {})}
        answer = await self.http.request(method, url, headers=headers, **options)
        parts = httpx.URL(url).path.removeprefix("/root").split("/")
        path = "/".join([*parts[:3], *(["{job}"] if len(parts) > 3 else []), *parts[4:5], *(["{n}"] * len(parts[5:6]))])
        assert str(answer.status_code) in self.documented[path][method.lower()]["responses"], answer.text
        return answer

    async def create(self, **body: Any) -> dict[str, Any]:
        """A job that is accepted."""
        answer = await self("POST", "/v1/jobs", json={"prompt": "a star", **body})
        assert answer.status_code == 202, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def ended(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job once it has ended."""
        while True:
            answer: dict[str, Any] = (await self("GET", f"/v1/jobs/{job['id']}")).json()
            if answer["status"] in ("done", "failed", "cancelled"):
                return answer
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(*, store: JobStore | None = None, **bounds: Any) -> AsyncIterator[Server]:
    server = Server(store=store, **bounds)
    server.runner.start()
    yield server
    await server.runner.stop(1)
    await server.store.close()
    await server.http.aclose()


def test_a_job_from_its_beginning_to_its_pictures() -> None:
    async def check() -> None:
        async with serving() as server:
            answer = await server("POST", "/v1/jobs", json={"prompt": "a star", "seed": 3, "output_format": "webp"})
            job = answer.json()
            assert (answer.status_code, job["status"], job["position"]) == (202, "waiting", 0)
            assert answer.headers["location"] == job["urls"]["self"] == f"/root/v1/jobs/{job['id']}"
            assert len(job["id"]) == 32
            done = await server.ended(job)
            assert (done["status"], done["position"], done["error"]) == ("done", None, None)
            assert (done["request"]["seed"], done["request"]["prompt"]) == ([3], ["a star"])
            (picture,) = done["images"]
            assert (picture["seed"], picture["format"]) == (3, "webp")
            image = await server("GET", picture["url"].removeprefix("/root"))
            assert (image.status_code, image.headers["content-type"]) == (200, "image/webp")
            assert image.headers["cache-control"].startswith("private, max-age=")
            assert image.content == picture_of(server.service.submitted[0], 0)
            assert server.service.submitted[0].client == "me"
            tag = image.headers["etag"]
            for known in (tag, f'"x", W/{tag}', "*"):
                again = await server("GET", picture["url"][5:], headers={"If-None-Match": known})
                assert (again.status_code, again.content) == (304, b"")
            assert (await server("GET", picture["url"][5:-1] + "1")).status_code == 404

    asyncio.run(check())


def test_results_are_gone_after_their_time() -> None:
    async def check() -> None:
        async with serving(result_ttl=60.0) as server:
            done = await server.ended(await server.create())
            url = done["images"][0]["url"].removeprefix("/root")
            assert done["expires"] == 1060
            server.now += 60
            assert (await server("GET", url)).status_code == 410
            await server.store.sweep()
            assert (await server("GET", url)).status_code == 410
            job = (await server("GET", f"/v1/jobs/{done['id']}")).json()
            assert (job["status"], job["expired"], job["images"], job["request"]) == ("done", True, [], None)
            server.now += 60
            await server.store.sweep()
            assert (await server("GET", url)).json()["error"]["code"] == "job_not_found"

    asyncio.run(check())


def test_jobs_of_others_are_unknown() -> None:
    async def check() -> None:
        async with serving() as server:
            job = await server.create()
            await server.ended(job)
            for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0")):
                answer = await server(method, f"/v1/jobs/{job['id']}{rest}", who="you")
                none = await server(method, f"/v1/jobs/none{rest}", who="you")
                assert (answer.status_code, answer.json()) == (404, none.json())
            listed = (await server("GET", "/v1/jobs", who="you")).json()
            assert (listed["data"], listed["last_id"]) == ([], None)

    asyncio.run(check())


def test_own_jobs_are_listed_in_pages() -> None:
    async def check() -> None:
        async with serving() as server:
            ids = [(await server.create())["id"] for _ in range(5)]
            seen, after = [], None
            while True:
                page = (
                    await server("GET", "/v1/jobs", params={"limit": 2, **({"after": after} if after else {})})
                ).json()
                seen += [job["id"] for job in page["data"]]
                after = page["last_id"]
                if not page["has_more"]:
                    break
            assert seen == ids[::-1]
            assert (await server("GET", "/v1/jobs", params={"limit": 0})).status_code == 400

    asyncio.run(check())


def test_cancelling_is_idempotent() -> None:
    async def check() -> None:
        async with serving() as server:
            server.service.gate = asyncio.Event()
            job = await server.create()
            url = f"/v1/jobs/{job['id']}"
            while not server.service.submitted:
                await asyncio.sleep(0.01)
            early = await server("GET", f"{url}/images/0")
            assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_ended")
            assert (await server("GET", url)).json()["status"] == "waiting"  # not begun at the device
            for _ in range(2):
                answer = await server("DELETE", url)
                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
            server.service.gate.set()
            done = await server.ended(await server.create())
            assert (await server("DELETE", f"/v1/jobs/{done['id']}")).json()["status"] == "done"

    asyncio.run(check())


def events_of(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of each event; comments are left out."""
    result = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            result.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return result


def test_events_until_the_end_and_again() -> None:
    async def check() -> None:
        async with serving() as server:
            server.service.pause = 0.03
            job = await server.create()
            url = f"/v1/jobs/{job['id']}/events"
            answer = await server("GET", url)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            assert answer.text.startswith("retry: ")
            assert "\n: " in answer.text  # a heartbeat
            events = events_of(answer.text)
            names = [name for _, name, _ in events]
            assert [name for name in names if name not in ("progress", "preview")] == [
                "state",
                "state",
                "picture",
                "done",
            ]
            assert {"progress", "preview"} <= set(names)
            assert events[-2][2]["url"] == f"/root/v1/jobs/{job['id']}/images/0"
            last = await server("GET", url, headers={"Last-Event-ID": events[-1][0]})
            assert (last.status_code, last.content) == (204, b"")
            for known in (events[0][0], "nonsense"):
                later = events_of((await server("GET", url, headers={"Last-Event-ID": known})).text)
                assert [name for _, name, _ in later] == ["picture", "done"]

    asyncio.run(check())


def test_a_reader_that_leaves_stops_following() -> None:
    async def check() -> None:
        async with serving() as server:
            server.service.gate = asyncio.Event()
            job = await server.create()
            entries = server.runner.logs.follow(job["id"], server.store.get, heartbeat=0.01)
            stream = server_sent(entries, "")
            texts = [await anext(stream) for _ in range(4)]
            assert texts[0].startswith("retry")
            assert "waiting" in texts[1]
            assert texts[2] == texts[3] == ": nothing has happened\n\n"
            await stream.aclose()  # type: ignore[attr-defined]
            assert not [entry async for entry in entries]

    asyncio.run(check())


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"seed": 1}', b'"text"'])
def test_bodies_that_are_no_jobs(body: bytes) -> None:
    async def check() -> None:
        async with serving() as server:
            assert (await server("POST", "/v1/jobs", content=body)).status_code == 400
            assert (await server("GET", "/v1/jobs")).json()["data"] == []

    asyncio.run(check())


def test_a_full_store_says_507() -> None:
    async def check() -> None:
        async with serving(bytes=200_000, result_ttl=10.0) as server:
            server.service.gate = asyncio.Event()
            await server.create()
            answer = await server("POST", "/v1/jobs", json={"prompt": "a star", "num_images_per_prompt": 3})
            assert answer.status_code == 507

    asyncio.run(check())


def test_too_many_jobs_of_a_client_are_refused() -> None:
    async def check() -> None:
        async with serving(client_jobs=1) as server:
            server.service.gate = asyncio.Event()
            job = await server.create()
            answer = await server("POST", "/v1/jobs", json={"prompt": "a star"})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
            assert (await server("POST", "/v1/jobs", who="you", json={"prompt": "a star"})).status_code == 202
            await server("DELETE", job["urls"]["self"].removeprefix("/root"))
            await server.create()

    asyncio.run(check())


@pytest.mark.parametrize(("full", "status"), [(True, 507), (False, 503)])
def test_a_store_that_fails(monkeypatch: pytest.MonkeyPatch, full: bool, status: int) -> None:
    async def check() -> None:
        async with serving() as server:

            async def failing(*_: Any, **__: Any) -> None:
                raise StorageError("the disk does not answer", full=full)

            monkeypatch.setattr(server.store, "add", failing)
            answer = await server("POST", "/v1/jobs", json={"prompt": "a star"})
            assert answer.status_code == status
            assert ("retry-after" in answer.headers) == (not full)

    asyncio.run(check())


def test_the_schema_of_a_job_is_made_from_the_table() -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {*json_options(), "prompt", "model", "loras", "deadline_ms", "priority"} <= schema["properties"].keys()
    check: Callable[[Any], bool] = jsonschema.Draft202012Validator(schema).is_valid
    assert check({"prompt": "a", "model": "sd", "loras": {"x": 0.5}, "image": ["aGk="], "previews": 3})
    assert not check({"prompt": "a", "unknown": 1})
    assert not check({})
    assert not any("file" in schema["properties"][name]["description"] for name in BY_HASH)


def test_one_job_for_one_idempotency_key() -> None:
    async def check() -> None:
        async with serving() as server:
            answers = [
                await server(
                    "POST", "/v1/jobs", json={"prompt": "a star", "seed": seed}, headers={"Idempotency-Key": "k"}
                )
                for seed in (1, 1, 2)
            ]
            assert [answer.status_code for answer in answers] == [202, 202, 409]
            assert answers[0].json() == answers[1].json()
            assert len((await server("GET", "/v1/jobs")).json()["data"]) == 1

    asyncio.run(check())
