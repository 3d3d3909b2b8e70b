"""What Triton's Python backend gives to a model: its module, and requests that collect their responses.

Made after https://github.com/triton-inference-server/python_backend; a real server is tested, too.
"""

import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

FINAL = 1


class TritonModelException(Exception):  # noqa: N818
    """What a model raises."""


@dataclass(frozen=True)
class TritonError:
    text: str
    code: int

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)


@dataclass(frozen=True)
class Tensor:
    _name: str
    array: NDArray[Any]

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class InferenceResponse:
    output_tensors: Collection[Tensor] = ()
    error: TritonError | None = None


def module() -> ModuleType:
    """`triton_python_backend_utils`."""
    result = ModuleType("triton_python_backend_utils")
    for one in (TritonModelException, TritonError, Tensor, InferenceResponse):
        setattr(result, one.__name__, one)
    result.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    return result


@dataclass(eq=False)
class Request:
    """A request, which is its own response sender. `responses`: what was sent, each as arrays by name."""

    given: Mapping[str, NDArray[Any]]
    wanted: Collection[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    microseconds: int = 0
    cancelled: bool = False
    responses: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    error: TritonError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.given.items()]

    def requested_output_names(self) -> Collection[str]:
        return self.wanted

    def parameters(self) -> str:
        return json.dumps(self.options)

    def timeout(self) -> int:
        return self.microseconds

    def get_response_sender(self) -> "Request":
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.ended.is_set(), "a response after the final one"
        if response.error is not None:
            self.error = response.error
        else:
            self.responses.append({one.name(): one.as_numpy() for one in response.output_tensors})
        if flags == FINAL:
            self.ended.set()

    def wait(self, seconds: float = 60.0) -> "Request":
        """Until the final response."""
        assert self.ended.wait(seconds)
        return self


def request(*wanted: str, parameters: Mapping[str, Any] | None = None, timeout: int = 0, **inputs: Any) -> Request:
    """A request; inputs are single values or lists."""
    arrays = {
        name: _array(value if isinstance(value, list | np.ndarray) else [value]) for name, value in inputs.items()
    }
    return Request(arrays, frozenset(wanted), parameters or {}, timeout)


def _array(given: Any) -> NDArray[Any]:
    values = given if isinstance(given, list | np.ndarray) else [given]
    if isinstance(values, list) and isinstance(values[0], str | bytes):
        return np.array([v.encode() if isinstance(v, str) else v for v in values], object)
    return np.asarray(values)
