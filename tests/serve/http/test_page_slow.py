"""The page in a browser against a server of the embedded model, beside `Pipeline`: the same pictures to the bit."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import DESKTOP, PHONE, Tab, chromium
from support.real_server import real_server

from latentrt.runtime import Pipeline
from latentrt.serve.http.given_files import bytes_of_base64

pytestmark = pytest.mark.slow
PROMPT = "a large red star on a blue background"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with real_server("--sizes=128x128,192x128", "--max-steps=600", "--lazy") as server:
        yield server.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.load(device="cpu", backend="onnxruntime") as pipeline:
        yield pipeline


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def drawn(pipeline: Pipeline, prompt: str, **options: Any) -> NDArray[np.uint8]:
    return np.asarray(pipeline(prompt, **options).images[0])


def sent_bodies(page: Page) -> list[dict[str, Any]]:
    """Bodies of the calls that the page sends from now on."""
    bodies: list[dict[str, Any]] = []

    def note(route: Route) -> None:
        if route.request.method == "POST":
            bodies.append(json.loads(route.request.post_data or ""))
        route.continue_()

    page.route("**/v1/jobs", note)
    return bodies


def drop(page: Page, data: bytes, selector: str = "#stage") -> None:
    """Drop a file on the page."""
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **getattr(picture, "encoderinfo", {}))
    return file.getvalue()


def test_previews_are_seen_and_the_picture_is_that_of_the_pipeline(tab: Tab, pipeline: Pipeline) -> None:
    tab.begin(PROMPT, seed=11, num_inference_steps=60, num_images_per_prompt=2)
    seen = set()
    while tab.page.locator("#cancel").count():
        sources = "[...document.querySelectorAll('.drawing img')].map((image) => image.src)"
        seen |= {source for source in tab.page.evaluate(sources) if source.startswith("data:image/")}
    assert len(seen) >= 2
    tab.wait()
    first, second = reversed(tab.pictures())
    for data, seed in ((first, 11), (second, 12)):
        wanted = drawn(pipeline, PROMPT, seed=seed, num_inference_steps=60, width=128, height=128)
        assert np.array_equal(pixels(data), wanted)


def test_a_drawing_is_cancelled(tab: Tab, address: str) -> None:
    for stop in ("click", "key"):
        with tab.page.expect_response(lambda answer: answer.request.method == "POST") as answer:
            tab.begin(PROMPT, num_inference_steps=150, num_images_per_prompt=8)
        tab.page.wait_for_selector("progress[value]")
        if stop == "click":
            tab.page.click("#cancel")
        else:
            tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("text=Describe a picture")
        assert tab.page.evaluate("document.activeElement.id") == "draw"
        job = answer.value.json()["id"]
        while (status := httpx.get(f"{address}/v1/jobs/{job}").json()["status"]) == "running":
            pass
        assert status == "cancelled"
    assert tab.history.count() == 0


def test_the_history_draws_the_same_again_after_a_reload(tab: Tab) -> None:
    tab.draw(PROMPT, num_inference_steps=8)  # with a random seed
    tab.page.reload()
    tab.wait_until_usable()
    tab.page.click("#history li button")
    tab.page.click("text=Draw again")
    expect(tab.history).to_have_count(2, timeout=60_000)
    again, first = tab.pictures()
    assert again == first
    tab.page.click("#history li:first-child button")
    with tab.page.expect_download() as download:
        tab.page.click("text=Download")
    assert Path(download.value.path()).read_bytes() == first
    assert re.fullmatch(r"a-large-red-star-on-a-blue-background-\d+\.png", download.value.suggested_filename)
    tab.page.click("dialog >> text=Delete")
    expect(tab.history).to_have_count(1)
    tab.page.click("text=Undo")
    expect(tab.history).to_have_count(2)


def test_a_part_is_drawn_anew(tab: Tab, pipeline: Pipeline) -> None:
    page, bodies = tab.page, sent_bodies(tab.page)
    tab.draw("a large yellow heart on a white background", seed=1, num_inference_steps=10)
    page.click("#history li button")
    page.click("text=Begin from it")
    page.click("#start-mask")
    box = page.locator(".board").bounding_box()
    assert box is not None
    for row in (0.3, 0.5):
        page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + row * box["height"], steps=4)
        page.mouse.up()
    page.click("text=Undo")  # the second stroke
    page.click("text=Use this mask")
    tab.draw("a small blue square on a white background", seed=5, num_inference_steps=10)
    body = bodies[-1]
    image, mask = (
        Image.open(io.BytesIO(bytes_of_base64(name, body[name]))).convert(mode)
        for name, mode in (("image", "RGB"), ("mask_image", "L"))
    )
    light = np.asarray(mask)
    assert light.shape == (128, 128)
    assert (light[30:46, 12:38] == 255).all()
    assert light[60:, :].max() == light[:, 60:].max() == 0
    options = {"image": image, "mask_image": mask, "seed": 5, "num_inference_steps": 10, "width": 128, "height": 128}
    data = tab.pictures()[0]
    assert np.array_equal(pixels(data), drawn(pipeline, body["prompt"], **options))
    page.click("#history li:first-child button")
    page.click("text=Draw again")
    expect(tab.history).to_have_count(3, timeout=60_000)
    assert tab.pictures()[0] == data


def test_a_picture_of_another_form_is_cut_and_not_stretched(tab: Tab) -> None:
    bodies = sent_bodies(tab.page)
    levels = np.random.default_rng(3).integers(0, 256, (200, 800, 3), dtype=np.uint8)
    file = png(Image.fromarray(levels))
    tab.page.set_input_files("#start-file", {"name": "wide.png", "mimeType": "image/png", "buffer": file})
    tab.page.wait_for_selector("text=cut to the form")
    assert tab.page.input_value("#size") == "192x128"
    tab.draw(PROMPT, num_inference_steps=2)
    assert np.array_equal(pixels(bytes_of_base64("image", bodies[0]["image"])), levels[:, 250:550])
    assert "strength" not in bodies[0]


def test_a_dropped_png_is_drawn_again(tab: Tab, pipeline: Pipeline) -> None:
    options = {"num_inference_steps": 9, "scheduler": "dpm++_2m_karras", "negative_prompt": "Dreieck – grün"}
    seeds = {"seed": 2**63 + 1025, "guidance_scale": 3.5, "width": 192, "height": 128}
    result = pipeline("a purple circle", **options, **seeds)  # type: ignore[arg-type]
    file = io.BytesIO()
    Image.Image.save(result.images[0], file, "PNG", **result.images[0].encoderinfo)
    tab.wait_until_usable()
    drop(tab.page, file.getvalue())
    tab.page.click("text=Use its settings")
    expect(tab.page.locator("#prompt")).to_have_value("a purple circle")
    assert tab.page.input_value("#seed") == str(2**63 + 1025)
    tab.page.keyboard.press("Control+Enter")
    tab.wait()
    assert np.array_equal(pixels(tab.pictures()[0]), np.asarray(result.images[0]))


def test_with_the_keyboard_alone(tab: Tab) -> None:
    page, keys = tab.page, tab.page.keyboard
    tab.wait_until_usable()

    def go_to(identity: str) -> None:
        for _ in range(60):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", identity):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
            keys.press("Tab")
        raise AssertionError(f"{identity} is not reached")

    go_to("#prompt")
    keys.type("a large green heart")
    keys.press("Control+Enter")
    tab.wait()
    go_to("#history button")
    keys.press("Enter")
    go_to("dialog .buttons button:nth-child(3)")
    keys.press("Enter")
    expect(page.locator("#start-mask")).to_be_focused()
    keys.press("Enter")
    page.wait_for_selector(".board")
    before = page.evaluate("document.querySelector('.paint').toDataURL()")
    for key in ("ArrowLeft", "Shift+ArrowUp", "+", "Space"):
        keys.press(key)
    assert page.evaluate("document.querySelector('.paint').toDataURL()") != before
    go_to("dialog > .buttons button:first-child")
    keys.press("Enter")
    page.wait_for_selector("text=Only the painted part")
    keys.press("Control+Enter")
    expect(tab.history).to_have_count(2, timeout=60_000)
    page.fill("#option-num_inference_steps", "150")
    keys.press("Enter")
    page.wait_for_selector("progress[value]")
    keys.press("Escape")
    page.wait_for_selector("text=Describe a picture")


def test_a_reload_goes_on_with_the_drawing(tab: Tab) -> None:
    tab.begin(PROMPT, num_inference_steps=600, seed=4)
    tab.page.wait_for_selector("progress[value]")
    tab.page.reload()
    tab.wait()
    expect(tab.history).to_have_count(1)
    tab.page.reload()
    tab.wait_until_usable()
    assert tab.history.count() == 1
    assert not tab.page.locator("#cancel").count()


def test_a_full_server_is_asked_again(browser: Browser, address: str) -> None:
    tab = Tab(browser, address, expected="429")
    error = {"message": "busy", "type": "rate_limit_error", "code": "server_busy", "param": None}
    left = [1, 600]

    def refuse(route: Route) -> None:
        if route.request.method == "POST" and left:
            headers = {"Retry-After": str(left.pop(0))}
            route.fulfill(status=429, json={"error": error}, headers=headers)
        else:
            route.continue_()

    tab.page.route("**/v1/jobs", refuse)
    tab.begin(PROMPT, num_inference_steps=3)
    tab.page.wait_for_selector("text=/too much to do.*Trying again in (600|59\\d) s/")
    tab.page.click("text=Try now")
    tab.wait()
    tab.close()


def test_what_the_server_refuses_is_told_at_its_field(browser: Browser, address: str) -> None:
    tab = Tab(browser, address, expected="400")
    tab.wait_until_usable()
    tab.page.click("text=All options")
    tab.begin(PROMPT, guidance_end=0)
    expect(tab.page.locator("#stage .problem")).to_contain_text("above 0")
    expect(tab.page.locator("#option-guidance_end")).to_have_attribute("aria-invalid", "true")
    tab.page.fill("#option-guidance_end", "")
    tab.page.fill("#option-num_inference_steps", "100000")
    tab.page.click("#draw")
    expect(tab.page.locator("#problem")).to_contain_text("Steps")
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(browser: Browser, address: str, scheme: str, viewport: dict[str, int]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = Tab(browser, address, viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = tab.page
    tab.wait_until_usable()

    def check(state: str) -> None:
        found = Axe().run(page).response["violations"]
        bad = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        assert not bad, (state, [(fault["id"], fault["nodes"][0]["html"]) for fault in bad])
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], state

    check("empty")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    check("all options")
    tab.begin(PROMPT, num_inference_steps=400)
    page.wait_for_selector("progress[value]")
    check("drawing")
    tab.wait()
    check("done")
    page.click("#history li button")
    check("viewer")
    page.click("text=Begin from it")
    page.click("#start-mask")
    page.click("text=Paint all")
    check("painting")
    page.click("text=Use this mask")
    check("with a mask")
    tab.close()
