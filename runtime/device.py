"""NVIDIA GPUs of this machine. The only file that calls cuda-python."""

from dataclasses import dataclass
from typing import Any

from .errors import BackendError


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name, compute capability such as "8.9", and memory in bytes."""

    index: int
    name: str
    compute_capability: str
    memory: int


def visible_devices() -> tuple[Device, ...]:
    """All GPUs that CUDA shows to this process; empty without a driver. Raises `BackendError` without cuda-python."""
    cuda = _cuda()
    status, count = cuda.cudaGetDeviceCount()
    # No driver, one that is too old, or no GPU: nothing that works either way.
    return () if status != cuda.cudaError_t.cudaSuccess else tuple(_device(cuda, index) for index in range(count))


def _device(cuda: Any, index: int) -> Device:
    facts = _checked(cuda.cudaGetDeviceProperties(index))
    name = bytes(facts.name).split(b"\0")[0].decode()
    return Device(index, name, f"{facts.major}.{facts.minor}", int(facts.totalGlobalMem))


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call; `BackendError` with its error's name and text where it failed."""
    status, *values = answer
    cuda = _cuda()
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise BackendError(f"CUDA failed with {status.name}: {text.decode()}")
    return values[0] if len(values) == 1 else None if not values else tuple(values)


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings cannot be imported ({error}): pip install 'latentrt[tensorrt-rtx]' or "
            "'latentrt[tensorrt-cu13]'"
        ) from error
    return runtime
