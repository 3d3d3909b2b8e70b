"""The app of an ingress: the same one that `latentrt serve` has, over a `HandleService`. Knows no Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress

from fastapi import APIRouter, FastAPI, Request

from latentrt.serve.http.app import Face
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.keys import Key
from latentrt.serve.http.no_jobs import no_jobs_router
from latentrt.serve.jobs.runner import Runner
from latentrt.serve.metrics import Metrics
from latentrt.serve.service import ModelState
from latentrt.serve.wiring import http_app, jobs_face, models_of, runner_options, running, store_of

from .engines import Engines
from .handle_service import HandleService, ServiceLimits
from .settings import Application

NO_JOBS = (
    "native jobs outlive the replicas of Ray Serve: the operator has to say state=postgresql://… and state_files; "
    "/v1/images works without"
)


def ingress_app(application: Application, engines: Engines, metrics: Metrics) -> FastAPI:
    """The app; raises `BundleError` where a bundle is not there, and `StateError` where PostgreSQL is not."""
    settings = application.settings
    limits = ServiceLimits(
        client_jobs=settings.client_jobs,
        waiting=application.ray.queued,
        patience=max(1.0, settings.max_wait),
        to_zero=application.ray.min_replicas == 0,
    )
    service = HandleService(models_of(settings), engines, limits, happened=metrics.observe_event)

    jobs: Face = _no_jobs
    runner: Runner | None = None
    if application.keeps_jobs:
        options = runner_options(settings, application.most_replicas)
        runner = Runner(service, store_of(settings), options=options)
        jobs = jobs_face(runner, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch())
        try:
            async with running(runner, app) if runner is not None else nullcontext():
                yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    return http_app(service, settings, metrics, repository=FixedModels(), jobs=jobs, lifespan=lifespan)


def _no_jobs(sender: Callable[[Request], Key], _: CallReader) -> APIRouter:
    return no_jobs_router(NO_JOBS, sender)


class FixedModels:
    """See `Repository`: models are those of the configuration, for replicas that start later have these."""

    def state(self, _: str) -> ModelState:
        """See `Repository`."""
        return "loaded"

    async def load(self, _: str) -> None:
        """Raises `ApiError` 501."""
        raise _fixed()

    def unload(self, _: str) -> None:
        """Raises `ApiError` 501."""
        raise _fixed()


def _fixed() -> ApiError:
    text = "the models of Ray Serve are those of its configuration: change them there, and deploy it"
    return ApiError(501, text, "models_are_fixed", retry=False)
