"""Progress, interrupt and skip: of the caller's own calls, and of nobody else's."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_service import FakeService, FakeTicket, picture_bytes
from support.webui import info, opened, web_ui

from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.keys import new_key
from latentrt.serve.messages import Job, Picture, Progress
from latentrt.serve.served_model import ServedModel

LONG: dict[str, Any] = {"prompt": "a star", "steps": 100, "seed": 7}


class Pictures(FakeTicket):
    """Sends its first picture before the last UNet call of the others."""

    async def _events(self) -> Any:
        request = self.job.request
        data = picture_bytes(request.width, request.height, request.seeds[0])
        async for event in super()._events():
            yield event
            if isinstance(event, Progress) and event.call == 3 and event.image == 0:
                yield Picture(self.job.id, 0, request.seeds[0], request.height, request.width, data, "png")


class Service(FakeService):
    """Slow, so that calls are under way for as long as a test needs."""

    async def submit(self, job: Job) -> FakeTicket:
        self.tickets.append(Pictures(job, self) if job.images > 1 else FakeTicket(job, self))
        return self.tickets[-1]


@pytest.fixture
def service() -> Service:
    return Service(0.05)


class Sent:
    """A call that another thread waits for."""

    def __init__(self, client: httpx.Client, **body: Any) -> None:
        self.answer: httpx.Response | None = None
        self._client, self._body = client, LONG | body
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        self.answer = self._client.post("/sdapi/v1/txt2img", json=self._body)

    def wait(self) -> httpx.Response:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer


def until(what: Callable[[], Any]) -> Any:
    """Wait until something is there."""
    for _ in range(600):
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it has not come")


def progress(client: httpx.Client, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/sdapi/v1/progress", params=query).raise_for_status().json()
    return answer


def test_progress_with_a_preview(client: httpx.Client) -> None:
    sent = Sent(client)
    told = until(lambda: (found := progress(client))["current_image"] and found)
    assert 0 < told["progress"] < 1
    assert told["eta_relative"] > 0
    state = told["state"]
    assert (state["job_count"], state["job_no"], state["sampling_steps"]) == (1, 0, 100)
    assert state["sampling_step"] == pytest.approx(100 * told["progress"])
    assert opened(told["current_image"]).size == (16, 16)
    assert progress(client, skip_current_image=True)["current_image"] is None
    client.post("/sdapi/v1/interrupt")
    refused = sent.wait()
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "cancelled")
    assert "before a picture was finished" in refused.json()["detail"]
    idle = progress(client)
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)


def test_previews_that_are_not_wanted(client: httpx.Client, service: Service) -> None:
    client.post("/sdapi/v1/txt2img", json={"steps": 1, "override_settings": {"live_previews_enable": False}})
    assert service.tickets[-1].job.previews is None


@pytest.mark.parametrize(("has_rgb", "has_decoder"), [(True, False), (False, True), (False, False)])
def test_previews_that_cost_a_lot_are_not_drawn_unasked(has_rgb: bool, has_decoder: bool) -> None:
    service = Service(0.01)
    model = service.models["shapes"]
    manifest = model.bundle.manifest
    if not has_rgb:
        manifest = replace(manifest, model=replace(manifest.model, latent_rgb=None))
    if has_decoder:
        graphs = manifest.graphs
        manifest = replace(manifest, graphs=graphs | {"preview_decoder": graphs["vae_decoder"]})
    service.models = {"shapes": ServedModel("shapes", replace(model.bundle, manifest=manifest), sizes=model.sizes)}
    with web_ui(service) as client:
        for method in (None, "taesd", "vae"):
            body = {"steps": 1} | ({} if method is None else {"preview_method": method})
            client.post("/sdapi/v1/txt2img", json=body).raise_for_status()
            previews = service.tickets[-1].job.previews
            wanted = None if method is None and not (has_rgb or has_decoder) else method or "auto"
            assert (previews and previews.method) == wanted


@pytest.mark.parametrize("how", ["interrupt", "skip"])
def test_what_was_finished_is_answered(client: httpx.Client, how: str) -> None:
    sent = Sent(client, batch_size=2, seed=300)
    until(lambda: progress(client)["state"]["job_no"] == 1)
    client.post(f"/sdapi/v1/{how}")
    answer = sent.wait()
    assert info(answer)["all_seeds"] == [300]
    assert len(info(answer)["infotexts"]) == 1
    (image,) = answer.json()["images"]
    assert opened(image).getpixel((0, 0)) == (300 % 256, 1, 0)


def test_by_the_clients_id(client: httpx.Client, service: Service) -> None:
    first, second = Sent(client, force_task_id="one"), Sent(client, force_task_id="two", batch_size=2)
    until(lambda: progress(client, force_task_id="two")["progress"] > 0)
    until(lambda: progress(client, force_task_id="one")["progress"] > 0)
    assert progress(client, force_task_id="two")["state"]["job_count"] == 2
    assert progress(client, force_task_id="three")["state"]["job_count"] == 0
    client.post("/sdapi/v1/interrupt", params={"force_task_id": "two"})
    second.wait()
    assert progress(client, force_task_id="one")["state"]["interrupted"] is False
    client.post("/sdapi/v1/skip")
    assert first.wait().status_code == 409
    assert all(ticket.cancelled for ticket in service.tickets)


def test_skip_stops_the_oldest(client: httpx.Client) -> None:
    first = Sent(client, force_task_id="old")
    until(lambda: progress(client, force_task_id="old")["state"]["job_count"])
    second = Sent(client, force_task_id="new")
    until(lambda: progress(client, force_task_id="new")["state"]["job_count"])
    client.post("/sdapi/v1/skip")
    assert first.wait().status_code == 409
    before = until(lambda: (found := progress(client))["state"]["job"] == "new" and found)
    assert not before["state"]["skipped"]
    until(lambda: progress(client)["progress"] > before["progress"])
    client.post("/sdapi/v1/skip")
    assert second.wait().status_code == 409


def test_the_web_uis_own_progress(client: httpx.Client) -> None:
    def told(**more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = client.post("/internal/progress", json={"id_task": "mine"} | more).json()
        return answer

    assert told() == told() | {"active": False, "queued": False, "completed": False}
    sent = Sent(client, force_task_id="mine")
    first = until(lambda: (found := told())["live_preview"] and found)
    assert (first["active"], first["completed"]) == (True, False)
    assert first["live_preview"].startswith("data:image/png;base64,")
    assert opened(first["live_preview"].partition(",")[2]).size == (16, 16)
    last = until(lambda: (found := told())["id_live_preview"] == 4 and found)
    assert told(id_live_preview=last["id_live_preview"])["live_preview"] is None
    assert told(live_preview=False)["live_preview"] is None
    client.post("/sdapi/v1/interrupt")
    sent.wait()
    assert told() == told() | {"active": False, "completed": True}
    assert client.post("/internal/progress", json={}).status_code == 400


@contextmanager
def two_clients(service: FakeService, folder: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Of two keys."""
    keys = [new_key(folder / "keys.toml", name) for name in ("alice", "bob")]
    with ExitStack() as stack:
        url = stack.enter_context(web_ui(service, HttpConfig(keys=folder / "keys.toml"))).base_url
        alice, bob = (stack.enter_context(httpx.Client(base_url=url, auth=("x", key), timeout=60)) for key in keys)
        yield alice, bob


def test_nobody_sees_or_stops_the_calls_of_another_key(service: Service, tmp_path: Path) -> None:
    with two_clients(service, tmp_path) as (alice, bob):
        sent = Sent(alice, force_task_id="hers")
        until(lambda: progress(alice)["current_image"])
        assert progress(bob)["state"]["job_count"] == 0
        assert progress(bob, force_task_id="hers")["state"]["job_count"] == 0
        assert not bob.post("/internal/progress", json={"id_task": "hers"}).json()["active"]
        for path in ("interrupt", "skip", "interrupt?force_task_id=hers", "skip?force_task_id=hers"):
            assert bob.post(f"/sdapi/v1/{path}").status_code == 200
        before = progress(alice)
        until(lambda: progress(alice)["progress"] > before["progress"])
        assert not any(ticket.cancelled for ticket in service.tickets)
        alice.post("/sdapi/v1/interrupt")
        assert sent.wait().status_code == 409
        assert not bob.post("/internal/progress", json={"id_task": "hers"}).json()["completed"]


def test_the_model_is_chosen_for_oneself(service: Service, tmp_path: Path) -> None:
    shapes = service.models["shapes"]
    service.models = {"shapes": shapes, "other": ServedModel("other", shapes.bundle, sizes=shapes.sizes)}
    with two_clients(service, tmp_path) as (alice, bob):
        alice.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}).raise_for_status()
        for client in (alice, bob):
            client.post("/sdapi/v1/txt2img", json={"steps": 1}).raise_for_status()
        override = {"override_settings": {"sd_model_checkpoint": "shapes"}}
        alice.post("/sdapi/v1/txt2img", json={"steps": 1} | override).raise_for_status()
        assert alice.get("/sdapi/v1/options").json()["sd_model_checkpoint"].startswith("other [")
    assert [ticket.job.model for ticket in service.tickets] == ["other", "shapes", "shapes"]


def test_a_client_that_leaves_cancels(client: httpx.Client, service: Service) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/sdapi/v1/txt2img", json=LONG, timeout=0.5)
    until(lambda: service.tickets and service.tickets[0].cancelled)
    until(lambda: progress(client)["state"]["job_count"] == 0)
