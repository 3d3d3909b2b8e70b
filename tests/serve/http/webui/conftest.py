"""The web UI's API over a service without devices; tests that need another one override `service`."""

from collections.abc import Iterator

import httpx
import pytest
from support.fake_service import FakeService
from support.webui import web_ui


@pytest.fixture
def service() -> FakeService:
    return FakeService(0.0)


@pytest.fixture
def client(service: FakeService) -> Iterator[httpx.Client]:
    with web_ui(service) as client:
        yield client
