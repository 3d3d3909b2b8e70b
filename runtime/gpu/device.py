"""NVIDIA GPUs of this machine: memory, streams and captured graphs. The only file that calls cuda-python.

Everything here is one CUDA call behind a name and an error; what is done with it is decided elsewhere.
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
    """All GPUs that CUDA shows to this process; empty without a driver. Raises `BackendError` without cuda-python."""
    cuda = _cuda()
    status, count = cuda.cudaGetDeviceCount()
    # No driver, one that is too old, or no GPU: nothing that works either way.
    return () if status != cuda.cudaError_t.cudaSuccess else tuple(_device(cuda, index) for index in range(count))


def device_at(index: int, wanted_by: str) -> Device:
    """One of the visible GPUs; raises `BackendError` that says who wanted it where there is none."""
    devices = visible_devices()
    if index < len(devices):
        return devices[index]
    there = f"cuda:{index} is not among the {len(devices)} here" if devices else "CUDA shows none here"
    raise BackendError(f"{wanted_by} needs an NVIDIA GPU, and {there}")


def _device(cuda: Any, index: int) -> Device:
    facts = _checked(cuda.cudaGetDeviceProperties(index))
    name = bytes(facts.name).split(b"\0")[0].decode()
    return Device(index, name, f"{facts.major}.{facts.minor}", int(facts.totalGlobalMem))


class DeviceMemory:
    """A block on a GPU, aligned to 256 bytes, of unknown content. Allocating and freeing wait for the whole GPU."""

    def __init__(self, size: int) -> None:
        cuda = _cuda()
        status, address = cuda.cudaMalloc(max(size, 1))
        if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
            cuda.cudaGetLastError()  # the error is answered here, and must not come back from a later call
            free, total = _checked(cuda.cudaMemGetInfo())
            raise BackendError(
                f"{size / 2**20:,.0f} MiB wanted, but {free / 2**20:,.0f} of the GPU's {total / 2**20:,.0f} MiB are "
                "free: draw fewer or smaller pictures at once, or close other pipelines and programs"
            )
        self.address, self.size = int(_checked((status, address))), size

    def close(self) -> None:
        """Give the memory back; twice does no harm."""
        if self.address:
            _checked(_cuda().cudaFree(self.address))
            self.address = 0


class PinnedMemory:
    """Host memory that a GPU copies from and to while the host goes on. `bytes` is (size,) uint8."""

    def __init__(self, size: int) -> None:
        cuda = _cuda()
        self.address = int(_checked(cuda.cudaHostAlloc(max(size, 1), cuda.cudaHostAllocDefault)))
        buffer = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: Bytes = np.ctypeslib.as_array(buffer)

    def close(self) -> None:
        """Give the memory back; arrays that look at it must be gone."""
        if self.address:
            self.bytes = self.bytes[:0]
            _checked(_cuda().cudaFreeHost(self.address))
            self.address = 0


class Stream:
    """Work that a GPU does one after the other, while the host goes on. Not for several threads at once."""

    def __init__(self, device_index: int) -> None:
        cuda = _cuda()
        self._device_index = device_index
        self.make_current()
        self._stream: Any = _checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def make_current(self) -> None:
        """Say that this thread means this stream's GPU; CUDA keeps that for each thread."""
        _checked(_cuda().cudaSetDevice(self._device_index))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes from one address of the GPU to another."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def upload(self, target: int, source: Bytes) -> None:
        """Copy pinned bytes to the GPU; they must stay as they are until the stream was waited for."""
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def download(self, target: Bytes, source: int) -> None:
        """Copy to pinned bytes; they are there once the stream was waited for."""
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        cuda = _cuda()
        _checked(cuda.cudaMemcpyAsync(target, source, size, getattr(cuda.cudaMemcpyKind, kind), self._stream))

    def zero(self, memory: DeviceMemory) -> None:
        """Fill a block with zeros."""
        _checked(_cuda().cudaMemsetAsync(memory.address, 0, memory.size, self._stream))

    def synchronize(self) -> None:
        """Wait until all is done."""
        _checked(_cuda().cudaStreamSynchronize(self._stream))

    @contextmanager
    def _capturing(self) -> Iterator[list[Any]]:
        cuda = _cuda()
        # Thread-local: other threads may allocate and wait meanwhile.
        _checked(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        captured: list[Any] = []
        try:
            yield captured
        except BaseException:
            _, broken = cuda.cudaStreamEndCapture(self._stream)  # else the stream stays unusable
            if broken is not None and int(broken):
                cuda.cudaGraphDestroy(broken)
            raise
        captured.append(_checked(cuda.cudaStreamEndCapture(self._stream)))

    def capture(self, work: Callable[[], object]) -> "CapturedGraph":
        """What `work` puts on this stream, recorded with its addresses instead of done."""
        with self._capturing() as captured:
            work()
        return CapturedGraph(captured[0])

    def launch(self, graph: "CapturedGraph") -> None:
        """Do what was captured."""
        _checked(_cuda().cudaGraphLaunch(graph.executable, self._stream))

    def close(self) -> None:
        """Wait, and give the stream back."""
        if self.handle:
            self.make_current()
            self.synchronize()
            _checked(_cuda().cudaStreamDestroy(self._stream))
            self.handle = 0


class CapturedGraph:
    """Work of a stream, recorded: one call does all of it."""

    def __init__(self, graph: Any) -> None:
        cuda = _cuda()
        try:
            self.executable: Any = _checked(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    def close(self) -> None:
        """Give it back; no stream may be at it."""
        if self.executable is not None:
            _checked(_cuda().cudaGraphExecDestroy(self.executable))
            self.executable = None


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
            f"cuda-bindings cannot be imported ({error}): pip install 'latentrt[cuda]', "
            "'latentrt[tensorrt-rtx]' or 'latentrt[tensorrt-cu13]'"
        ) from error
    return runtime
