"""Imports TensorRT or TensorRT for RTX, which share a Python API, and collects their logged errors."""

import importlib
import logging
import threading
from functools import cache
from typing import Any

from latentrt.runtime.errors import BackendError, InputError, unknown

logger = logging.getLogger(__name__)

TRT_BACKENDS = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx"}  # module -> extra that installs it

# What TensorRT for RTX can say about an engine -> what is wrong, and what to do.
REASONS = {
    "VERSION_MISMATCH": "it was built with another version (build it again)",
    "UNSUPPORTED_CC": "it does not support this GPU (build it for its compute capability, or use another backend)",
    "OLD_CUDA_DRIVER": "NVIDIA's driver is too old (update it)",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old (update it)",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory (close other programs, or use a smaller model)",
    "MALFORMED_ENGINE": "its file is damaged (build it again)",
    "CUDA_ERROR": "CUDA does not work here",
}


# What the message begins with that lists the layers of an engine that has just been built.
LAYERS = ("Layers:", "Engine Layer Information:")


class TrtLibrary:
    """An installed library: `trt` is the module, `version` is, for example, "10.16.1.11"."""

    def __init__(self, backend: str) -> None:
        """Raises `InputError` for an unknown name, `BackendError` if it cannot be imported."""
        if backend not in TRT_BACKENDS:
            raise InputError(unknown("backend", backend, TRT_BACKENDS))
        try:
            self.trt: Any = importlib.import_module(backend)
        except ImportError as error:
            extra = TRT_BACKENDS[backend]
            raise BackendError(f"{backend} cannot be imported ({error}): pip install 'latentrt[{extra}]'") from error
        self.backend, self.version = backend, str(self.trt.__version__)
        self.log = _logger_of(self.trt)

    def why_invalid(self, runtime: Any, serialized: bytes) -> str | None:
        """Why an engine cannot run with this GPU and driver, as far as the library says so; None if it can."""
        if not hasattr(runtime, "get_engine_validity"):  # TensorRT has no such method
            return None
        validity, diagnostics = runtime.get_engine_validity(serialized)
        if validity != self.trt.EngineValidity.INVALID:
            return None
        known = self.trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = [REASONS.get(name, name) for name, bit in known if int(diagnostics) & int(bit)]
        return f"{self.backend} {self.version} says that {', and '.join(reasons) or 'it is invalid'}"

    def last_errors(self) -> str:
        """The last errors that the library logged since `forget_errors`, on one line."""
        return " ".join("; ".join(self.log.errors[-3:] or ["the library gave no reason"]).split())

    def take_layers(self) -> str:
        """What the library logged of the layers of the engine that this thread has just built; "" if nothing."""
        return str(self.log.layers.pop(threading.get_ident(), ""))

    def forget_errors(self) -> None:
        """Clear recorded errors."""
        self.log.errors.clear()


@cache  # the library keeps the first logger of a process, which must stay alive
def _logger_of(trt: Any) -> Any:
    """A logger that forwards everything to `logging`, and records errors."""
    severity = trt.ILogger.Severity
    levels = {severity.VERBOSE: logging.DEBUG, severity.INFO: logging.DEBUG, severity.WARNING: logging.INFO}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers: dict[int, str] = {}  # by thread, as several may build at once

        def log(self, level: Any, message: str) -> None:
            if level not in levels:
                self.errors.append(message)
            elif message.startswith(LAYERS):
                self.layers[threading.get_ident()] = message
            logger.log(levels.get(level, logging.INFO), "%s: %s", trt.__name__, message)

    return Log()
