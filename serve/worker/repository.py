"""Which models the operator has loaded and unloaded, on all devices of a server. Knows nothing of jobs."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from latentrt.serve.messages import model_unloaded
from latentrt.serve.service import ModelState

from .worker import Worker

logger = logging.getLogger(__name__)


class ModelRepository:
    """See `Repository`. All models are loaded at first."""

    def __init__(self, models: Iterable[str], workers: Sequence[Worker]) -> None:
        self._states: dict[str, ModelState] = dict.fromkeys(models, "loaded")
        self._changes: dict[str, asyncio.Task[None]] = {}  # the last one of each model
        self._workers = workers

    def state(self, model: str) -> ModelState:
        """See `Repository`."""
        return self._states[model]

    def require(self, model: str) -> None:
        """Raise `RefusedError` where the operator has unloaded a model."""
        if self._states.get(model, "loaded") != "loaded":
            raise model_unloaded(model)

    async def load(self, model: str) -> None:
        """See `Repository`."""
        if self._states[model] in ("unloading", "unloaded"):
            self._begin(model, "loading")
        if self._states[model] == "loading":
            await self._settled(model)

    def unload(self, model: str) -> None:
        """See `Repository`."""
        if self._states[model] in ("loading", "loaded"):
            self._begin(model, "unloading")

    async def _settled(self, model: str) -> None:
        change = self._changes[model]
        try:
            await asyncio.shield(change)
        except asyncio.CancelledError:
            if change.cancelled():  # by another call, which unloads it again
                raise model_unloaded(model) from None
            raise

    def _begin(self, model: str, state: ModelState) -> None:
        """Change a model in a task of its own, as clients that ask for it may leave."""
        if (before := self._changes.get(model)) is not None:
            before.cancel()
        self._states[model] = state
        work = self._load(model) if state == "loading" else self._unload(model)
        self._changes[model] = task = asyncio.create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to who waits, if anyone

    async def _load(self, model: str) -> None:
        failures = await self._on_all(model, loaded=True)
        if failures:
            logger.error("the model %s stays unloaded: %s", model, failures[0])
            await self._unload(model)
            raise failures[0]
        self._states[model] = "loaded"
        logger.info("the model %s is loaded", model)

    async def _unload(self, model: str) -> None:
        # A device that fails at this ends its process, and comes up without the model.
        await self._on_all(model, loaded=False)
        self._states[model] = "unloaded"
        logger.info("the model %s is unloaded", model)

    async def _on_all(self, model: str, *, loaded: bool) -> list[BaseException]:
        workers = [worker for worker in self._workers if model in worker.models]
        results = await asyncio.gather(
            *(worker.set_loaded(model, loaded) for worker in workers), return_exceptions=True
        )
        return [result for result in results if result is not None]
