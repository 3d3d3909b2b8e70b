"""The part of `cuda.bindings.runtime` that latentrt calls, in host memory.

The simulated GPU is stricter than a real one: work runs as late as possible, so reading too early gives garbage; memory
is filled with garbage when allocated and when freed; and misuse that a real GPU would ignore or crash on (freed memory,
two streams using one block, pinned memory changed during a copy) raises a `Fault`.
"""

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from numpy.typing import NDArray

ALIGNMENT = 256
GARBAGE = 0xFF  # NaN in every floating type
OK = real.cudaError_t.cudaSuccess
KINDS = real.cudaMemcpyKind


class Fault(AssertionError):
    """Misuse that a real GPU would ignore or crash on."""


Range = tuple[int, int]  # address, size


@dataclass(eq=False)
class Block:
    """Device memory or pinned host memory."""

    address: int
    bytes: NDArray[np.uint8]
    pinned: bool
    keep: Any = None


@dataclass(eq=False)
class Work:
    """Work on a stream: what it reads and writes, and the function that does it."""

    name: str
    reads: Sequence[Range]
    writes: Sequence[Range]
    do: Callable[[], None]
    check: Callable[[], None] = lambda: None  # again at each replay of a graph
    owner: object = None


@dataclass(eq=False)
class StreamState:
    device: int
    pending: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    broken: bool = False


class Cuda:
    """One machine. Its methods have the names and results of `cuda.bindings.runtime`."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaHostAllocDefault = real.cudaHostAllocDefault

    def __init__(self, *, devices: int = 1, capability: str = "8.9", memory: int = 8 << 30) -> None:
        self.name, self.memory, self._devices = "Simulated GPU", memory, devices
        self._capability = tuple(map(int, capability.split(".")))
        self._lock = threading.RLock()
        self._addresses = itertools.count(0x7000_0000_0000, 1 << 32)
        self._handles = itertools.count(1)
        self._blocks: dict[int, Block] = {}
        self._streams: dict[int, StreamState] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._thread = threading.local()
        self.waits: list[str] = []  # calls that made the host wait
        self.launches = 0

    # --- for tests ----------------------------------------------------------------------------------------------------

    @property
    def held(self) -> dict[str, int]:
        """What has not been freed: device bytes, pinned bytes, streams and graphs."""
        with self._lock:
            sizes = [(block.pinned, block.bytes.size) for block in self._blocks.values()]
            return {
                "device": sum(size for pinned, size in sizes if not pinned),
                "pinned": sum(size for pinned, size in sizes if pinned),
                "streams": len(self._streams),
                "graphs": len(self._graphs),
            }

    def is_busy(self, owner: object) -> bool:
        """Whether work of an owner is pending on any stream."""
        return any(work.owner is owner for stream in self._streams.values() for work in stream.pending)

    # --- devices ------------------------------------------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (OK, self._devices) if self._devices else (real.cudaError_t.cudaErrorNoDevice, 0)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self._capability
        facts = SimpleNamespace(name=f"{self.name}\0".encode(), major=major, minor=minor, totalGlobalMem=self.memory)
        return OK, facts

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if device >= self._devices:
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        self._thread.device = device
        return (OK,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, f"simulated {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)

    def _device(self) -> int:
        return int(getattr(self._thread, "device", 0))

    # --- memory -------------------------------------------------------------------------------------------------------

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory - self.held["device"], self.memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        with self._lock:
            if self._breaks_capture():
                return real.cudaError_t.cudaErrorStreamCaptureUnsupported, None
            self._wait_for_all("cudaMalloc")
            if self.held["device"] + size > self.memory:
                return real.cudaError_t.cudaErrorMemoryAllocation, None
            address = next(self._addresses)
            self._blocks[address] = Block(address, np.full(size, GARBAGE, np.uint8), pinned=False)
            return OK, address

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        with self._lock:
            self._wait_for_all("cudaFree")
            return self._free(devPtr, pinned=False)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        with self._lock:
            if self._breaks_capture():
                return real.cudaError_t.cudaErrorStreamCaptureUnsupported, None
            self.waits.append("cudaHostAlloc")
            memory = (ctypes.c_uint8 * size)()
            address = ctypes.addressof(memory)
            view = np.ctypeslib.as_array(memory)
            view[:] = GARBAGE
            self._blocks[address] = Block(address, view, pinned=True, keep=memory)
            return OK, address

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        with self._lock:
            for stream in self._streams.values():
                for work in stream.pending:
                    if _overlap([(ptr, self._blocks[ptr].bytes.size)], [*work.reads, *work.writes]):
                        raise Fault(f"pinned memory was freed while {work.name} uses it")
            return self._free(ptr, pinned=True)

    def _free(self, address: int, *, pinned: bool) -> tuple[Any, ...]:
        block = self._blocks.get(int(address))
        if block is None or block.pinned != pinned:
            raise Fault(f"{address:#x} is freed, but is not the start of such a block")
        block.bytes[:] = GARBAGE
        del self._blocks[int(address)]
        return (OK,)

    def view(self, at: Range) -> NDArray[np.uint8]:
        """The bytes of a range; raises `Fault` if they are not within one allocated block."""
        address, size = at
        for block in list(self._blocks.values()):
            offset = address - block.address
            if offset >= 0 and offset + size <= block.bytes.size:
                return block.bytes[offset : offset + size]
        raise Fault(f"{size} bytes at {address:#x} are not allocated memory")

    def _pinned(self, address: int) -> bool:
        return any(
            block.pinned and block.address <= address < block.address + block.bytes.size
            for block in list(self._blocks.values())
        )

    # --- streams ------------------------------------------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == real.cudaStreamNonBlocking
        with self._lock:
            handle = next(self._handles)
            self._streams[handle] = StreamState(self._device())
            return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            self._finish(self._streams.pop(stream))
            return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            state = self._streams[stream]
            if state.recording is not None:
                state.broken = True
                return (real.cudaError_t.cudaErrorStreamCaptureUnsupported,)
            self.waits.append("cudaStreamSynchronize")
            self._finish(state)
            return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        target = (int(devPtr), count)
        self.view(target)
        self.enqueue(stream, Work("a fill", [], [target], lambda: self.view(target).fill(value)))
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        target, source = (int(dst), count), (int(src), count)
        with self._lock:
            host = {KINDS.cudaMemcpyHostToDevice: src, KINDS.cudaMemcpyDeviceToHost: dst}.get(kind)
            if host is not None and not self._pinned(int(host)):
                return self._copy_pageable(target, source, stream)
            before = self.view(source).copy() if kind == KINDS.cudaMemcpyHostToDevice else None
            self.view(target)
            if kind == KINDS.cudaMemcpyDeviceToHost:
                self.view(target)[:] = GARBAGE  # seen by code that does not wait for the copy

            def copy() -> None:
                content = self.view(source)
                if before is not None and not np.array_equal(content, before):
                    raise Fault("pinned memory was changed before its copy was done")
                self.view(target)[:] = content

            self.enqueue(stream, Work("a copy", [source], [target], copy))
        return (OK,)

    def _copy_pageable(self, target: Range, source: Range, stream: int) -> tuple[Any, ...]:
        self.waits.append("cudaMemcpyAsync of pageable memory")
        if self._streams[stream].recording is not None:
            return (real.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._finish(self._streams[stream])
        ends = [
            self.view(end)
            if self._on_device(end)
            else np.ctypeslib.as_array((ctypes.c_uint8 * end[1]).from_address(end[0]))
            for end in (target, source)
        ]
        ends[0][:] = ends[1]
        return (OK,)

    def _on_device(self, at: Range) -> bool:
        return any(not b.pinned and b.address <= at[0] < b.address + b.bytes.size for b in list(self._blocks.values()))

    def enqueue(self, stream: int, work: Work) -> None:
        """Add work to a stream, or to the graph that it captures."""
        with self._lock:
            state = self._streams.get(stream)
            if state is None:
                raise Fault(f"{work.name} on a stream that does not exist")
            if state.device != self._device():
                raise Fault(f"{work.name}: this thread's device is {self._device()}, the stream's is {state.device}")
            if state.recording is not None:
                state.recording.append(work)
                return
            self._refuse_races(state, work)
            state.pending.append(work)

    def _refuse_races(self, state: StreamState, work: Work) -> None:
        for other in self._streams.values():
            for pending in other.pending if other is not state else ():
                if _overlap(work.writes, [*pending.reads, *pending.writes]) or _overlap(work.reads, pending.writes):
                    raise Fault(f"{work.name} and {pending.name} use the same memory on two streams")

    def _finish(self, state: StreamState) -> None:
        pending, state.pending = state.pending, []
        for work in pending:
            work.do()

    def _wait_for_all(self, why: str) -> None:
        self.waits.append(why)
        for state in self._streams.values():
            self._finish(state)

    # --- graphs -------------------------------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise Fault("this capture would break when another thread allocates")
        with self._lock:
            self._streams[stream].recording = []
            self._thread.capturing = stream
            return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            state = self._streams[stream]
            recorded, state.recording = state.recording, None
            self._thread.capturing = None
            broken, state.broken = state.broken, False
            if broken or recorded is None:
                return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
            return OK, self._keep(recorded)

    def _breaks_capture(self) -> bool:
        capturing = getattr(self._thread, "capturing", None)
        if capturing is not None:
            self._streams[capturing].broken = True
        return capturing is not None

    def _keep(self, recorded: list[Work]) -> int:
        handle = next(self._handles)
        self._graphs[handle] = recorded
        return handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        with self._lock:
            return OK, self._keep(self._graphs[graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        with self._lock:
            del self._graphs[graph]
            return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any, ...]:
        with self._lock:
            self.launches += 1
            for work in self._graphs[graphExec]:
                work.check()
                self.enqueue(stream, work)
            return (OK,)


def _overlap(some: Iterable[Range], others: Iterable[Range]) -> bool:
    others = list(others)
    return any(a < d + e and d < a + b for a, b in some for d, e in others)


def alive(reference: "weakref.ref[Any]", what: str) -> Any:
    """The target of a weak reference; raises `Fault` if it no longer exists."""
    found = reference()
    if found is None:
        raise Fault(f"{what} is used after it was freed")
    return found
