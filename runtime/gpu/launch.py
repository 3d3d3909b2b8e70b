"""Work on a stream that is enqueued again and again: captured as a CUDA graph where possible."""

import logging
from collections.abc import Sequence

from .device import CapturedGraph, Stream
from .engine import BoundEngine

logger = logging.getLogger(__name__)


class Launch:
    """Bound engines that run one after the other; they are closed by who bound them."""

    def __init__(self, engines: Sequence[BoundEngine], stream: Stream) -> None:
        self._engines, self._stream = engines, stream
        self._captured: CapturedGraph | None = None
        self._runs = 0

    def __call__(self) -> None:
        """Enqueue the engines.

        The first run is not captured: only then are shapes known, kernels compiled and memory allocated.
        """
        if self._runs == 1 and self._capturable():
            self._captured = self._stream.capture(self._enqueue)
        self._runs += 1
        if self._captured is None:
            self._enqueue()
        else:
            self._stream.launch(self._captured)

    def _capturable(self) -> bool:
        return all(engine.capturable(self._stream.handle) for engine in self._engines)

    def _enqueue(self) -> None:
        for engine in self._engines:
            engine(self._stream.handle)

    def close(self) -> None:
        """Free the captured graph; the stream must be idle."""
        if self._captured is not None:
            self._captured.close()
