"""Options of TensorRT builds: what reaches the library, what a record says, and the fastest of several builds."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from support.exports import SHAPES
from support.simulator import machine
from support.simulator.tensorrt import IBuilderConfig

from latentrt.export.build.trt_builder import Serialized
from latentrt.export.build.trt_options import BuildOptions
from latentrt.export.build.trt_timing import fastest
from latentrt.runtime import BackendError, InputError
from latentrt.runtime.cli.main import main

GRAPHS = ["blend"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[IBuilderConfig]:
    """The configs that were made."""
    made: list[IBuilderConfig] = []
    begin = IBuilderConfig.__init__

    def init(self: IBuilderConfig) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(IBuilderConfig, "__init__", init)
    return made


def test_options_reach_the_library_and_the_record(bundle: Path, configs: list[IBuilderConfig]) -> None:
    options = BuildOptions(
        tiling="moderate", tiling_l2_mib=12, tactics=("jit_convolutions", "cudnn"), timing_iterations=5
    )
    with machine() as gpu:
        (plain,) = gpu.build(bundle, "tensorrt", graphs=GRAPHS)
        (built,) = gpu.build(bundle, "tensorrt", options=options, graphs=GRAPHS)
        (again,) = gpu.build(bundle, "tensorrt", options=options, graphs=GRAPHS)
    first, second = configs
    assert (first.tactic_sources, first.avg_timing_iterations, first.l2_limit_for_tiling) == (None, 1, 0)
    assert second.tactic_sources == 1 << 2 | 1 << 4
    assert second.tiling_optimization_level == tensorrt_rtx.TilingOptimizationLevel.MODERATE
    assert (second.avg_timing_iterations, second.l2_limit_for_tiling) == (5, 12 << 20)
    assert {"tactics": "default", "tiling": "none"}.items() <= plain.record.options.items()
    expected = {"tactics": "cudnn,jit_convolutions", "tiling": "moderate", "tiling_l2_mib": "12"}
    assert expected.items() <= built.record.options.items()
    assert built.record.options["timing_iterations"] == "5"
    assert again.seconds is None
    assert built.record.file != plain.record.file


def test_no_tactic_source_may_be_allowed(bundle: Path, configs: list[IBuilderConfig]) -> None:
    with machine():
        command = ["build", str(bundle), "--backend", "tensorrt", "--graph", "blend", "--tactics", "none"]
        assert main(command) == 0
    assert configs[0].tactic_sources == 0
    (record,) = json.loads((bundle / "bundle.json").read_text())["engines"]
    assert record["options"]["tactics"] == "none"


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("11.1.0.106", {"tactics": ("cublas",)}, r"--tactics cublas: tensorrt 11\S+ has edge_mask_conv\S+ jit_conv"),
        ("10.16.1.11", {"tactics": ("cublass",)}, r"--tactics cublass: tensorrt 10\S+ has cublas, cublas_lt, cudnn"),
        ("10.16.1.11", {"tiling": "fulll"}, r"unknown tiling level 'fulll'; did you mean 'full'"),
        ("10.16.1.11", {"timing_iterations": 0}, r"--timing-iterations 0: expected an integer from 1 on"),
    ],
)
def test_what_a_version_lacks_is_refused(bundle: Path, version: str, options: dict[str, Any], message: str) -> None:
    with machine({"tensorrt": version}) as gpu, pytest.raises(InputError, match=message):
        gpu.build(bundle, "tensorrt", options=BuildOptions(**options), graphs=GRAPHS)


def test_a_library_without_tiling(bundle: Path) -> None:
    with machine() as gpu:
        del gpu.libraries["tensorrt"].TilingOptimizationLevel
        with pytest.raises(BackendError, match=r"tensorrt 10\S+ has no tiling: build without --tiling"):
            gpu.build(bundle, "tensorrt", options=BuildOptions(tiling="fast"), graphs=GRAPHS)


def test_tensorrt_for_rtx_builds_with_tiling(bundle: Path) -> None:
    command = ["build", str(bundle), "--backend", "tensorrt_rtx", "--graph", "blend", "--tiling", "full"]
    assert main(command) == 0


def test_the_fastest_of_several_builds_is_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the simulated GPU, the second of three builds is the fastest, unless all use the timings of the first."""
    with machine() as gpu:
        command = ["build", str(bundle), "--backend", "tensorrt", "--graph", "blend", "--best-of", "3"]
        assert main(command) == 0
        assert gpu.cuda.held == {"device": 0, "pinned": 0, "streams": 0, "graphs": 0, "events": 0}
    assert re.search(r"blend .* MiB  \S+ s, 1\.000 ms a run, best of 3\.000, 1\.000, 2\.000", capsys.readouterr().out)
    (record,) = json.loads((bundle / "bundle.json").read_text())["engines"]
    assert record["options"]["best_of"] == "3"
    assert b'"milliseconds": 1.0' in (bundle / record["file"]).read_bytes()


def test_a_stripped_engine_is_filled_before_it_is_timed(bundle: Path) -> None:
    options = BuildOptions(best_of=2, strip_weights=True)
    with machine() as gpu:
        (built,) = gpu.build(bundle, "tensorrt", {"batch": ["1:2:3"]}, options=options, graphs=["context"])
    assert built.attempts == (3.0, 1.0)


def test_the_first_of_equals_is_kept() -> None:
    builds = iter(Serialized(name, "") for name in (b"a", b"b", b"c", b"d"))
    times = {b"a": 2.0, b"b": 1.5, b"c": 1.5, b"d": 1.75}
    best, all_times = fastest(4, lambda: next(builds), times.__getitem__)
    assert (best.engine, all_times) == (b"b", (2.0, 1.5, 1.5, 1.75))
