"""Thin wrappers of CUDA calls: devices, memory, streams, captured graphs. The only file that calls cuda-python.

Every failed call raises `BackendError`. Knows nothing about engines or the loop.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import BackendError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name, compute capability such as "8.9", and memory in bytes."""

    index: int
    name: str
    compute_capability: str
    memory: int


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed; needs no cuda-python."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def visible_devices() -> tuple[Device, ...]:
    """All GPUs visible to this process; empty without a driver. Raises `BackendError` without cuda-python."""
    cuda = _cuda()
    status, count = cuda.cudaGetDeviceCount()
    # No driver, a driver that is too old, or no GPU.
    return () if status != cuda.cudaError_t.cudaSuccess else tuple(_device(cuda, index) for index in range(count))


def device_at(index: int, wanted_by: str) -> Device:
    """The GPU with this index. Raises `BackendError`, naming `wanted_by`, if there is none."""
    devices = visible_devices()
    if index < len(devices):
        return devices[index]
    there = f"cuda:{index} does not exist (found {len(devices)})" if devices else "CUDA finds none"
    raise BackendError(f"{wanted_by} needs an NVIDIA GPU, but {there}")


def _device(cuda: Any, index: int) -> Device:
    facts = _checked(cuda.cudaGetDeviceProperties(index))
    name = bytes(facts.name).split(b"\0")[0].decode()
    return Device(index, name, f"{facts.major}.{facts.minor}", int(facts.totalGlobalMem))


class DeviceMemory:
    """A block of device memory, 256-byte aligned, uninitialised. Allocating and freeing synchronise the device."""

    def __init__(self, size: int) -> None:
        cuda = _cuda()
        status, address = cuda.cudaMalloc(max(size, 1))
        if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
            cuda.cudaGetLastError()  # clear the error, or a later call would return it
            free, total = _checked(cuda.cudaMemGetInfo())
            raise BackendError(
                f"cannot allocate {size / 2**20:,.0f} MiB: {free / 2**20:,.0f} of the GPU's {total / 2**20:,.0f} MiB "
                "are free. Draw fewer or smaller images at once, or close other pipelines and programs"
            )
        self.address, self.size = int(_checked((status, address))), size

    def close(self) -> None:
        """Free the memory. May be called twice."""
        if self.address:
            _checked(_cuda().cudaFree(self.address))
            self.address = 0


class PinnedMemory:
    """Pinned host memory for asynchronous copies. `bytes` is (size,) uint8."""

    def __init__(self, size: int) -> None:
        cuda = _cuda()
        self.address = int(_checked(cuda.cudaHostAlloc(max(size, 1), cuda.cudaHostAllocDefault)))
        buffer = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: Bytes = np.ctypeslib.as_array(buffer)

    def close(self) -> None:
        """Free the memory; no array may view it any more."""
        if self.address:
            self.bytes = self.bytes[:0]
            _checked(_cuda().cudaFreeHost(self.address))
            self.address = 0


class Stream:
    """A CUDA stream. Not thread-safe."""

    def __init__(self, device_index: int) -> None:
        cuda = _cuda()
        self._device_index = device_index
        self.make_current()
        self._stream: Any = _checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def make_current(self) -> None:
        """Make this stream's GPU the current device of this thread."""
        _checked(_cuda().cudaSetDevice(self._device_index))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes between device addresses, asynchronously."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def upload(self, target: int, source: Bytes) -> None:
        """Copy pinned bytes to the GPU, asynchronously; do not change them until the stream is synchronised."""
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def download(self, target: Bytes, source: int) -> None:
        """Copy to pinned bytes, asynchronously; they are valid once the stream is synchronised."""
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        cuda = _cuda()
        _checked(cuda.cudaMemcpyAsync(target, source, size, getattr(cuda.cudaMemcpyKind, kind), self._stream))

    def zero(self, memory: DeviceMemory) -> None:
        """Fill a block with zeros, asynchronously."""
        _checked(_cuda().cudaMemsetAsync(memory.address, 0, memory.size, self._stream))

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        _checked(_cuda().cudaStreamSynchronize(self._stream))

    @contextmanager
    def _capturing(self) -> Iterator[list[Any]]:
        cuda = _cuda()
        # Thread-local mode: other threads may allocate and synchronise during the capture.
        _checked(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        captured: list[Any] = []
        try:
            yield captured
        except BaseException:
            _, broken = cuda.cudaStreamEndCapture(self._stream)  # otherwise the stream stays unusable
            if broken is not None and int(broken):
                cuda.cudaGraphDestroy(broken)
            raise
        captured.append(_checked(cuda.cudaStreamEndCapture(self._stream)))

    def capture(self, work: Callable[[], object]) -> "CapturedGraph":
        """Capture the work that `work` enqueues on this stream, with its addresses, instead of running it."""
        with self._capturing() as captured:
            work()
        return CapturedGraph(captured[0])

    def launch(self, graph: "CapturedGraph") -> None:
        """Launch a captured graph."""
        _checked(_cuda().cudaGraphLaunch(graph.executable, self._stream))

    def close(self) -> None:
        """Synchronise and destroy the stream."""
        if self.handle:
            self.make_current()
            self.synchronize()
            _checked(_cuda().cudaStreamDestroy(self._stream))
            self.handle = 0


class CapturedGraph:
    """An instantiated CUDA graph, run by `Stream.launch`."""

    def __init__(self, graph: Any) -> None:
        cuda = _cuda()
        try:
            self.executable: Any = _checked(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    def close(self) -> None:
        """Destroy the graph; it must not be running."""
        if self.executable is not None:
            _checked(_cuda().cudaGraphExecDestroy(self.executable))
            self.executable = None


def _checked(answer: tuple[Any, ...]) -> Any:
    """The result of a CUDA call; raises `BackendError` with the name and text of the error if it failed."""
    status, *values = answer
    cuda = _cuda()
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise BackendError(f"CUDA error {status.name}: {text.decode()}")
    return values[0] if len(values) == 1 else None if not values else tuple(values)


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings cannot be imported ({error}): pip install 'latentrt[cuda]', "
            "'latentrt[tensorrt-rtx]' or 'latentrt[tensorrt-cu13]'"
        ) from error
    return runtime
