"""Runners with a fake service, and how their tests wait."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.runner import Runner, RunnerOptions
from latentrt.serve.jobs.store import JobStore, KeptJob
from latentrt.serve.messages import Job

from .fakes import FakeService, job_for, shapes_model

MODEL = shapes_model()
QUICK = RunnerOptions(poll=0.05, longest_pause=0.05)


def checked(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test, for at most a minute."""

    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


@asynccontextmanager
async def running(
    service: FakeService, store: JobStore | None = None, options: RunnerOptions = QUICK, patience: float = 5.0
) -> Any:
    """A runner that is started, and stopped at the end, where it waits so many seconds for what is under way."""
    kept = store or store_in_memory()
    runner = Runner(service, kept, options=options)
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop(patience)
        await kept.close()


async def ended(runner: Runner, *names: str) -> list[KeptJob]:
    """The jobs, once they have ended."""
    while True:
        kept = [await runner.store.get(name) for name in names]
        if all(job is not None and job.has_ended for job in kept):
            return [job for job in kept if job is not None]
        await asyncio.sleep(0.005)


def make(name: str, prompt: str | None = None, **values: Any) -> Job:
    return job_for(MODEL, name, prompt=prompt or name, **values)
