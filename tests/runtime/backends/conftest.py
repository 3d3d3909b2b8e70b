"""Fixtures of TensorRT on a simulated GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exports import SHAPES
from support.simulator import Machine, machine

from latentrt.runtime import Pipeline


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of `shapes` for both libraries: for one image, four images, and a range of sizes."""
    folder = tmp_path_factory.mktemp("engines")
    with machine() as built_on:
        for backend in ("tensorrt_rtx", "tensorrt"):
            built_on.build(SHAPES.bundle, backend, {"batch": ["1", "4"], "groups": ["1", "2"]}, engines=folder)
            ranges = {"height": ["64:96:160"], "width": ["64:96:160"], "batch": ["1:1:2"], "tokens": ["77:77:154"]}
            built_on.build(SHAPES.bundle, backend, ranges, engines=folder)
    return folder


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine() as simulated:
        yield simulated


@pytest.fixture
def pipe(gpu: Machine, engines: Path) -> Iterator[Pipeline]:
    with Pipeline.load(backend="tensorrt_rtx", engines=engines) as pipeline:
        yield pipeline
    assert not any(gpu.cuda.held.values()), gpu.cuda.held


@pytest.fixture(scope="module")
def ort() -> Iterator[Pipeline]:
    """The same bundle on ONNX Runtime."""
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipeline:
        yield pipeline
