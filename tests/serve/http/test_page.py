"""The page in a browser: a quick look over a fake service, and keys."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from playwright.sync_api import Browser
from support.browser import Tab, chromium
from support.fake_service import FakeService, picture_bytes, served

from latentrt.serve.http.app import make_app
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.jobs import jobs_router
from latentrt.serve.http.keys import Key, new_key
from latentrt.serve.jobs.kept_jobs import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def served_with_jobs(service: FakeService, config: HttpConfig | None = None) -> Iterator[str]:
    """A server of the fake service that has native jobs; yields its address."""
    runner = Runner(service, store_in_memory(Bounds()))

    def jobs(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        return jobs_router(runner, reader=reader, sender=sender)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.stop(0)

    with served(make_app(service, config, faces=[jobs], lifespan=lifespan)) as address:
        yield address


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
        assert page.evaluate("[localStorage.length && localStorage['latentrt.key'], sessionStorage['latentrt.key']]") == [
            None,
            key,
        ]
        page.reload()
        tab.wait_until_usable()
        page.click("text=Forget the API key")
        page.fill("#api-key", key)
        page.check("text=Remember it")
        page.click("text=Continue")
        tab.wait_until_usable()
        assert page.evaluate("localStorage['latentrt.key']") == key
        assert httpx.get(f"{address}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).json()["data"]
        tab.close()
