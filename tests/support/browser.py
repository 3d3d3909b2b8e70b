"""Debian's Chromium, and a page of a server in it. What the browser complains of fails the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 60_000  # milliseconds that anything may take on a busy machine
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page in a browser of its own, without history; `complaints` are those of its console."""

    def __init__(self, browser: Browser, address: str, *, expected: str = "", **context: Any) -> None:
        """`expected`: complaints that have this in them are no fault."""
        self.complaints: list[str] = []
        self._expected = expected
        self.page: Page = browser.new_context(viewport=context.pop("viewport", DESKTOP), **context).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.goto(f"{address}/")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self._expected and self._expected in text):
            self.complaints.append(text)

    def wait_until_usable(self) -> None:
        """Until the page knows the server's models."""
        self.page.wait_for_selector("#size", state="attached")

    def draw(self, prompt: str, **settings: object) -> None:
        """Draw and wait for the end. `settings`: by the ids of their fields."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/v1/jobs")):
            self.begin(prompt, **settings)  # until it is sent, the page shows the drawing before
        self.wait()

    def begin(self, prompt: str, **settings: object) -> None:
        """Begin to draw."""
        self.wait_until_usable()
        self.page.fill("#prompt", prompt)
        for name, value in settings.items():
            own = name in ("seed", "negative_prompt")
            self.page.fill(f"#{name}" if own else f"#option-{name}", str(value))
        self.page.click("#draw")

    def wait(self) -> None:
        """Until what is drawn is done."""
        self.page.wait_for_selector("#stage button.tile")
        self.page.wait_for_selector("#cancel", state="detached")

    @property
    def history(self) -> Locator:
        """The entries of the history, newest first."""
        return self.page.locator("#history li")

    def pictures(self) -> list[bytes]:
        """The files of the history, newest first, as the browser's database has them."""
        lists = self.page.evaluate(
            """async () => {
                const opened = indexedDB.open("latentrt", 1);
                await new Promise((resolve) => (opened.onsuccess = resolve));
                const all = opened.result.transaction("pictures").objectStore("pictures").getAll();
                await new Promise((resolve) => (all.onsuccess = resolve));
                opened.result.close();
                const bytes = async ({ blob }) => [...new Uint8Array(await blob.arrayBuffer())];
                return Promise.all(all.result.reverse().map(bytes));
            }"""
        )
        return [bytes(values) for values in lists]

    def close(self) -> None:
        """Close it; raises `AssertionError` where the browser has complained."""
        self.page.context.close()
        assert not self.complaints, self.complaints
