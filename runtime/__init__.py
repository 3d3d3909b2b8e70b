"""latentrt's runtime: generates images from prompts, without PyTorch.

from latentrt.runtime import Pipeline

with Pipeline.load("engines/sd15") as pipe:
    pipe("a photo of an astronaut riding a horse", seed=0).images[0].save("astronaut.png")
"""

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.scheduler import Plan

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
from .pipeline import Pipeline, Result, Step

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
