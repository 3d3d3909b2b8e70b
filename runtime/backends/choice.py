"""Selects the backend for a bundle: the requested one, or the best one that works on this machine."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.backends.ort.on_cpu import OrtBackend
from latentrt.runtime.backends.ort.session import available_devices, require_device
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle import AnyBundle, ControlBundle, EngineList
from latentrt.runtime.errors import BackendError, unknown
from latentrt.runtime.gpu.device import has_driver
from latentrt.runtime.protocols import Backend

from .openvino_backend import OpenVinoBackend, openvino_is_installed

logger = logging.getLogger(__name__)

BACKENDS = ("auto", *TRT_BACKENDS, "openvino", "onnxruntime")


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """Arguments for creating a backend; the engine list is read once."""

    bundle: AnyBundle
    engines: EngineList
    trust_engines: bool
    nets: "tuple[tuple[str, _Wish], ...]" = ()


def load_backend(
    bundle: AnyBundle,
    backend: str,
    device: str | None,
    *,
    engines: Path | None = None,
    trust_engines: bool = False,
    controls: Mapping[str, ControlBundle] | None = None,
) -> Backend:
    """See `Pipeline.load`; control bundles run on the same backend, with engines of their own folders."""
    if backend not in BACKENDS:
        raise BackendError(unknown("backend", backend, BACKENDS))
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BackendError(f"unknown device {device!r}; expected cpu, cuda, or cuda:N for one of several GPUs")
    nets = [(name, _Wish(one, EngineList.of_bundle(one), trust_engines)) for name, one in (controls or {}).items()]
    wish = _Wish(bundle, EngineList.of_bundle(bundle, engines), trust_engines, tuple(nets))
    if backend in TRT_BACKENDS:
        return _tensorrt(wish, backend, device)
    if backend == "openvino":
        return _openvino(wish, device)
    # Without a driver, the engines are meant for another machine: skip them without a warning.
    if backend == "auto" and device != "cpu" and has_driver():
        built = {record.backend for record in wish.engines.engines}
        for name in filter(built.__contains__, TRT_BACKENDS):
            try:
                return _tensorrt(wish, name, device)
            except BackendError as error:
                logger.warning("%s is not used: %s", name, error)
    if backend == "auto" and device == "cpu":
        return _best_on_cpu(wish)
    if device is not None:
        return _onnxruntime(wish, device)
    if (on_gpu := _onnxruntime_on_cuda(wish)) is not None:
        return on_gpu
    return _best_on_cpu(wish) if backend == "auto" else _onnxruntime_on_cpu(wish)


def _tensorrt(wish: _Wish, backend: str, device: str | None) -> Backend:
    if device == "cpu":
        raise BackendError(f"{backend} runs on NVIDIA GPUs only: use backend='onnxruntime' for the CPU")
    from .trt.backend import TrtBackend  # imported here because it is not needed without a GPU

    def load(one: _Wish) -> TrtBackend:
        return TrtBackend(
            one.bundle,
            one.engines,
            backend=backend,
            device_index=_index(device or "cuda"),
            trust_engines=one.trust_engines,
            nets={name: load(net) for name, net in one.nets},
        )

    return load(wish)


def _onnxruntime(wish: _Wish, device: str) -> Backend:
    if device == "cpu":
        return _onnxruntime_on_cpu(wish)
    require_device("cuda")
    from .ort.on_gpu import OrtCudaBackend  # imported here because it is not needed without a GPU

    loaded = OrtCudaBackend(wish.bundle, wish.engines, device_index=_index(device))
    for name, net in wish.nets:
        loaded.add_net(name, net.bundle, net.engines)
    return loaded


def _onnxruntime_on_cpu(wish: _Wish) -> OrtBackend:
    return OrtBackend(wish.bundle, wish.engines, {name: _onnxruntime_on_cpu(net) for name, net in wish.nets})


def _index(device: str) -> int:
    return int(device.removeprefix("cuda").removeprefix(":") or 0)


def _openvino(wish: _Wish, device: str | None) -> Backend:
    if device not in (None, "cpu"):
        raise BackendError(f"openvino runs on CPUs only, not on {device!r}: use device='cpu' or another backend")
    return OpenVinoBackend(wish.bundle, {name: OpenVinoBackend(net.bundle) for name, net in wish.nets})


def _onnxruntime_on_cuda(wish: _Wish) -> Backend | None:
    """None without CUDA; logs a warning if CUDA exists but does not work."""
    if "cuda" in available_devices():
        try:
            return _onnxruntime(wish, "cuda")
        except BackendError as error:
            logger.warning("onnxruntime-cuda is not used: %s", error)
    return None


def _best_on_cpu(wish: _Wish) -> Backend:
    """The backend that a bundle was quantized for; for others OpenVINO. Else the other one, with a warning."""
    installed = {"openvino": openvino_is_installed(), "onnxruntime": bool(available_devices())}
    if not any(installed.values()):
        raise BackendError(
            "no backend is installed: pip install 'latentrt[cpu]', or for NVIDIA GPUs pip install 'latentrt[cuda]'"
        )
    quantized = wish.bundle.manifest.recipe.quantization
    best, other = "openvino", "onnxruntime"
    if quantized is not None and quantized.target != "openvino":  # of TensorRT's graphs OpenVINO has fewer kernels
        best, other = other, best
    if not installed[best]:
        best, other = other, best
    if quantized is not None and quantized.target != best:
        text = "%s was quantized for %s, which cannot run here: %s draws it, more slowly"
        logger.warning(text, wish.bundle.path, quantized.target, best)
    if not installed[other]:
        return _on_cpu(wish, best)
    try:
        return _on_cpu(wish, best)
    except BackendError as error:
        logger.warning("%s is not used: %s", best, error)
    return _on_cpu(wish, other)


def _on_cpu(wish: _Wish, name: str) -> Backend:
    return _openvino(wish, "cpu") if name == "openvino" else _onnxruntime_on_cpu(wish)
