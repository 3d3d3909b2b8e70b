"""The parts of the GPU check, the order of their processes, and the three calls that fit half an hour with a GPU.

Data only: knows neither processes nor what a part does.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .places import BACKENDS

NOBODY = ""  # the backend of a part that needs none


@dataclass(frozen=True, slots=True)
class Part:
    """How a part is run.

    Attributes:
        needs: seconds that must be left for it to be started; estimates, as no run has been timed.
        limit: seconds after which one of its processes is ended.
        backends: it has a process for each of these, so that one that crashes takes no findings of others along.
        quick: whether it runs if no part is named.
        daring: whether it also tries backends that do not run elsewhere.
    """

    needs: float
    limit: float
    backends: Sequence[str] = (NOBODY,)
    quick: bool = True
    daring: bool = False


# Parts that others need come first, slow parts last.
PARTS: Mapping[str, Part] = {
    "device": Part(5, 60),
    "ceilings": Part(10, 60),
    "backends": Part(15, 120, BACKENDS, daring=True),
    "states": Part(15, 90, BACKENDS),
    "pictures": Part(30, 180, BACKENDS),
    "native": Part(20, 120, ("onnxruntime",)),
    "norms": Part(20, 120, BACKENDS),
    "waits": Part(10, 60, BACKENDS),
    "loras": Part(15, 120, BACKENDS),
    "noise": Part(10, 90),
    "ideas": Part(10, 90, BACKENDS),
    "older": Part(15, 90, ("tensorrt_rtx",), daring=True),
    "full_size": Part(45, 540, BACKENDS, quick=False),
    "ort_options": Part(60, 540, ("onnxruntime",), quick=False),
    "quantized": Part(120, 540, BACKENDS[1:], quick=False),
    "latency": Part(60, 540, BACKENDS, quick=False),
    "training": Part(520, 600, quick=False),  # it trains for 450 seconds
}
QUICK = tuple(name for name, part in PARTS.items() if part.quick)


@dataclass(frozen=True, slots=True)
class Job:
    """One process: a part, with one backend or `NOBODY`."""

    part: str
    backend: str = NOBODY

    @property
    def name(self) -> str:
        """The name of its report."""
        return f"{self.part}.{self.backend}" if self.backend else self.part


@dataclass(frozen=True, slots=True)
class Call:
    """One of the calls of the half hour: seconds with everything, and its jobs in order."""

    seconds: float
    jobs: Sequence[Job]


def jobs_of(parts: Sequence[str], backends: Collection[str] = BACKENDS) -> Iterator[Job]:
    """The jobs of these parts: first those of ONNX Runtime and of no backend, then TensorRT's, then those of RTX.

    A library that may not support the GPU is so tried when everything else has been found out.
    """
    for turn in ((NOBODY, BACKENDS[0]), *((backend,) for backend in BACKENDS[1:])):
        for part in parts:
            for backend in turn:
                if backend in PARTS[part].backends and (backend == NOBODY or backend in backends):
                    yield Job(part, backend)


def _of(backend: str, parts: str) -> list[Job]:
    return list(jobs_of(parts.split(), (backend,)))


# What decides most comes first. The machine needs minutes to start and to receive files, so the last call is shorter.
HALF_HOUR = (
    Call(540, _of("onnxruntime", "device ceilings backends states pictures norms waits full_size ort_options")),
    Call(
        480,
        _of("onnxruntime", "latency loras noise native ideas")
        + _of("tensorrt", "backends states pictures norms waits full_size latency"),
    ),
    Call(360, _of("tensorrt_rtx", "backends states pictures norms waits older full_size latency")),
)
