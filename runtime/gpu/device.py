"""Thin wrappers of CUDA calls: devices, memory, streams, captured graphs. The only file that calls cuda-python.

Every failed call raises `BackendError`. Knows nothing about engines or the loop.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import BackendError, OutOfMemoryError

from .recording import no_recording

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


def use_device(index: int) -> None:
    """Make a GPU the current one of this thread."""
    _checked(_cuda().cudaSetDevice(index))


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread, and afterwards the one that it was before."""
    cuda = _cuda()
    before = _checked(cuda.cudaGetDevice())
    if before == index:
        yield
        return
    _checked(cuda.cudaSetDevice(index))
    try:
        yield
    finally:
        _checked(cuda.cudaSetDevice(before))


class DeviceMemory:
    """A block of device memory, 256-byte aligned, uninitialised. Allocating and freeing synchronise the device."""

    def __init__(self, size: int) -> None:
        """Raises `OutOfMemoryError`."""
        cuda = _cuda()
        with no_recording():
            status, address = cuda.cudaMalloc(max(size, 1))
        if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
            cuda.cudaGetLastError()  # clear the error, or a later call would return it
            free, total = _checked(cuda.cudaMemGetInfo())
            raise OutOfMemoryError(
                f"cannot allocate {size / 2**20:,.0f} MiB: {free / 2**20:,.0f} of the GPU's {total / 2**20:,.0f} MiB "
                "are free. Draw fewer or smaller images at once, or close other pipelines and programs"
            )
        self.address, self.size = int(_checked((status, address))), size

    def close(self) -> None:
        """Free the memory. May be called twice."""
        address, self.address = self.address, 0
        if address:
            with no_recording():
                _checked(_cuda().cudaFree(address))


class PinnedMemory:
    """Pinned host memory for asynchronous copies. `bytes` is (size,) uint8."""

    def __init__(self, size: int) -> None:
        cuda = _cuda()
        with no_recording():
            self.address = int(_checked(cuda.cudaHostAlloc(max(size, 1), cuda.cudaHostAllocDefault)))
        buffer = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: Bytes = np.ctypeslib.as_array(buffer)

    def close(self) -> None:
        """Free the memory; no array may view it any more."""
        address, self.address = self.address, 0
        if address:
            self.bytes = self.bytes[:0]
            with no_recording():
                _checked(_cuda().cudaFreeHost(address))


class Event:
    """A point in the work of a stream. `record` moves it to the end of the work that is queued now."""

    _FLAGS = "cudaEventDisableTiming"

    def __init__(self) -> None:
        cuda = _cuda()
        self._event: Any = _checked(cuda.cudaEventCreateWithFlags(getattr(cuda, self._FLAGS)))

    def record(self, stream: "Stream") -> None:
        """Queue the event."""
        _checked(_cuda().cudaEventRecord(self._event, stream.queue))

    def synchronize(self) -> None:
        """Wait for the event, and for nothing behind it."""
        with no_recording():
            _checked(_cuda().cudaEventSynchronize(self._event))

    def done(self) -> bool:
        """Whether the event has been reached."""
        cuda = _cuda()
        with no_recording():
            (status,) = cuda.cudaEventQuery(self._event)
        if status == cuda.cudaError_t.cudaErrorNotReady:
            return False
        _checked((status,))
        return True

    def close(self) -> None:
        """Destroy the event. May be called twice."""
        event, self._event = self._event, None
        if event is not None:
            _checked(_cuda().cudaEventDestroy(event))


class TimedEvent(Event):
    """An event that notes when it is reached, which takes the GPU a little longer."""

    _FLAGS = "cudaEventDefault"

    def milliseconds_since(self, earlier: "TimedEvent") -> float:
        """The time from another event to this one; both must have been reached."""
        return float(_checked(_cuda().cudaEventElapsedTime(earlier._event, self._event)))


class Stream:
    """A CUDA stream of the current GPU. Not thread-safe."""

    def __init__(self) -> None:
        cuda = _cuda()
        self.queue: Any = _checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self.queue)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes between device addresses, asynchronously."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def upload(self, target: int, source: Bytes) -> None:
        """Copy pinned bytes to the GPU, asynchronously; do not change them until it is done."""
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def download(self, target: Bytes, source: int) -> None:
        """Copy to pinned bytes, asynchronously; they are valid once it is done."""
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        cuda = _cuda()
        _checked(cuda.cudaMemcpyAsync(target, source, size, getattr(cuda.cudaMemcpyKind, kind), self.queue))

    def zero(self, memory: DeviceMemory) -> None:
        """Fill a block with zeros, asynchronously."""
        _checked(_cuda().cudaMemsetAsync(memory.address, 0, memory.size, self.queue))

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        with no_recording():
            _checked(_cuda().cudaStreamSynchronize(self.queue))

    def capture(self, work: Callable[[], object]) -> "CapturedGraph":
        """Capture the work that `work` enqueues on this stream, with its addresses, instead of running it."""
        with _without_garbage_collection():
            return CapturedGraph(self._captured(work))

    def _captured(self, work: Callable[[], object]) -> Any:
        cuda = _cuda()
        # Thread-local mode: other threads may allocate and synchronise during the capture.
        _checked(cuda.cudaStreamBeginCapture(self.queue, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        except BaseException:
            _, broken = cuda.cudaStreamEndCapture(self.queue)  # otherwise the stream stays unusable
            if broken is not None and int(broken):
                cuda.cudaGraphDestroy(broken)
            raise
        return _checked(cuda.cudaStreamEndCapture(self.queue))

    def launch(self, graph: "CapturedGraph") -> None:
        """Launch a captured graph."""
        _checked(_cuda().cudaGraphLaunch(graph.executable, self.queue))

    def close(self) -> None:
        """Synchronise and destroy the stream."""
        if self.handle:
            self.handle = 0
            try:
                self.synchronize()
            finally:
                _cuda().cudaStreamDestroy(self.queue)


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


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """An object of a GPU library that is freed during a capture, in its thread, breaks the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
