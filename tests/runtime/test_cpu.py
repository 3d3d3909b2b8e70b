"""What this CPU has, what that means for a bundle, and which backend `auto` takes on a CPU."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.exports import SHAPES

from latentrt.runtime import BackendError, Pipeline, cpu, cpu_hints
from latentrt.runtime.backends import choice
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.manifest import Manifest, Quantization
from latentrt.runtime.cli.main import main

CPUINFO = {
    "epyc": "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 bmi2\nprocessor\t: 1\nflags\t\t: fpu sse2 avx avx2 bmi2\n",
    "zen4": "flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n",
    "alder lake": "vmx flags\t: amx_bf16\nflags\t\t: avx2 avx_vnni\n",
    "sapphire rapids": "flags\t\t: amx_int8 amx_bf16 avx_vnni avx512_vnni avx512_bf16 avx512f avx2\n",
    "graviton3": "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\nCPU implementer\t: 0x41\n",
    "none": "processor\t: 0\n",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this machine look like one of `CPUINFO`."""

    def become(name: str) -> None:
        file = tmp_path / name
        file.write_text(CPUINFO[name])
        monkeypatch.setattr(cpu, "CPUINFO", file)

    return become


def manifest(precision: str = "fp32", *, to: str = "", target: str = "") -> Manifest:
    found = Bundle.open(SHAPES.bundle).manifest
    quantization = None
    if to:
        numbers = {"prompts": 8, "prompts_sha256": "", "source_sha256": "", "gate_mean": 0.1, "gate_worst": 0.2}
        errors = {"error_mean": 0.05, "error_worst": 0.1, "psnr": 40.0}
        report: dict[str, Any] = {"report": "report.json", "calibration": None}
        quantization = Quantization(to=to, target=target, level=3.0, graphs=("denoise",), **numbers, **errors, **report)
    recipe = replace(found.recipe, precision=precision, vae_precision=precision, quantization=quantization)
    return replace(found, recipe=recipe)


@pytest.mark.parametrize(
    ("name", "instructions", "bf16", "int8"),
    [
        ("epyc", ("avx2",), False, False),
        ("zen4", ("avx2", "avx512f", "avx512_bf16", "avx512_vnni"), True, True),
        ("alder lake", ("avx2", "avx_vnni"), False, True),
        (
            "sapphire rapids",
            ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"),
            True,
            True,
        ),
        ("graviton3", ("asimd", "asimddp", "bf16", "i8mm", "sve"), True, True),
        ("none", (), False, False),
    ],
)
def test_instructions(
    machine: Callable[[str], None], name: str, instructions: tuple[str, ...], bf16: bool, int8: bool
) -> None:
    machine(name)
    assert (cpu.cpu_instructions(), cpu.has_bf16(), cpu.has_int8()) == (instructions, bf16, int8)
    assert cpu.int8_overflows() == (name == "epyc")


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "missing")
    assert cpu.cpu_instructions() == ()
    assert not [*cpu_hints.cpu_hints(manifest()), *cpu_hints.cpu_hints(manifest("bf16"))]


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("epyc", {}, []),
        ("alder lake", {}, ["has int8: latentrt quantize"]),
        ("zen4", {}, ["has bf16: latentrt export --precision bf16", "has int8: latentrt quantize"]),
        ("zen4", {"precision": "fp16"}, []),
        ("zen4", {"precision": "bf16"}, []),
        ("epyc", {"precision": "bf16"}, ["no instructions for bf16: the bundle runs in float32"]),
        ("zen4", {"to": "int8", "target": "openvino"}, []),
        ("epyc", {"to": "int8", "target": "onnxruntime"}, ["no instructions for int8"]),
        ("epyc", {"to": "int8-weights", "target": "openvino"}, []),
        ("zen4", {"to": "fp8", "target": "tensorrt"}, ["quantized for TensorRT"]),
    ],
)
def test_hints(machine: Callable[[str], None], name: str, facts: dict[str, str], said: list[str]) -> None:
    machine(name)
    found = list(cpu_hints.cpu_hints(manifest(**facts)))
    assert len(found) == len(said)
    assert all(part in hint for part, hint in zip(said, found, strict=True))


def test_where_hints_are_shown(
    machine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In `latentrt info`, but where there is a GPU, and in the log of a pipeline on the CPU."""
    machine("zen4")
    for gpu in (False, True):
        monkeypatch.setattr("latentrt.runtime.gpu.device.has_driver", lambda gpu=gpu: gpu)
        assert main(["info", str(SHAPES.bundle)]) == 0
        assert ("this CPU has bf16" in capsys.readouterr().out) is not gpu
    with caplog.at_level(logging.INFO, "latentrt"), Pipeline.load(device="cpu"):
        assert "this CPU has int8" in caplog.text


@pytest.mark.parametrize(
    ("target", "installed", "expected", "warned"),
    [
        (None, "both", "openvino", False),
        (None, "onnxruntime", "onnxruntime", False),
        ("openvino", "both", "openvino", False),
        ("openvino", "onnxruntime", "onnxruntime", True),
        ("onnxruntime", "both", "onnxruntime", False),
        ("onnxruntime", "openvino", "openvino", True),
        ("tensorrt", "both", "onnxruntime", True),
        ("tensorrt", "openvino", "openvino", True),
    ],
)
def test_auto_takes_what_a_bundle_was_quantized_for(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    target: str | None,
    installed: str,
    expected: str,
    warned: bool,
) -> None:
    bundle = Bundle(SHAPES.bundle, manifest() if target is None else manifest(to="int8", target=target))
    monkeypatch.setattr(choice, "openvino_is_installed", lambda: installed != "onnxruntime")
    monkeypatch.setattr(choice, "available_devices", lambda: () if installed == "openvino" else ("cpu",))
    for name in ("OpenVinoBackend", "OrtBackend"):
        monkeypatch.setattr(choice, name, lambda *_, name=name: SimpleNamespace(name=name))
    found = choice.load_backend(bundle, "auto", "cpu")
    assert found.name == {"openvino": "OpenVinoBackend", "onnxruntime": "OrtBackend"}[expected]
    assert (f"was quantized for {target}, which cannot run here: {expected} draws it" in caplog.text) == warned
    assert len(caplog.records) == warned


def test_auto_takes_the_other_one_where_the_first_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise BackendError("no kernels")

    monkeypatch.setattr(choice, "openvino_is_installed", lambda: True)
    monkeypatch.setattr(choice, "OrtBackend", fails)
    monkeypatch.setattr(choice, "OpenVinoBackend", lambda *_: SimpleNamespace(name="openvino"))
    found = choice.load_backend(Bundle(SHAPES.bundle, manifest(to="int8", target="onnxruntime")), "auto", "cpu")
    assert found.name == "openvino"
    assert "onnxruntime is not used: no kernels" in caplog.text
    monkeypatch.setattr(choice, "OpenVinoBackend", fails)
    with pytest.raises(BackendError, match="no kernels"):
        choice.load_backend(Bundle(SHAPES.bundle, manifest()), "auto", "cpu")
