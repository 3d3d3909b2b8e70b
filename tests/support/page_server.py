"""A server with the page and native jobs over the fake service."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import APIRouter, FastAPI, Request
from starlette.types import Receive, Scope, Send
from support.fake_service import FakeService, served

from latentrt.serve.http.app import make_app
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.jobs import jobs_router
from latentrt.serve.http.keys import Key
from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner


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

    app = make_app(service, config, faces=[jobs], lifespan=lifespan)

    async def stripped(scope: Scope, receive: Receive, send: Send) -> None:
        """As a proxy does it."""
        if config is not None and config.root_path and scope["type"] == "http":
            assert scope["path"].startswith(f"{config.root_path}/")
            path = scope["path"].removeprefix(config.root_path)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    with served(stripped) as address:
        yield address
