"""The page's places for pictures that steer a drawing, in a browser over a fake service."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from support.browser import Tab, chromium
from support.exports import Exported
from support.fake_service import FakeService
from support.page_server import served_with_jobs

from latentrt.runtime.bundle import Bundle, ControlBundle
from latentrt.serve.served_model import ServedModel

KINDS = {"edges": "sd1-net", "pose": "sd1-bgr", "sketch": "sd1-t2i", "face": "sd1-ip", "clip": "encoder"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def service(exported: Callable[[str], Exported]) -> FakeService:
    """With a model that has all kinds of controls, and one that has none."""
    service, controls = FakeService(), {n: ControlBundle.open(exported(of).bundle).manifest for n, of in KINDS.items()}
    bundle = Bundle.open(exported("sd1-ports-fp32").bundle)
    model = ServedModel("sd", bundle, sizes=((64, 48),), controls=controls)
    service.models = {"sd": model, **service.models}
    return service


def file(seed: int) -> dict[str, object]:
    """A picture, as a file that is chosen."""
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(data, "PNG")
    return {"name": f"{seed}.png", "mimeType": "image/png", "buffer": data.getvalue()}


def test_pictures_are_chosen_sent_kept_and_removed(browser: Browser, service: FakeService, tmp_path: Path) -> None:
    with served_with_jobs(service) as address:
        tab = Tab(browser, address)
        tab.wait_until_usable()
        page = tab.page
        assert page.locator(".control legend").all_inner_texts() == [
            "edges ControlNet", "pose ControlNet", "sketch T2I-Adapter", "face IP-Adapter"
        ]  # fmt: skip
        for number, name in enumerate(("edges", "pose", "face")):
            page.set_input_files(f"#control-{name}", [file(number)])  # type: ignore[list-item]
            page.wait_for_selector(f"img[alt='Picture for {name}']")
        page.fill("[aria-label='Strength, edges']", "0.5")
        page.fill("[aria-label='From, pose']", "0.2")
        page.fill("[aria-label='To, pose']", "0.75")
        page.fill("[aria-label='Strength, face']", "0.6")
        tab.draw("a star", seed=3, num_inference_steps=4)
        page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "page.png"), full_page=True)
        request = service.tickets[-1].job.request
        given = request.options["control_image"]
        assert isinstance(given, dict)
        for number, name in enumerate(("edges", "pose")):
            wanted = Image.open(io.BytesIO(file(number)["buffer"]))  # type: ignore[arg-type]
            assert np.array_equal(np.asarray(given[name]), np.asarray(wanted))
        assert request.options["controlnet_conditioning_scale"] == {"edges": 0.5}
        assert request.options["control_guidance_start"] == {"pose": 0.2}
        assert request.options["control_guidance_end"] == {"pose": 0.75}
        assert request.options["ip_adapter_scale"] == 0.6
        assert request.options["t2i_image"] is None

        page.click("[aria-label='Remove the picture for pose']")
        page.wait_for_selector("img[alt='Picture for pose']", state="detached")
        assert page.input_value("[aria-label='Strength, edges']") == "0.5"
        tab.draw("a circle", seed=4)
        request = service.tickets[-1].job.request
        assert list(request.options["control_image"] or ()) == ["edges"]
        assert request.options["control_guidance_end"] is None

        page.reload()
        tab.wait_until_usable()
        assert page.locator(".control img").count() == 0
        page.wait_for_selector("#history li:nth-child(2)")
        tab.history.nth(1).locator("button").click()
        assert "edges, pose" in page.locator("dialog .facts").inner_text()
        page.click("dialog >> text=Use its settings")
        page.wait_for_selector("img[alt='Picture for pose']")
        assert page.input_value("[aria-label='To, pose']") == "0.75"
        tab.draw("again", seed=3)
        again = service.tickets[-1].job.request.options
        assert isinstance(again["control_image"], dict)
        assert list(again["control_image"]) == ["edges", "pose"]
        assert (again["ip_adapter_scale"], again["control_guidance_end"]) == (0.6, {"pose": 0.75})

        page.select_option("#model", "shapes")
        assert page.locator("#controls").is_hidden()
        tab.draw("another model", seed=1)
        assert service.tickets[-1].job.request.options["control_image"] is None
        tab.close()
