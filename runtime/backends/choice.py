"""Which backend runs a bundle: the one that was asked for, or the best that works here."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from latentrt.runtime.backends.ort.on_cpu import OrtBackend
from latentrt.runtime.backends.ort.session import available_devices, require_device
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.errors import BackendError, unknown
from latentrt.runtime.gpu.device import has_driver
from latentrt.runtime.protocols import Backend

from .openvino_backend import OpenVinoBackend, openvino_is_installed

logger = logging.getLogger(__name__)

BACKENDS = ("auto", *TRT_BACKENDS, "openvino", "onnxruntime")


def load_backend(
    bundle: Bundle, backend: str, device: str | None, *, engines: Path | None = None, trust_engines: bool = False
) -> Backend:
    """See `Pipeline.load`."""
    if backend not in BACKENDS:
        raise BackendError(unknown("backend", backend, BACKENDS))
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BackendError(f"device {device!r} is unknown: choose cpu, cuda, or one of several GPUs such as cuda:1")
    if backend in TRT_BACKENDS:
        return _tensorrt(bundle, backend, device, engines, trust_engines)
    if backend == "openvino":
        return _openvino(bundle, device)
    # Without a driver the engines are for other machines, and there is nothing to warn of.
    if backend == "auto" and device != "cpu" and has_driver():
        for name in _built(bundle, engines):
            try:
                return _tensorrt(bundle, name, device, engines, trust_engines)
            except BackendError as error:
                logger.warning("%s is not used: %s", name, error)
    if backend == "auto" and device == "cpu":
        return _best_on_cpu(bundle, engines)
    if device is not None:
        return _onnxruntime(bundle, device, engines)
    if (on_gpu := _onnxruntime_on_cuda(bundle, engines)) is not None:
        return on_gpu
    return _best_on_cpu(bundle, engines) if backend == "auto" else OrtBackend(bundle, engines=engines)


def _built(bundle: Bundle, engines: Path | None) -> Iterator[str]:
    """Backends that there are engines of, best first: nobody who has none wants to hear of them."""
    found = {record.backend for record in EngineList.of_bundle(bundle, engines).engines}
    return (name for name in TRT_BACKENDS if name in found)


def _tensorrt(bundle: Bundle, backend: str, device: str | None, engines: Path | None, trust_engines: bool) -> Backend:
    if device == "cpu":
        raise BackendError(f"{backend} runs on NVIDIA GPUs only: choose backend='onnxruntime' for the CPU")
    from latentrt.runtime.backends.trt.backend import TrtBackend  # here, as it is not needed without a GPU

    index = _index(device or "cuda")
    return TrtBackend(bundle, backend, device_index=index, engines=engines, trust_engines=trust_engines)


def _onnxruntime(bundle: Bundle, device: str, engines: Path | None) -> Backend:
    if device == "cpu":
        return OrtBackend(bundle, engines=engines)
    require_device("cuda")
    from latentrt.runtime.backends.ort.on_gpu import OrtCudaBackend  # here, as it is not needed without a GPU

    backend = OrtCudaBackend(bundle, device_index=_index(device), engines=engines)
    try:
        backend.fitted("time", {"n": 1})  # a small graph: what is missing shows now
    except BackendError:
        backend.close()
        raise
    return backend


def _index(device: str) -> int:
    return int(device.removeprefix("cuda").removeprefix(":") or 0)


def _openvino(bundle: Bundle, device: str | None) -> Backend:
    if device not in (None, "cpu"):
        raise BackendError(f"openvino runs on CPUs here, not on {device!r}: choose device='cpu' or another backend")
    return OpenVinoBackend(bundle)


def _onnxruntime_on_cuda(bundle: Bundle, engines: Path | None) -> Backend | None:
    """None without CUDA; where it should work and does not, that is warned about."""
    if "cuda" in available_devices():
        try:
            return _onnxruntime(bundle, "cuda", engines)
        except BackendError as error:
            logger.warning("onnxruntime-cuda is not used: %s", error)
    return None


def _best_on_cpu(bundle: Bundle, engines: Path | None) -> Backend:
    """OpenVINO where it is installed and reads the bundle, else ONNX Runtime."""
    if openvino_is_installed():
        try:
            return _openvino(bundle, "cpu")
        except BackendError as error:
            logger.warning("openvino is not used: %s", error)
    if not available_devices():
        raise BackendError(
            "no backend is installed: pip install 'latentrt[cpu]', or for NVIDIA GPUs pip install 'latentrt[cuda]'"
        )
    return OrtBackend(bundle, engines=engines)
