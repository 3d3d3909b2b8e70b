"""The replicas of the engine behind a handle of Ray Serve. What Ray raises becomes what `Engines` says."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from latentrt.serve.messages import Job, RefusedError
from latentrt.serve.service import Load

from .engines import LostError, Message

_ANSWER_IN = 5.0  # seconds for replicas to say what they do
_RETRY = 5.0  # seconds, where Ray does not say it
_LOST = (RayActorError, ReplicaUnavailableError, WorkerCrashedError, NodeDiedError, ObjectLostError)


class RayDraw:
    """See `Draw`."""

    def __init__(self, response: "DeploymentResponseGenerator[Any]") -> None:
        self._response = response

    async def messages(self) -> AsyncIterator[Message]:
        """See `Draw`."""
        with _translated():
            async for message in self._response:
                yield cast(Message, message)

    def cancel(self) -> None:
        """See `Draw`."""
        self._response.cancel()


class RayEngines:
    """See `Engines`."""

    def __init__(self, handle: "DeploymentHandle[Any]", *, multiplexed: bool) -> None:
        """`multiplexed`: replicas hold different models, and a job goes where its own is, if it can."""
        self._handle, self._multiplexed = handle, multiplexed
        self._draws = handle.options(method_name="draw", stream=True)

    def draw(self, job: Job) -> RayDraw:
        """See `Engines`."""
        handle = self._draws.options(multiplexed_model_id=job.model) if self._multiplexed else self._draws
        return RayDraw(handle.remote(job))

    async def loads(self) -> list[Load]:
        """See `Engines`."""
        with _translated():
            answers = self._handle.broadcast("load")
            results = await answers.results_async(timeout_s=_ANSWER_IN, return_exceptions=True)
        return [result for result in results if isinstance(result, Load)]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        text = f"the server is busy: {error.message}"
        raise RefusedError("busy", text, error.retry_after_s or _RETRY) from error
    except DeploymentUnavailableError as error:
        raise RefusedError("starting", "no replica can be started: the log of Ray Serve says why", _RETRY) from error
    except GetTimeoutError as error:
        raise TimeoutError from error
    except (*_LOST, TaskCancelledError) as error:
        raise LostError(type(error).__name__) from error
