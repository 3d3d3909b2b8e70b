"""What the simulated GPU keeps: memory, work, streams, events."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
    device: int
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
    milliseconds: float = 0.0  # what it adds to the clock


@dataclass(eq=False)
class StreamState:
    """A stream.

    Attributes:
        recording: work of the capture that is under way.
        recorder: the thread that captures.
        broken: the capture failed.
        unusable: a failed capture was left behind: only destroying the stream works.
    """

    device: int
    pending: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    recorder: int = 0
    broken: bool = False
    unusable: bool = False


@dataclass(eq=False)
class EventState:
    """An event: where it was recorded last, that record as work of the stream, and the clock when it was reached."""

    device: int
    timed: bool = False
    reached_at: float | None = None
    stream: StreamState | None = None
    record: Work | None = None


def overlap(some: Iterable[Range], others: Iterable[Range]) -> bool:
    others = list(others)
    return any(a < d + e and d < a + b for a, b in some for d, e in others)


def alive(reference: "weakref.ref[Any]", what: str) -> Any:
    """The target of a weak reference; raises `Fault` if it no longer exists."""
    found = reference()
    if found is None:
        raise Fault(f"{what} is used after it was freed")
    return found
