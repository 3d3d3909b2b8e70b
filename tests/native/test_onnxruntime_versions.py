"""The library with other versions of ONNX Runtime than the one that is installed, from their Python packages."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.exports import SHAPES, Exported
from support.native import BACKEND, INPUT, NativeError, NativePipeline

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error

# The oldest version whose functions are those of the headers, and the one before it.
OLDEST, TOO_OLD = "1.21.0", "1.20.1"


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The library file of a version."""

    def fetched(number: str) -> Path:
        folder = tmp_path_factory.mktemp(f"onnxruntime-{number}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, f"onnxruntime=={number}", "-d", folder], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if "capi/libonnxruntime.so" in name)
            return Path(archive.extract(name, folder))

    return fetched


@pytest.mark.slow
def test_the_oldest_version_draws(version: Callable[[str], Path], exported: Callable[[str], Exported]) -> None:
    """Graphs of opset 18; those of opset 23 are refused with the reason."""
    bundle, library = exported("sd2-fp32-opset18").bundle, version(OLDEST)
    options = {"num_inference_steps": 4, "seed": 12, "height": 64, "width": 72}
    with NativePipeline(bundle, onnxruntime=library) as native:
        drawn = native.draw("a fox", **options)
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as pipe:
        expected = pipe("a fox", **options)  # type: ignore[arg-type]
    assert relative_error(drawn.latents[0], np.asarray(expected.latents[0])) <= 1e-4
    with pytest.raises(
        NativeError, match=r"need ONNX Runtime 1\.23 or later, and this is 1\.21\.0.*--opset 18"
    ) as refused:
        NativePipeline(SHAPES.bundle, onnxruntime=library)
    assert refused.value.status == BACKEND


@pytest.mark.slow
def test_an_older_version_is_refused(version: Callable[[str], Path]) -> None:
    with pytest.raises(NativeError, match=r"is ONNX Runtime 1\.20\.1: expected 1\.21 or later") as refused:
        NativePipeline(SHAPES.bundle, onnxruntime=version(TOO_OLD))
    assert refused.value.status == BACKEND


def test_what_is_no_onnxruntime(tmp_path: Path) -> None:
    for name, text in (("libm.so.6", "libm.so.6 is not ONNX Runtime"), (str(tmp_path / "x.so"), "cannot be loaded")):
        with pytest.raises(NativeError, match=text) as refused:
            NativePipeline(SHAPES.bundle, onnxruntime=name)
        assert refused.value.status == BACKEND


@pytest.mark.parametrize(
    ("provider", "options", "text"),
    [
        ("tpu", {}, "provider='tpu': expected one of 'cpu', 'cuda', 'tensorrt', 'nv_tensorrt_rtx'"),
        ("cpu", {"a": "b"}, "the provider cpu takes no options"),
        ("cuda", {"enable_cuda_graph": "1"}, "the option 'enable_cuda_graph' is not covered"),
    ],
)
def test_providers(provider: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(NativeError, match=text) as refused:
        NativePipeline(SHAPES.bundle, provider=provider, options=options)
    assert refused.value.status == INPUT


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv_tensorrt_rtx"])
def test_providers_that_this_build_lacks(provider: str) -> None:
    """The wheel for CPUs has none of them: its own error is handed on by the opening, and nothing falls back."""
    with pytest.raises(NativeError, match=f"the provider {provider}: .*onnxruntime-gpu") as refused:
        NativePipeline(SHAPES.bundle, provider=provider)
    assert refused.value.status == BACKEND
