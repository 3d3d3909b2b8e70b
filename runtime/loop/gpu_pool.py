"""Slots on a GPU, lent to calls: those of the sizes used last stay allocated, with their captured graphs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import BackendError, OutOfMemoryError
from latentrt.runtime.gpu.staging import Download
from latentrt.runtime.gpu.threads import Runner
from latentrt.runtime.protocols import Bucket, Trajectory

from .gpu import GpuSlots

IDLE_KEPT = 4
WEIGHTS_IN_USE = "weights cannot change during a call: finish it, or close its stream"

P = ParamSpec("P")
T = TypeVar("T")


class SlotPool:
    """Lends slots. Thread-safe."""

    def __init__(
        self, new: Callable[[Bucket, int], GpuSlots], run: Runner, release: Callable[[], None], name: str
    ) -> None:
        """`release` is called once, when the pool is closed and nothing is lent; `name` is for error messages."""
        self.run = run
        self._new, self._release, self._name = new, release, name
        self._idle: list[tuple[Bucket, int, GpuSlots]] = []  # in order of last use
        self._lent = 0
        self._closed = self._released = False
        self._lock = threading.RLock()

    def require_open(self) -> None:
        """Raise `BackendError` once the pool is closed."""
        if self._closed:
            raise BackendError(f"{self._name} is closed: load it again")

    def lend(self, bucket: Bucket, count: int) -> "LentSlots":
        """Idle slots of these sizes, or new ones."""
        with self._lock:
            self.require_open()
            found = next((entry for entry in reversed(self._idle) if entry[:2] == (bucket, count)), None)
            if found is not None:
                self._idle.remove(found)
            self._lent += 1
        try:
            slots = found[2] if found is not None else self.retried(self._new, bucket, count)
        except BaseException:
            self._returned()
            raise
        return LentSlots(self, slots, bucket, count)

    def retried(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function; if the GPU's memory is full, free idle slots and run it again."""
        try:
            return self.run(work, *args, **kwargs)
        except OutOfMemoryError:
            if not self.free_idle():
                raise
        return self.run(work, *args, **kwargs)

    def take_back(self, slots: GpuSlots, bucket: Bucket, count: int, *, broken: bool) -> None:
        """Keep slots for later calls, or free them if something went wrong with them."""
        with self._lock:
            try:
                if broken or self._closed:
                    self.run(slots.close)
                else:
                    self._idle.append((bucket, count, slots))
                    while len(self._idle) > IDLE_KEPT:
                        self.run(self._idle.pop(0)[2].close)
            finally:
                self._returned()

    def free_idle(self) -> bool:
        """Free all slots that nobody uses; returns whether there were any."""
        with self._lock:
            found = bool(self._idle)
            while self._idle:
                self.run(self._idle.pop()[2].close)
            return found

    @contextmanager
    def at_rest(self, otherwise: str) -> Iterator[None]:
        """Nothing is lent, and nothing pending on a stream; raises `BackendError(otherwise)` if slots are lent."""
        with self._lock:
            if self._lent:
                raise BackendError(otherwise)
            for _, _, slots in self._idle:  # what a cancelled call has queued may still run
                self.run(slots.rest)
            yield

    def close(self) -> None:
        """Free idle slots; those in use are freed when their calls end."""
        with self._lock:
            self._closed = True
            self.free_idle()
            self._release_if_unused()

    def _returned(self) -> None:
        with self._lock:
            self._lent -= 1
            self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._closed and not self._lent and not self._released:
            self._released = True
            self._release()


class LentSlots:
    """See `Slots`. After an error, the slots are freed instead of lent again."""

    def __init__(self, pool: SlotPool, slots: GpuSlots, bucket: Bucket, count: int) -> None:
        self.bucket, self.counts = slots.bucket, slots.counts
        self._pool, self._slots, self._key = pool, slots, (bucket, count)
        self._broken = self._closed = False

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._run(self._slots.fill, slot, trajectory, retry=True)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._run(self._slots.move, source, target)

    def call(self, at: NDArray[np.int32]) -> None:
        """See `Slots.call`."""
        self._run(self._slots.call, at)

    def fetch(self, slot: int, register: int) -> "LentFetch":
        """See `Slots.fetch`."""
        return LentFetch(self._pool.run, self._run(self._slots.fetch, slot, register))

    def _run(self, work: Callable[..., T], *args: Any, retry: bool = False) -> T:
        if self._closed:
            raise BackendError("these slots are closed: ask for new ones")
        run = self._pool.retried if retry else self._pool.run
        try:
            return run(work, *args)
        except BaseException:
            self._broken = True
            raise

    def close(self) -> None:
        """See `Slots.close`."""
        if not self._closed:
            self._closed = True
            self._pool.take_back(self._slots, *self._key, broken=self._broken)


class LentFetch:
    """See `Fetch`."""

    def __init__(self, run: Runner, download: Download) -> None:
        self._run, self._download = run, download

    def result(self) -> Float32:
        """See `Fetch.result`."""
        array: Float32 = self._run(self._download.result)
        return array
