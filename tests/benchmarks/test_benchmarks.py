"""Comparisons of two runs, stages and ideas of any family, reports, and that documented commands exist."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import ROOT, SHAPES, Exported

from benchmarks import bench
from benchmarks.common import ceilings, harness
from benchmarks.common.memory import peak_bytes
from benchmarks.reports import compare, report, tables
from benchmarks.speed import ideas, stages
from latentrt.runtime import Pipeline
from latentrt.runtime.protocols import Bucket

CARD = {"cpu": "AMD EPYC", "cores": 2, "gpus": [], "threads": {}, "ram_gib": 23.5, "instructions": ["avx2"]}


def run_of(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A benchmark's JSON; values are seconds, or the arguments of a `Measurement`."""
    records = [
        harness.Measurement(name, *(v if isinstance(v, tuple) else ("s", v))).record() for name, v in values.items()
    ]
    return {
        "benchmark": "latency",
        "date": "2026-11-03",
        "environment": CARD,
        "results": {"model": "shapes"},
        "measurements": records,
        "targets": [],
        **changes,
    }


def repetitions(seed: int, *, count: int = 9, seconds: float = 0.6, noise: float = 0.02) -> list[float]:
    """Repetitions as on a real machine: a little noise, and in a tenth of them other work takes a core."""
    random = np.random.default_rng(seed)
    values = seconds * (1 + noise * np.abs(random.standard_normal(count)))
    values[random.random(count) < 0.1] *= 1.4
    return values.tolist()


def verdict(old: list[float], new: list[float]) -> str:
    (change,) = compare.changes(run_of({"a": old}), run_of({"a": new}), least=0.03, sigmas=3)
    return change.verdict


# --- comparing two runs -----------------------------------------------------------------------------------------------


def test_equal_runs_are_no_change() -> None:
    verdicts = [verdict(repetitions(seed), repetitions(seed + 5000)) for seed in range(400)]
    assert verdicts.count("no change") >= 398


def test_ten_percent_slower_is_reported() -> None:
    """Nearly always with the noise of an idle machine; what is faster is never called slower."""
    slower = [verdict(repetitions(s), [1.1 * v for v in repetitions(s + 5000)]) for s in range(400)]
    faster = [verdict(repetitions(s), [v / 1.1 for v in repetitions(s + 5000)]) for s in range(400)]
    assert slower.count("slower") >= 380
    assert faster.count("faster") >= 380
    assert "faster" not in slower
    assert "slower" not in faster


def test_more_is_better_for_rates() -> None:
    old, new = ({"a": ("pictures/s", [rate, 1.01 * rate, 0.99 * rate], True)} for rate in (10.0, 8.0))
    (change,) = compare.changes(run_of(old), run_of(new), least=0.03, sigmas=3)
    assert (change.verdict, round(change.ratio, 3)) == ("slower", 0.8)


def test_times_taken_once_are_not_judged() -> None:
    """Sizes are judged, as they have no noise."""
    old, new = ({"a": ("s", [seconds]), "b": ("MB", [megabytes])} for seconds, megabytes in ((1.0, 200), (2.0, 220)))
    found = compare.changes(run_of(old), run_of(new), least=0.03, sigmas=3)
    assert [change.verdict for change in found] == ["no change", "slower"]


def test_other_work_in_most_repetitions_is_no_change() -> None:
    """The median moves by a third, the fastest repetition does not."""
    assert verdict([1.0, 1.01, 1.0, 1.02, 1.01], [1.0, 1.33, 1.35, 1.01, 1.34]) == "no change"


def test_the_command_tells_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(old: Any, new: Any, *options: str) -> Any:
        files = tmp_path / "old.json", tmp_path / "new.json"
        for file, content in zip(files, (old, new), strict=True):
            file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, files), *options])
        try:
            compare.main()
        except SystemExit as end:
            return end.code
        return 0

    run, slow = run_of({"a": [1.0, 1.01, 1.0], "b": [2.0]}), run_of({"a": [1.3, 1.31, 1.3], "c": [2.0]})
    assert status(run, run) == 0
    assert status(run, f"some output before\n{json.dumps(slow)}\n") == 1
    shown = capsys.readouterr().out
    assert "1.300" in shown
    assert "only in the old run: b" in shown
    assert "only in the new run: c" in shown
    assert "1 slower, 0 faster, 0 no change" in shown
    elsewhere = run_of({"a": [1.0]}, environment={**CARD, "cores": 4})
    assert status(run, elsewhere) == 2
    assert "cores 2 and 4" in capsys.readouterr().out
    assert status(run, elsewhere, "--other-machine") == 0
    assert status(run, run_of({"a": [1.0]}, benchmark="stages")) == 2
    assert status(run, "no JSON") == 2
    assert status(run, run_of({})) == 2
    assert "holds no measurements" in capsys.readouterr().out


def test_peak_memory_is_at_least_what_is_held() -> None:
    code = "from benchmarks.common.memory import peak_bytes; held = b'x' * 50_000_000; print(peak_bytes())"
    peak = int(
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    assert 50e6 < peak < 100e6
    assert peak_bytes() > peak / 2


def test_percentiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(3).random(17)
    record = harness.Measurement("a", "s", values.tolist()).record()
    assert [record[name] for name in ("min", "p50", "p90", "p99")] == pytest.approx(
        np.quantile(values, [0, 0.5, 0.9, 0.99])
    )


# --- stages and ideas -------------------------------------------------------------------------------------------------


def test_stages_of_a_family_with_two_text_encoders(exported: Callable[[str], Exported]) -> None:
    with Pipeline.load(exported("sdxl-fp32").bundle, backend="onnxruntime", device="cpu") as pipe:
        bucket = Bucket(2, 6, 10, pipe.bundle.manifest.model.text_encoders[0].max_length)
        one = stages.Stages(pipe, bucket, 2, steps=3, calls=2)
        seconds = stages.measure({"here": one}, repetitions=2)
        least = stages.floors(one, "cpu", {"float32": 1e12, "bytes": 1e15})
    names = {
        "tokenize",
        "text_encoder",
        "text_encoder_2",
        "context",
        "time",
        "denoise",
        "vae_decoder",
        "picture and PNG",
    }
    assert {stage for _, stage in seconds} == names
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
    assert set(least) == names - {"tokenize", "picture and PNG"}
    for graph in least.values():
        # At this bandwidth only the operations count.
        assert graph["floor_ms"] == pytest.approx(graph["gflop"], rel=1e-6)


def test_ideas_compare_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline.load(SHAPES.bundle, backend="onnxruntime", device="cpu") as pipe:
        rows = ideas.rows(pipe, 40, 56, calls=3, repetitions=1)
        assert len(rows) == 3
        loops = ideas.Loops(pipe, 40, 56, 3)
        np.testing.assert_allclose(
            loops.numpy_between(), loops.whole(), rtol=0, atol=1e-4 * np.abs(loops.whole()).max()
        )
        one, two = loops.whole((1.0,)), loops.whole((0.0, 1.0))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * np.abs(two).max())
        # What is drawn in pieces must be what the loop draws, or nothing is timed.
        right = ideas._prediction

        def shrunk(plan: Any, k: int) -> Any:
            found = right(plan, k)
            return replace(found, coefficients=found.coefficients * 0.9)

        monkeypatch.setattr(ideas, "_prediction", shrunk)
        with pytest.raises(RuntimeError, match="nothing was timed"):
            ideas.rows(pipe, 40, 56, calls=3, repetitions=1)


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", 96)
    monkeypatch.setattr(ceilings, "MEGABYTES", 2)
    found = ceilings.rates()
    assert set(found) == {"float32", "bytes"}
    assert all(np.isfinite(rate) and rate > 1e6 for rate in found.values())


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ({"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "gpus": []}, "intel-xeon-processor-2-cores"),
        ({"cpu": "AMD EPYC", "cores": 2, "gpus": []}, "epyc-2-cores"),
        ({"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 8, "gpus": []}, "platinum-8481c-8-cores"),
        ({"cpu": "AMD EPYC 9654 96-Core Processor", "cores": 96, "gpus": []}, "epyc-9654-96-cores"),
        ({"cpu": "AMD EPYC", "cores": 16, "gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}, "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_device_has_a_folder(card: dict[str, Any], name: str) -> None:
    assert bench.device_name(card) == name


@pytest.mark.slow
def test_committed_reports_are_those_of_the_figures(tmp_path: Path) -> None:
    for folder in (ROOT / "benchmarks" / "results").iterdir():
        if folder.is_dir():
            made = tmp_path / folder.name
            made.mkdir()
            assert report.report(tables.load(folder), made) == (folder / "report.md").read_text(encoding="utf-8"), (
                f"python -m benchmarks.reports.report {folder.relative_to(ROOT)}"
            )
            assert {file.name for file in made.glob("*.png")} == {file.name for file in folder.glob("*.png")}


def test_a_report_holds_what_was_measured(tmp_path: Path) -> None:
    fast, slow = [0.5, 0.52, 0.51], [1.5, 1.6, 1.55]
    names = {"shapes: latentrt: latency": fast, "shapes: diffusers: latency": slow}
    results = {
        "model": "shapes",
        "width": 128,
        "height": 128,
        "steps": 7,
        "environments": {"latentrt": "latentrt", "diffusers": "diffusers", "other": "other"},
        "facts": {"latentrt": {"psnr": None}, "diffusers": {"psnr": 61.0}},
        "reasons": {"other": "it cannot be installed"},
    }
    runs = {"peers-shapes": run_of(names, benchmark="peers", results=results)}
    text = report.report(runs, tmp_path)
    assert "AMD EPYC, 2 cores (avx2), 23.5 GiB, 2026-11-03" in text
    assert "| latentrt | 0.51 s | 0.5 – 0.518 s | 1.00 |" in text
    assert "| diffusers | 1.55 s | 1.5 – 1.59 s | 3.04 |" in text
    assert "- other: it cannot be installed" in text
    assert "to its own fp32" not in text
    assert (tmp_path / "peers-shapes.png").stat().st_size > 5000


def test_a_report_tells_quality_at_reduced_precision(tmp_path: Path) -> None:
    """Of pictures, and of UNet calls."""
    results = {
        "model": "medium",
        "width": 256,
        "height": 256,
        "steps": 4,
        "groups": 2,
        "environments": {"peer int8": "peer"},
        "facts": {"peer int8": {"psnr": 30.0, "psnr own": [31.0, 35.0, 33.0], "precision": "int8"}},
        "reasons": {"peer bf16": "this CPU has no instructions for bf16"},
    }
    pictures = {"medium: peer int8: latency": [1.0, 2.0, 3.0]}
    calls: dict[str, Any] = {
        "medium: peer int8: call": [0.1, 0.2, 0.3],
        "medium: peer int8: peak memory": ("MB", [1230.0]),
        "medium: peer int8: UNet on disk": ("MB", [220.0]),
    }
    runs = {
        "peers-medium": run_of(pictures, benchmark="peers", results=results),
        "calls-medium": run_of(calls, benchmark="calls", results=results),
    }
    text = report.report(runs, tmp_path)
    assert "| 30 dB; 33 dB to its own fp32 |" in text
    assert "## UNet calls: medium, 256x256" in text
    assert "| int8 | peer int8 | 200 ms | 100 – 280 ms | 1.23 GB | 220 MB | 33 dB |" in text
    assert text.count("- peer bf16: this CPU has no instructions for bf16") == 2


# --- commands ---------------------------------------------------------------------------------------------------------


def test_benchmarks_of_a_device_are_modules() -> None:
    for device in ("cpu", "cuda"):
        kinds = dict(bench.commands(bench.MODELS["shapes"], device, ["onnxruntime"]))
        assert kinds.keys() >= set(bench.ON_ALL_DEVICES)
        for flag, module, *_ in kinds.values():
            assert flag == "-m"
            assert importlib.util.find_spec(module)


def test_documented_modules_and_files_exist() -> None:
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "Makefile", ROOT / "benchmarks" / "gpu_check.sh"]
    documents += (file for folder in ("benchmarks", "docs") for file in (ROOT / folder).rglob("*.md"))
    documents += (ROOT / "benchmarks").rglob("*.py")
    missing = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        modules = re.findall(r"-m (benchmarks[\w.]*\w)", text)
        missing += [f"{document}: {module}" for module in modules if not importlib.util.find_spec(module)]
        files = re.findall(r"\bbenchmarks/[\w/.-]+\.(?:py|sh|md)\b", text)
        missing += [f"{document}: {file}" for file in files if not (ROOT / file).is_file()]
    assert missing == []
