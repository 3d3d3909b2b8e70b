"""latentrt's runtime: generates images from prompts, without PyTorch.

from latentrt.runtime import Pipeline

with Pipeline.load("engines/sd15") as pipe:
    pipe("a photo of an astronaut riding a horse", seed=0).images[0].save("astronaut.png")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentrt.runtime.bundle import Bundle
    from latentrt.runtime.latents import TorchGenerator
    from latentrt.runtime.scheduler import Plan

    from .drawing import Result, Step
    from .errors import (
        BackendError,
        BundleError,
        CheckpointError,
        ExportError,
        InputError,
        LatentRTError,
        NonFiniteError,
        ParityError,
        SchedulerError,
    )
    from .pipeline import Pipeline

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ExportError",
    "InputError",
    "LatentRTError",
    "NonFiniteError",
    "ParityError",
    "Pipeline",
    "Plan",
    "Result",
    "SchedulerError",
    "Step",
    "TorchGenerator",
]

# Modules of the names that are not errors; imported at first use, so that a command loads only what it needs.
_MODULES = {
    "Bundle": "bundle",
    "Pipeline": "pipeline",
    "Plan": "scheduler",
    "Result": "drawing",
    "Step": "drawing",
    "TorchGenerator": "latents",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name, imported at first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
