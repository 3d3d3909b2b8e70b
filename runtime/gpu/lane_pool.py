"""A pool of lanes for concurrent calls: one lane per loop, and one shared by graphs that run once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from latentrt.runtime.errors import BackendError

from .lane import DeviceEngine, Lane


class LanePool:
    """Lends lanes to calls. Thread-safe."""

    def __init__(self, new_lane: Callable[[], Lane], release: Callable[[], None], name: str) -> None:
        """`release` is called once, when the pool is closed and no lane is in use; `name` is for error messages."""
        self._new_lane, self._release, self._name = new_lane, release, name
        self._idle: list[Lane] = []
        self._busy = 0
        self._one_shot_lane: Lane | None = None
        self._closed = self._released = False
        # Acquire in this order if both are needed.
        self._state, self._one_shot = threading.Lock(), threading.Lock()

    def require_open(self) -> None:
        """Raise `BackendError` once the pool is closed."""
        if self._closed:
            raise BackendError(f"{self._name} is closed: load it again")

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for one call's loop."""
        with self._state:
            self.require_open()
            lane = self._idle.pop() if self._idle else None
            self._busy += 1
        try:
            if lane is None:
                lane = self._new_lane()
            lane.begin()
            yield lane
        finally:
            with self._state:
                self._busy -= 1
                if lane is not None:
                    self._idle.append(lane)
                if self._closed:
                    self._give_back()

    @contextmanager
    def one_shot_lane(self) -> Iterator[Lane]:
        """The lane for graphs that run once, for one thread at a time."""
        with self._one_shot:
            self.require_open()
            if self._one_shot_lane is None:
                self._one_shot_lane = self._new_lane()
            self._one_shot_lane.begin()
            yield self._one_shot_lane

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Guarantee that nothing runs inside the block; raises `BackendError` if a loop is running."""
        with self._state, self._one_shot:
            if self._busy:
                raise BackendError("weights cannot change during a call: finish it, or close its stream")
            yield

    def forget(self, engine: DeviceEngine) -> None:
        """Close all contexts of an engine; call this inside `at_rest`."""
        for lane in (*self._idle, *filter(None, [self._one_shot_lane])):
            lane.forget(engine)

    def close(self) -> None:
        """Close all lanes; those in use are closed when their calls end."""
        with self._state, self._one_shot:
            self._closed = True
            if self._one_shot_lane is not None:
                self._one_shot_lane.close()
                self._one_shot_lane = None
            self._give_back()

    def _give_back(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if not self._busy and not self._released:
            self._released = True
            self._release()
