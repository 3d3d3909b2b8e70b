"""What each worker loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Model:
    """The pipeline of a worker: arguments of `Pipeline.load`, and its LoRAs. Paths are the same on all machines.

    Attributes:
        device: "cpu", "cuda" or None; which of a machine's GPUs is Ray's choice.
        loader: "module:function" that makes the `Pipeline` of a `Model`; for tests.
    """

    bundle: Path | str | None = None
    backend: str = "auto"
    device: str | None = None
    engines: Path | str | None = None
    trust_engines: bool = False
    loras: Mapping[Path | str, float] = field(default_factory=dict)
    loader: str = "latentrt.serve.batch.model:load"


def load(model: Model) -> "Pipeline":
    """Load the pipeline; errors are those of `Pipeline.load` and `Pipeline.set_loras`."""
    from latentrt.runtime.pipeline import Pipeline  # imported here because the driver loads none

    pipe = Pipeline.load(
        model.bundle,
        backend=model.backend,
        device=model.device,
        engines=model.engines,
        trust_engines=model.trust_engines,
    )
    if model.loras:
        pipe.set_loras(model.loras)
    return pipe
