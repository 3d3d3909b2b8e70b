"""Replaces the real GPU libraries by simulated ones during a test."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import cuda.bindings

from latentrt.export.build.profiles import buckets_from_options
from latentrt.export.build.store import Built
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_job import build_here
from latentrt.export.build.trt_options import BuildOptions

from .cuda import Cuda
from .ort import simulated_onnxruntime
from .tensorrt import simulated_tensorrt

VERSIONS = {"tensorrt": "10.16.1.11", "tensorrt_rtx": "1.7.1.116"}


class Machine:
    """The GPU and its libraries."""

    def __init__(self, cuda: Cuda, libraries: dict[str, ModuleType]) -> None:
        self.cuda, self.libraries = cuda, libraries

    def build(
        self,
        bundle: Path,
        backend: str = "tensorrt_rtx",
        sizes: dict[str, Sequence[str]] | None = None,
        options: BuildOptions | None = None,
        **more: Any,
    ) -> list[Built]:
        """Build engines, as the command line does."""
        buckets = lambda opened: buckets_from_options(opened.manifest, **sizes or {})  # noqa: E731
        return list(build_engines(bundle, backend, buckets, options, **more))


@contextmanager
def machine(
    versions: dict[str, str] | None = None, *, onnxruntime: dict[str, Any] | None = None, **facts: Any
) -> Iterator[Machine]:
    """A machine with one simulated GPU and both libraries; `versions` overrides their versions.

    `onnxruntime` has arguments of `simulated_onnxruntime`; if None, the real onnxruntime for the CPU is used.
    """
    gpu = Cuda(**facts)
    libraries = {name: simulated_tensorrt(gpu, name, v) for name, v in (VERSIONS | (versions or {})).items()}
    if onnxruntime is not None:
        libraries["onnxruntime"] = simulated_onnxruntime(gpu, **onnxruntime)
    with (
        mock.patch.dict(sys.modules, libraries | {"cuda.bindings.runtime": gpu}),
        mock.patch.object(cuda.bindings, "runtime", gpu),
        mock.patch("latentrt.runtime.backends.choice.has_driver", return_value=True),
        mock.patch("latentrt.export.build.trt_engines.build_in_child", build_here),  # simulated in this process alone
    ):
        yield Machine(gpu, libraries)
