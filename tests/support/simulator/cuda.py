"""The part of `cuda.bindings.runtime` that latentrt calls, in host memory.

The simulated GPU is stricter than a real one: work runs as late as possible, so reading too early gives garbage; memory
is filled with garbage when allocated and when freed; and misuse that a real GPU would ignore or crash on (freed memory,
two streams using one block, pinned memory changed during a copy) raises a `Fault`.
"""

import bisect
import ctypes
import itertools
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from numpy.typing import NDArray

from .work import GARBAGE, KINDS, OK, Block, EventState, Fault, Range, StreamState, Work, overlap

UNSUPPORTED = real.cudaError_t.cudaErrorStreamCaptureUnsupported


class Cuda:
    """One machine. Its methods have the names and results of `cuda.bindings.runtime`."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDefault = real.cudaEventDefault
    cudaEventDisableTiming = real.cudaEventDisableTiming
    cudaHostAllocDefault = real.cudaHostAllocDefault

    def __init__(self, *, devices: int = 1, capability: str = "8.9", memory: int = 8 << 30) -> None:
        self.name, self.memory, self._devices = "Simulated GPU", memory, devices
        self._capability = tuple(map(int, capability.split(".")))
        self._lock = threading.RLock()
        self._addresses = itertools.count(0x7000_0000_0000, 1 << 32)
        self._handles = itertools.count(1)
        self._blocks: dict[int, Block] = {}
        self._starts: list[int] = []  # addresses of all blocks, sorted
        self._streams: dict[int, StreamState] = {}
        self._events: dict[int, EventState] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._thread = threading.local()
        self._global: StreamState | None = None  # the stream that is recorded in global mode
        self.calls: list[str] = []  # every call of the driver, by name
        self.waits: list[str] = []  # those that made the host wait
        self.launches = 0
        self._clock = 0.0  # milliseconds of all finished work
        self.recordings: list[tuple[int, str]] = []  # thread and graph id of what ONNX Runtime captured
        self.most_unfinished = 0  # runs of one engine of the loop that were pending at once

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("cuda") and callable(value) and not isinstance(value, type):
            super().__getattribute__("calls").append(name)
        return value

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
                "events": len(self._events),
            }

    def is_busy(self, owner: object) -> bool:
        """Whether work of an owner is pending on any stream."""
        return any(work.owner is owner for stream in self._streams.values() for work in stream.pending)

    @property
    def pending(self) -> int:
        """How much work has not run yet."""
        return sum(len(stream.pending) for stream in self._streams.values())

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

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return OK, self.device

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, f"simulated {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return int(getattr(self._thread, "device", 0))

    # --- memory -------------------------------------------------------------------------------------------------------

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory - self.held["device"], self.memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return UNSUPPORTED, None
            self._wait_for_all("cudaMalloc")
            if self.held["device"] + size > self.memory:
                return real.cudaError_t.cudaErrorMemoryAllocation, None
            address = next(self._addresses)
            self._add(Block(address, np.full(size, GARBAGE, np.uint8), pinned=False, device=self.device))
            return OK, address

    def _add(self, block: Block) -> None:
        self._blocks[block.address] = block
        bisect.insort(self._starts, block.address)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return (UNSUPPORTED,)
            try:
                self._wait_for_all("cudaFree")
            finally:
                status = self._free(devPtr, pinned=False)
            return status

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return UNSUPPORTED, None
            self.waits.append("cudaHostAlloc")
            memory = (ctypes.c_uint8 * size)()
            address = ctypes.addressof(memory)
            view = np.ctypeslib.as_array(memory)
            view[:] = GARBAGE
            self._add(Block(address, view, pinned=True, device=self.device, keep=memory))
            return OK, address

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return (UNSUPPORTED,)
            for stream in self._streams.values():
                for work in stream.pending:
                    if overlap([(ptr, self._blocks[ptr].bytes.size)], [*work.reads, *work.writes]):
                        raise Fault(f"pinned memory was freed while {work.name} uses it")
            return self._free(ptr, pinned=True)

    def _free(self, address: int, *, pinned: bool) -> tuple[Any, ...]:
        block = self._blocks.get(int(address))
        if block is None or block.pinned != pinned:
            raise Fault(f"{address:#x} is freed, but is not the start of such a block")
        block.bytes[:] = GARBAGE
        del self._blocks[int(address)]
        self._starts.remove(int(address))
        return (OK,)

    def view(self, at: Range) -> NDArray[np.uint8]:
        """The bytes of a range; raises `Fault` if they are not within one allocated block."""
        block = self._block_at(at)
        if block is None:
            raise Fault(f"{at[1]} bytes at {at[0]:#x} are not allocated memory")
        offset = at[0] - block.address
        return block.bytes[offset : offset + at[1]]

    def _block_at(self, at: Range) -> Block | None:
        with self._lock:
            position = bisect.bisect_right(self._starts, at[0]) - 1
            block = self._blocks[self._starts[position]] if position >= 0 else None
            return block if block is not None and at[0] + at[1] <= block.address + block.bytes.size else None

    def _pinned(self, address: int) -> bool:
        block = self._block_at((address, 0))
        return block is not None and block.pinned and address < block.address + block.bytes.size

    # --- streams ------------------------------------------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == real.cudaStreamNonBlocking
        with self._lock:
            handle = next(self._handles)
            self._streams[handle] = StreamState(self.device)
            return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            state = self._streams.pop(stream)
            if not state.unusable:
                self._finish(state)
            return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            state = self._streams[stream]
            if state.unusable:
                return (real.cudaError_t.cudaErrorStreamCaptureInvalidated,)
            if state.recording is not None or self.breaks_capture():
                state.broken = True
                return (UNSUPPORTED,)
            self.waits.append("cudaStreamSynchronize")
            self._finish(state)
            return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        target = (int(devPtr), count)
        self.view(target)
        return (self.enqueue(stream, Work("a fill", [], [target], lambda: self.view(target).fill(value))),)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        target, source = (int(dst), count), (int(src), count)
        with self._lock:
            host = {KINDS.cudaMemcpyHostToDevice: src, KINDS.cudaMemcpyDeviceToHost: dst}.get(kind)
            if host is not None and not self._pinned(int(host)):
                return self._copy_pageable(target, source, stream)
            before: list[NDArray[np.uint8]] = []  # content of pinned memory at the launch

            def launch() -> None:
                if kind == KINDS.cudaMemcpyHostToDevice:
                    before[:] = [self.view(source).copy()]

            launch()
            self.view(target)
            if kind == KINDS.cudaMemcpyDeviceToHost:
                self.view(target)[:] = GARBAGE  # seen by code that does not wait for the copy

            def copy() -> None:
                content = self.view(source)
                if before and not np.array_equal(content, before[0]):
                    raise Fault("pinned memory was changed before its copy was done")
                self.view(target)[:] = content

            return (self.enqueue(stream, Work("a copy", [source], [target], copy, launch)),)

    def _copy_pageable(self, target: Range, source: Range, stream: int) -> tuple[Any, ...]:
        self.waits.append("cudaMemcpyAsync of pageable memory")
        if self._streams[stream].recording is not None:
            return (UNSUPPORTED,)
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
        block = self._block_at(at)
        return block is not None and not block.pinned

    def enqueue(self, stream: int, work: Work) -> Any:
        """Add work to a stream, or to the graph that it captures; returns a status."""
        with self._lock:
            state = self._streams.get(stream)
            if state is None:
                raise Fault(f"{work.name} on a stream that does not exist")
            if state.unusable:
                return real.cudaError_t.cudaErrorStreamCaptureInvalidated
            if state.device != self.device:
                raise Fault(f"{work.name}: this thread's device is {self.device}, the stream's is {state.device}")
            for at in (*work.reads, *work.writes):
                block = self._block_at(at)
                if block is not None and not block.pinned and block.device != state.device:
                    raise Fault(f"{work.name} on device {state.device} uses memory of device {block.device}")
            if state.recording is not None:
                if state.recorder != threading.get_ident():
                    state.broken = True
                    raise Fault(f"{work.name} of another thread is recorded instead of executed")
                state.recording.append(work)
                return OK
            self._refuse_races(state, work)
            state.pending.append(work)
            if work.owner is not None and "next_state" in work.name:
                unfinished = sum(other.owner is work.owner for other in state.pending)
                self.most_unfinished = max(self.most_unfinished, unfinished)
            return OK

    def _refuse_races(self, state: StreamState, work: Work) -> None:
        for other in self._streams.values():
            for pending in other.pending if other is not state else ():
                if overlap(work.writes, [*pending.reads, *pending.writes]) or overlap(work.reads, pending.writes):
                    raise Fault(f"{work.name} and {pending.name} use the same memory on two streams")

    def _finish(self, state: StreamState, until: Work | None = None) -> None:
        """Run pending work: all of it, or up to a piece of it."""
        while state.pending:
            work = state.pending.pop(0)
            work.do()
            self._clock += work.milliseconds
            if work is until:
                break

    def _wait_for_all(self, why: str) -> None:
        self.waits.append(why)
        for state in self._streams.values():
            self._finish(state)

    # --- events ---------------------------------------------------------------------------------------------------

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags in (real.cudaEventDisableTiming, real.cudaEventDefault)
        with self._lock:
            handle = next(self._handles)
            self._events[handle] = EventState(self.device, timed=flags == real.cudaEventDefault)
            return OK, handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        with self._lock:
            state = self._events[event]
            record = Work("an event", [], [], lambda: setattr(state, "reached_at", self._clock))
            on = self._streams.get(stream)
            if on is not None and on.device != state.device:
                raise Fault(f"an event of device {state.device} is recorded on a stream of device {on.device}")
            status = self.enqueue(stream, record)
            if status == OK:
                state.stream, state.record = on, record
            return (status,)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return (UNSUPPORTED,)
            self.waits.append("cudaEventSynchronize")
            state = self._events[event]
            if not self._reached(state):
                self._finish(state.stream, state.record)
            return (OK,)

    def cudaEventQuery(self, event: int) -> tuple[Any, ...]:
        with self._lock:
            if self.breaks_capture():
                return (UNSUPPORTED,)
            return (OK if self._reached(self._events[event]) else real.cudaError_t.cudaErrorNotReady,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        with self._lock:
            first, last = self._events[start], self._events[end]
            if not (first.timed and last.timed) or first.reached_at is None or last.reached_at is None:
                return real.cudaError_t.cudaErrorInvalidResourceHandle, None
            return OK, last.reached_at - first.reached_at

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        with self._lock:
            del self._events[event]
            return (OK,)

    @staticmethod
    def _reached(event: EventState) -> bool:
        return event.stream is None or event.record not in event.stream.pending

    # --- graphs -------------------------------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise Fault("this capture would break when another thread allocates")
        with self._lock:
            self._streams[stream].recording = []
            self._streams[stream].recorder = threading.get_ident()
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

    def breaks_capture(self) -> bool:
        """Note a call that may not be made now: while this thread captures, or any thread records in global mode."""
        capturing = getattr(self._thread, "capturing", None)
        if capturing is not None:
            self._streams[capturing].broken = True
        if self._global is not None:
            self._global.broken = True
        return capturing is not None or self._global is not None

    def begin_recording(self, stream: int) -> None:
        """Record in global mode, as ONNX Runtime does."""
        with self._lock:
            if self._global is not None:
                raise Fault("two recordings in global mode at once")
            self._global = self._streams[stream]
            self._global.recording, self._global.recorder = [], threading.get_ident()

    def end_recording(self, stream: int) -> bool:
        """Whether nothing broke the recording."""
        with self._lock:
            state, self._global = self._streams[stream], None
            broken, state.recording, state.broken = state.broken, None, False
            return not broken

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
