"""Makes the parts of a server from its settings: models, processes, the app. The one place that knows all of them."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request

from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.http.app import make_app
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


def runner_options(settings: Settings) -> RunnerOptions:
    """How many jobs are claimed at a time: with other servers at the store, of a client two batches at most."""
    usual = RunnerOptions()
    if not isinstance(settings.state, DatabaseUrl):
        return usual
    of_client = min(usual.client_window, 2 * settings.max_batch * max(1, len(settings.devices)))
    return RunnerOptions(window=4 * of_client, client_window=of_client)


def app_of(fleet: Fleet, settings: Settings, metrics: Metrics, store: JobStore) -> App:
    """The app over the devices; it closes the store when it ends."""
    runner = Runner(fleet.for_accepted_work, store, options=runner_options(settings))

    def jobs(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        idempotency = Idempotency(settings.idempotency_seconds)
        return jobs_router(
            runner, reader=reader, sender=sender, idempotency=idempotency, stopping=lambda: fleet.stopping
        )

    def webui(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        pixels = settings.picture_pixels
        return webui_router(fleet, reader=reader, sender=sender, metrics=metrics, picture_pixels=pixels)

    def kserve(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        return kserve_router(fleet, fleet.repository, reader=reader, sender=sender, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.start()
        try:
            yield
        finally:
            await runner.stop(0)
            await store.close()

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
    faces = [jobs, webui, kserve]
    return App(make_app(fleet, config, metrics=metrics, faces=faces, lifespan=lifespan), [runner.stop])


def models_of(settings: Settings) -> Mapping[str, ServedModel]:
    """The models by name; raises `BundleError`."""
    limits = Limits(images=settings.max_images, steps=settings.max_steps, chunks=settings.max_chunks)
    return {spec.name: served_model(spec, limits=limits) for spec in settings.models}


def children_of(settings: Settings, *, verbose: bool = False) -> list[ChildConfig]:
    """What each device's process runs."""
    return [
        ChildConfig(
            settings.models,
            DispatcherOptions(
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
            ),
            log_format=settings.log_format,
            verbose=verbose,
        )
        for device, name in zip(settings.devices or (None,), _names(settings.devices or ("",)), strict=True)
    ]


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
