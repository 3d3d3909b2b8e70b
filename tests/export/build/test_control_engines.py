"""Real engines of control bundles, and of a UNet with ports, built without a GPU for three kinds of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.exports import Exported

from latentrt.export.build.profiles import buckets_from_options
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime.bundle import EngineList, open_bundle

GPUS = ("8.6", "8.9", "12.0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graphs"),
    [
        ("sd1-net", ("hint", "control_time", "control_context", "control")),
        ("sd1-t2i", ("adapter",)),
        ("sd1-ip", ("image_context",)),
        ("encoder", ("image_encoder",)),
        ("sd1-ports-fp32", ("denoise",)),
    ],
)
def test_engines_are_built(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, graphs: tuple[str, ...]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported(name).bundle, folder)
    built = build_engines(
        folder,
        "tensorrt_rtx",
        lambda bundle: buckets_from_options(bundle.manifest, height=["64"], width=["48"]),
        BuildOptions(compute_capabilities=GPUS),
        graphs=graphs,
    )
    assert [one.record.graph for one in built] == list(graphs)
    engines = EngineList.of_bundle(open_bundle(folder))
    assert all(engines.intact(record) and record.compute_capabilities == GPUS for record in engines.engines)
