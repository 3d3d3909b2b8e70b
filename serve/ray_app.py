"""latentrt as an application of Ray Serve: `serve run latentrt.serve.ray_app:build models=sd15=/models/sd15`.

Two deployments. "Ingress" has the HTTP app and no device. "Engine" has a device a replica, with the dispatcher inside:
requests are batched there at every UNet call, so that nothing is batched by Ray. docs/ray.md says more.
"""

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray import serve

from latentrt.serve.ray.engine import Engine
from latentrt.serve.ray.engines import Message
from latentrt.serve.ray.handle import RayEngines
from latentrt.serve.ray.ingress import ingress_app
from latentrt.serve.ray.metrics import EngineMetrics, IngressMetrics
from latentrt.serve.ray.settings import Application, application
from latentrt.serve.worker.worker import Watchers

from .logs import configure
from .messages import DispatcherOptions, Job
from .service import Load
from .wiring import dispatcher_options

ENGINE, INGRESS = "Engine", "Ingress"
_INGRESS_CPUS = 0.5
_SPARE = 100  # requests of an ingress that draw nothing, such as probes
_LAST_ANSWERS = 10.0  # seconds after the last picture, until a replica is killed
_BACKPRESSURE = {"status_code": 429, "retry_after_s": 5}
_LOGGING = {"enable_access_log": False}  # the app has one, and replicas are asked every second what they do
_STARTS = 3  # of a replica that may fail, until its deployment has


def build(arguments: dict[str, Any]) -> Any:
    """The application for `serve run` and `serve deploy`.

    Args:
        arguments: settings by name, as text or as YAML holds them; see docs/ray.md.

    Raises: InputError: a wrong value, an unknown name, or settings that do not go together.
    """
    return deployments(application(arguments, os.environ))


def deployments(app: Application, loader: str | None = None) -> Any:
    """The two deployments, bound. `loader`: as in `DispatcherOptions`, for tests."""
    return _ingress(app).bind(_engine(app).bind(app, loader))


def _engine(app: Application) -> Any:
    replicas: dict[str, Any] = {"num_replicas": max(1, app.ray.min_replicas)}
    if app.most_replicas != app.ray.min_replicas:
        replicas = {
            "autoscaling_config": {
                "min_replicas": app.ray.min_replicas,
                "max_replicas": app.most_replicas,
                "target_ongoing_requests": app.target,
            }
        }
    return serve.deployment(
        EngineReplica,
        name=ENGINE,
        ray_actor_options={"num_cpus": app.ray.cpus, "num_gpus": app.gpus},
        max_ongoing_requests=app.ongoing,
        max_queued_requests=app.ray.queued,
        backpressure_config=_BACKPRESSURE,
        graceful_shutdown_timeout_s=app.settings.drain_seconds + _LAST_ANSWERS,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=_LOGGING,
        health_check_period_s=5,
        max_constructor_retry_count=_STARTS,
        **replicas,
    )


def _ingress(app: Application) -> Any:
    def asgi() -> Any:
        handle = serve.get_deployment_handle(ENGINE, serve.get_replica_context().app_name)
        configure(app.settings.log_format, access=app.settings.access_log)
        return ingress_app(app, RayEngines(handle, multiplexed=app.multiplexed), IngressMetrics())

    return serve.deployment(
        serve.ingress(asgi)(),
        name=INGRESS,
        num_replicas=app.ray.ingress_replicas,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        max_ongoing_requests=app.most_replicas * app.ongoing + app.ray.queued + _SPARE,
        max_queued_requests=app.ray.queued,
        backpressure_config=_BACKPRESSURE,
        graceful_shutdown_timeout_s=app.settings.drain_seconds + 2 * _LAST_ANSWERS,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=_LOGGING,
        max_constructor_retry_count=_STARTS,
    )


class EngineReplica:
    """An `Engine` as Ray Serve calls it."""

    async def __init__(self, app: Application, loader: str | None) -> None:  # type: ignore[misc]
        """Loads the models; Ray sends no requests before. Raises `LatentRTError`."""
        settings, device = app.settings, app.device
        configure(settings.log_format)
        self._metrics = EngineMetrics()
        name = f"{device or 'auto'}@{serve.get_replica_context().replica_id.unique_id}"
        options: DispatcherOptions = dispatcher_options(settings, device, name)
        if loader is not None:
            options = replace(options, loader=loader)
        self._engine = Engine(settings.models, options, watchers=Watchers(called=self._metrics.observe_call))
        self._hold = serve.multiplexed(max_num_models_per_replica=settings.loaded)(_held) if app.multiplexed else None
        await self._engine.start()
        self._engine.end_with_device()
        if self._hold is not None:
            for model in settings.models[: settings.loaded]:
                await self._hold(model.name)

    async def draw(self, job: Job) -> AsyncIterator[Message]:
        """See `Engine`."""
        if self._hold is not None:  # so that the next job of this model comes here
            await self._hold(job.model)
        async with aclosing(self._engine.draw(job)) as messages:
            async for message in messages:
                yield message

    async def load(self) -> Load:
        """See `Engine`."""
        load = self._engine.load()
        self._metrics.observe_loads([load])
        return load

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica where this raises, or does not answer, three times."""
        self._engine.check()


async def _held(model: str) -> str:
    """Ray's list of a replica's models holds names; the models are on the dispatcher's shelf, which evicts them."""
    return model
