"""The page in a browser: a quick look over a fake service, and keys."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Route
from support.browser import Tab, chromium
from support.fake_service import FakeService, picture_bytes
from support.page_server import served_with_jobs

from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.keys import new_key
from latentrt.serve.served_model import ServedModel


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_a_picture_is_drawn_and_kept(browser: Browser) -> None:
    with served_with_jobs(FakeService()) as address:
        tab = Tab(browser, address)
        tab.draw("a small star", seed=7)
        assert tab.pictures() == [picture_bytes(128, 128, 7)]
        tab.page.reload()
        assert tab.history.count() == 1 or tab.page.wait_for_selector("#history li")
        tab.history.first.locator("button").click()
        assert tab.page.locator("dialog h2").inner_text() == "a small star"
        tab.close()


@pytest.mark.slow
def test_a_key_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.toml", "alice")
    with served_with_jobs(FakeService(), HttpConfig(keys=tmp_path / "keys.toml")) as address:
        tab = Tab(browser, address, expected="401")
        page = tab.page
        for given in ("wrong", key):
            page.fill("#api-key", given)
            page.keyboard.press("Enter")
            if given == "wrong":
                page.wait_for_selector("text=That key is not valid")
        tab.draw("a star", seed=3)
        stored = "[localStorage, sessionStorage].map((storage) => storage.getItem('latentrt.key'))"
        assert page.evaluate(stored) == [None, key]
        page.reload()
        tab.wait_until_usable()
        page.click("text=Forget the API key")
        page.fill("#api-key", key)
        page.check("text=Remember it")
        page.click("text=Continue")
        tab.wait_until_usable()
        assert page.evaluate(stored) == [key, None]
        assert httpx.get(f"{address}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).json()["data"]
        tab.close()


@pytest.mark.slow
def test_models_and_loras_are_chosen(browser: Browser, tmp_path: Path) -> None:
    service = FakeService()
    (tmp_path / "ink.safetensors").write_bytes(b"not read here")
    bundle = service.models["shapes"].bundle
    other = ServedModel("other", bundle, sizes=((64, 64), (128, 64)), lora_folder=tmp_path)
    service.models = {**service.models, "other": other}
    with served_with_jobs(service) as address:
        tab = Tab(browser, address)
        tab.wait_until_usable()
        assert not tab.page.locator(".lora").count()
        tab.page.fill("#prompt", "kept")
        tab.page.select_option("#model", "other")
        assert tab.page.input_value("#prompt") == "kept"
        tab.page.select_option("#size", "128x64")
        tab.page.fill("[aria-label='Weight of ink']", "0.33")
        tab.page.select_option("#option-output_format", '"webp"')
        tab.draw("a star", seed=-5, negative_prompt="a circle")
        job = service.tickets[0].job
        assert (job.model, job.loras, job.output.format) == ("other", (("ink", 0.33),), "webp")
        assert (job.request.width, job.request.height, job.request.seeds) == (128, 64, (-5,))
        assert job.request.negative.texts[0][0].text == "a circle"
        tab.close()


@pytest.mark.slow
def test_what_is_typed_before_the_server_answers_is_kept(browser: Browser) -> None:
    with served_with_jobs(FakeService()) as address:
        tab = Tab(browser, address)
        tab.wait_until_usable()
        waiting: list[Route] = []
        tab.page.route("**/v1/models", lambda route: waiting.append(route))
        with tab.page.expect_request("**/v1/models"):
            tab.page.reload()
        tab.page.fill("#prompt", "an early star")
        tab.page.keyboard.press("Control+Enter")
        waiting[0].continue_()
        tab.wait()
        assert tab.page.locator("#history img").get_attribute("alt") == "an early star"
        tab.close()


@pytest.mark.slow
def test_the_browser_runs_and_asks_nothing_else(browser: Browser) -> None:
    with served_with_jobs(FakeService()) as address:
        tab = Tab(browser, address)
        tab.wait_until_usable()
        added = tab.page.evaluate(
            """async () => {
                const script = Object.assign(document.createElement("script"), { textContent: "window.added = true" });
                document.body.append(script);
                await fetch("http://localhost:9/").catch(() => {});
                return window.added;
            }"""
        )
        assert added is None
        assert [("Content Security Policy" in text) for text in tab.complaints[:2]] == [True, True]
        tab.complaints.clear()
        tab.close()


@pytest.mark.slow
def test_behind_a_proxy_every_address_is_under_its_path(browser: Browser) -> None:
    with served_with_jobs(FakeService(), HttpConfig(root_path="/pictures")) as address:
        tab = Tab(browser, f"{address}/pictures")
        tab.draw("a star", seed=9)
        assert tab.pictures() == [picture_bytes(128, 128, 9)]
        tab.close()
