"""Fixtures that tests share. Exports run in child processes, and are kept in pytest's cache while the exporter's
sources stay the same; several workers of pytest-xdist share them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.exports import CONTROLS, EXPORTS, QUICK_CONTROLS, QUICK_EXPORTS, ROOT, SHAPES, Exported, export, export_net

from latentrt.runtime import Pipeline

if TYPE_CHECKING:
    from support.postgres import Cluster

# One thread for PyTorch: its threads and ONNX Runtime's would wait for each other on small tensors.
os.environ["OMP_NUM_THREADS"] = "1"
# A core for each worker of pytest-xdist, so that ONNX Runtime's threads do not wait for each other either.
if (worker := os.environ.get("PYTEST_XDIST_WORKER", "")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
# A test that reaches for a model hub must fail here, not only where there is no network.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error")


@pytest.fixture(scope="session", autouse=True)
def _auto_takes_onnxruntime_on_a_cpu() -> Iterator[None]:
    """OpenVINO compiles for a second or two at each size, so only tests that are about it draw with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentrt.runtime.backends.choice.openvino_is_installed", lambda: False)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose parameter is one of the slow exports, and run files that wait for exports last."""
    slow = (EXPORTS.keys() | CONTROLS.keys()) - {*QUICK_EXPORTS, *QUICK_CONTROLS}
    waiting = {item.path for item in items if _needs_exports(item)}
    items.sort(key=lambda item: item.path in waiting)
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and slow & {p for p in parameters.params.values() if isinstance(p, str)}:
            item.add_marker(pytest.mark.slow)


def _needs_exports(item: pytest.Item) -> bool:
    return "exported" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def _exports_begin_at_once(request: pytest.FixtureRequest) -> None:
    if any(map(_needs_exports, request.session.items)):
        request.getfixturevalue("_exports")


@pytest.fixture(scope="session")
def _exports(pytestconfig: pytest.Config) -> Iterator[dict[str, Future[Exported]]]:
    exporter = ROOT / "export"
    sources = [
        *sorted(exporter.glob("checkpoint/*.py")),
        *sorted(exporter.glob("control/*.py")),
        *sorted(exporter.glob("graphs/*.py")),
        *sorted(file for file in exporter.glob("*.py") if file.name != "cli.py"),
        ROOT / "runtime" / "bundle" / "manifest.py",
        ROOT / "runtime" / "bundle" / "control_manifest.py",
        ROOT / "tests" / "support" / "checkpoints.py",
        ROOT / "tests" / "support" / "controlnets.py",
        ROOT / "tests" / "support" / "original_layout.py",
        SHAPES.bundle / "bundle.json",  # changes with the embedded model, which is exported, too
    ]
    key = hashlib.sha256(b"".join(f.read_bytes() for f in sources)).hexdigest()[:16]
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"bundles-{key}")
    wanted = {name: EXPORTS[name] for name in (QUICK_EXPORTS if _is_quick(pytestconfig) else EXPORTS)}
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(export, folder, name, *facts) for name, facts in wanted.items()}
        for name in QUICK_CONTROLS if _is_quick(pytestconfig) else CONTROLS:
            base = futures[CONTROLS[name][0]]
            futures[name] = pool.submit(lambda name, base: export_net(folder, name, base.result()), name, base)
        yield futures
        for future in futures.values():
            future.cancel()


def _is_quick(config: pytest.Config) -> bool:
    return "not slow" in config.getoption("markexpr")


@pytest.fixture(scope="session")
def exported(_exports: dict[str, Future[Exported]]) -> Callable[[str], Exported]:
    """The export with a name of `EXPORTS` or `CONTROLS`, or the embedded model as "shapes"."""

    def get(name: str) -> Exported:
        if name == "shapes":
            return SHAPES
        if name not in _exports:
            pytest.fail(f"{name} is not among the quick exports: mark this test as slow")
        return _exports[name].result()

    return get


@pytest.fixture(scope="session")
def postgres() -> Iterator["Cluster"]:
    """A real PostgreSQL."""
    from support.postgres import cluster  # imported here because few tests need its library

    with cluster() as running:
        yield running


@pytest.fixture(scope="session")
def sd1(exported: Callable[[str], Exported]) -> Exported:
    """A small random SD 1.x checkpoint and its fp32 bundle."""
    return exported("sd1-fp32")


@pytest.fixture(scope="session")
def pipe(sd1: Exported) -> Iterator[Pipeline]:
    """The pipeline of `sd1` on the CPU."""
    with Pipeline.load(sd1.bundle, device="cpu") as pipe:
        yield pipe
