"""Makes the parts of a server from its settings: models, processes, the app. The one place that knows all of them."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.http.app import Face, make_app
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.idempotency import Idempotency
from latentrt.serve.http.jobs import jobs_router
from latentrt.serve.http.keys import Key
from latentrt.serve.http.kserve.routes import kserve_router
from latentrt.serve.http.webui.router import webui_router
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.store import JobStore
from latentrt.serve.worker.fleet import Fleet
from latentrt.serve.worker.process import Timing, WorkerProcess
from latentrt.serve.worker.wire import ChildConfig
from latentrt.serve.worker.worker import Watchers

from .messages import DispatcherOptions
from .metrics import Metrics
from .served_model import Limits, ServedModel
from .server import App
from .service import Repository, Service
from .settings import DatabaseUrl, Settings
from .stores import open_store


def store_of(settings: Settings) -> JobStore:
    """Where native jobs are kept; raises `StateError`, or `BackendError` where a package is missing."""
    state = settings.state.secret if isinstance(settings.state, DatabaseUrl) else settings.state
    return open_store(
        state,
        settings.state_files,
        result_bytes=settings.state_bytes,
        result_ttl=settings.result_ttl,
        lease=settings.state_lease,
    )


def runner_options(settings: Settings, devices: int) -> RunnerOptions:
    """How many jobs are claimed at a time: with other servers at the store, of a client two batches at most."""
    usual = RunnerOptions()
    if not isinstance(settings.state, DatabaseUrl):
        return usual
    of_client = min(usual.client_window, 2 * settings.max_batch * devices)
    return RunnerOptions(window=4 * of_client, client_window=of_client)


def app_of(fleet: Fleet, settings: Settings, metrics: Metrics, store: JobStore) -> App:
    """The app over the devices of this machine; it closes the store when it ends."""
    runner = Runner(fleet.for_accepted_work, store, options=runner_options(settings, max(1, len(settings.devices))))
    jobs = jobs_face(runner, settings, stopping=lambda: fleet.stopping)
    lifespan = partial(running, runner)
    app = http_app(fleet, settings, metrics, repository=fleet.repository, jobs=jobs, lifespan=lifespan)
    return App(app, [runner.stop])


def jobs_face(runner: Runner, settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> Face:
    """The routes of native jobs."""

    def jobs(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        idempotency = Idempotency(settings.idempotency_seconds)
        return jobs_router(runner, reader=reader, sender=sender, idempotency=idempotency, stopping=stopping)

    return jobs


@asynccontextmanager
async def running(runner: Runner, _: FastAPI) -> AsyncIterator[None]:
    """Jobs are drawn inside; then their store is closed."""
    runner.start()
    try:
        yield
    finally:
        await runner.stop(0)
        await runner.store.close()


def http_app(
    service: Service, settings: Settings, metrics: Metrics, *, repository: Repository, jobs: Face, lifespan: Any
) -> FastAPI:
    """The app over a service, with all faces. `lifespan`: as FastAPI's."""

    def webui(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        pixels = settings.picture_pixels
        return webui_router(service, reader=reader, sender=sender, metrics=metrics, picture_pixels=pixels)

    def kserve(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        return kserve_router(service, repository, reader=reader, sender=sender, metrics=metrics)

    config = HttpConfig(
        keys=settings.keys,
        body_bytes=settings.body_bytes,
        bodies_bytes=settings.bodies_bytes,
        body_seconds=settings.request_timeout,
        prompt_bytes=settings.prompt_bytes,
        picture_pixels=settings.picture_pixels,
        root_path=settings.root_path,
        cors=settings.cors,
        aliases=settings.alias,
        log_prompts=settings.log_prompts,
        idempotency_seconds=settings.idempotency_seconds,
    )
    return make_app(service, config, metrics=metrics, faces=[jobs, webui, kserve], lifespan=lifespan)


def models_of(settings: Settings) -> Mapping[str, ServedModel]:
    """The models by name; raises `BundleError`."""
    limits = Limits(images=settings.max_images, steps=settings.max_steps, chunks=settings.max_chunks)
    return {spec.name: served_model(spec, limits=limits) for spec in settings.models}


def children_of(settings: Settings, *, verbose: bool = False) -> list[ChildConfig]:
    """What each device's process runs."""
    devices = settings.devices or (None,)
    return [
        ChildConfig(
            settings.models,
            dispatcher_options(settings, device, name),
            log_format=settings.log_format,
            verbose=verbose,
        )
        for device, name in zip(devices, _names(settings.devices or ("",)), strict=True)
    ]


def dispatcher_options(settings: Settings, device: str | None, name: str) -> DispatcherOptions:
    """How the dispatcher of a device works; `name`: of the device in logs and metrics."""
    return DispatcherOptions(
        device=device,
        name=name,
        max_wait=settings.max_wait,
        max_queue=settings.max_queue,
        max_batch=settings.max_batch,
        batch=settings.batch,
        call_limit=settings.call_limit,
        client_jobs=settings.client_jobs,
        loaded=settings.loaded,
        lazy=settings.lazy,
        deterministic=settings.deterministic,
        filter=settings.filter,
    )


def _names(devices: Sequence[str]) -> list[str]:
    """Devices by different names: the second cpu is cpu#2."""
    counts = [devices[:at].count(device) for at, device in enumerate(devices)]
    return [f"{device}#{before + 1}" if before else device for device, before in zip(devices, counts, strict=True)]


def fleet_of(
    models: Mapping[str, ServedModel],
    children: Sequence[ChildConfig],
    settings: Settings,
    metrics: Metrics,
    timing: Timing | None = None,
) -> Fleet:
    """The devices, which are not started. `timing`: when their processes are started anew."""
    watchers = Watchers(metrics.observe_call, lambda device: metrics.restarts.labels(device).inc())
    workers = [WorkerProcess(child, timing, watchers) for child in children]
    return Fleet(models, workers, client_jobs=settings.client_jobs, happened=metrics.observe_event)
