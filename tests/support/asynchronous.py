"""Asynchronous tests: run with a limit, and conditions that are waited for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


def run(test: Callable[[], Awaitable[None]], seconds: float = 30.0) -> None:
    """Run a test, for at most this long."""

    async def limited() -> None:
        await asyncio.wait_for(test(), seconds)

    asyncio.run(limited())


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true; the test's limit bounds it."""
    while not condition():
        await asyncio.sleep(0.002)
