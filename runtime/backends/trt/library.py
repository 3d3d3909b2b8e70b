"""TensorRT and TensorRT for RTX, which share their Python interface: the module, its logger, its errors."""

import importlib
import logging
from functools import cache
from typing import Any

from latentrt.runtime.errors import BackendError, InputError, unknown

logger = logging.getLogger(__name__)

TRT_BACKENDS = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx"}  # module -> extra that installs it


class TrtLibrary:
    """An installed library. `trt` is its module, `version` such as "10.16.1.11"."""

    def __init__(self, backend: str) -> None:
        """Raises `InputError` for an unknown name, `BackendError` where it is not installed."""
        if backend not in TRT_BACKENDS:
            raise InputError(unknown("backend", backend, TRT_BACKENDS))
        try:
            self.trt: Any = importlib.import_module(backend)
        except ImportError as error:
            extra = TRT_BACKENDS[backend]
            raise BackendError(f"{backend} cannot be imported ({error}): pip install 'latentrt[{extra}]'") from error
        self.backend, self.version = backend, str(self.trt.__version__)
        self.log = _logger_of(self.trt)

    def last_errors(self) -> str:
        """What the library logged as errors since `forget_errors`, on one line, whatever it writes."""
        return " ".join("; ".join(self.log.errors[-3:] or ["the library gave no reason"]).split())

    def forget_errors(self) -> None:
        """Clear recorded errors."""
        self.log.errors.clear()


@cache  # the library keeps the first logger of a process, and must not outlive it
def _logger_of(trt: Any) -> Any:
    """Warnings and below go to `logging`; errors are kept as well."""
    severity = trt.ILogger.Severity
    levels = {severity.VERBOSE: logging.DEBUG, severity.INFO: logging.DEBUG, severity.WARNING: logging.INFO}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level not in levels:
                self.errors.append(message)
            logger.log(levels.get(level, logging.INFO), "%s: %s", trt.__name__, message)

    return Log()
