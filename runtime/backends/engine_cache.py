"""Engines by key: made on first use, made anew when the weights change."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from latentrt.runtime.arrays import NewWeights
from latentrt.runtime.errors import BackendError


class Closable(Protocol):
    """What the cache holds."""

    def close(self) -> None:
        """Free the memory."""


K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Closable)


class EngineCache(Generic[K, E]):
    """Engines of one bundle. Thread-safe."""

    def __init__(self, make: Callable[[K, NewWeights], E], graph_of: Callable[[K], str], *, kept: int = 1000) -> None:
        """`make` makes the engine of a key with new weights; of one graph, the `kept` engines last used are kept."""
        self._make, self._graph_of, self._kept = make, graph_of, kept
        self.weights: NewWeights = {}  # in use, besides the bundle's own
        self._engines: OrderedDict[K, E] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def get(self, key: K) -> E:
        """The engine of a key."""
        with self._lock:
            if self._closed:
                raise BackendError(f"the engine of {self._graph_of(key)} is closed: load the bundle again")
            if key not in self._engines:
                self._engines[key] = self._make(key, self.weights)
            self._engines.move_to_end(key)
            # Those that still run are not closed, only let go.
            for old in self._of_graph(self._graph_of(key))[: -self._kept]:
                del self._engines[old]
            return self._engines[key]

    def replace(self, weights: NewWeights) -> list[E]:
        """Use other weights, and return the engines that this replaces. On an error, everything stays as it was."""
        with self._lock:
            changed = [key for key in self._engines if self._graph_of(key) in {*self.weights, *weights}]
            last = {self._graph_of(key): key for key in changed}
            # Of each graph the engine last used is made now, others when they are needed.
            rebuilt = {key: self._make(key, weights) for key in last.values()}
            replaced = [self._engines.pop(key) for key in changed]
            self.weights = weights
            self._engines |= rebuilt
            return replaced

    def loaded(self, graphs: Collection[str]) -> list[E]:
        """The engines of these graphs that have been made."""
        return [engine for key, engine in self._engines.items() if self._graph_of(key) in graphs]

    def drop(self, graphs: Collection[str]) -> None:
        """Close the engines of these graphs; they are made again on their next use."""
        with self._lock:
            for key in [key for key in self._engines if self._graph_of(key) in graphs]:
                self._engines.pop(key).close()

    def close(self) -> None:
        """Close all engines, for good."""
        with self._lock:
            self._closed = True
            while self._engines:
                self._engines.popitem()[1].close()

    def _of_graph(self, graph: str) -> Sequence[K]:
        return [key for key in self._engines if self._graph_of(key) == graph]
