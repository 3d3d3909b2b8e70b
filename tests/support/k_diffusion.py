"""k-diffusion's sampling functions, the reference for the samplers of web UIs.

The package is installed without its dependencies: its `sampling.py` needs none of those that are stubbed here.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any


def sampling() -> Any:
    """The module `k_diffusion.sampling`."""
    files = importlib.metadata.files("k-diffusion") or []
    path = next(file.locate() for file in files if file.name == "sampling.py")
    stubs = {name: ModuleType(name) for name in ("torchdiffeq", "torchsde", "k_diffusion", "k_diffusion.utils")}
    stubs["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    stubs["k_diffusion"].utils = stubs["k_diffusion.utils"]  # type: ignore[attr-defined]
    stubs["k_diffusion.utils"].append_dims = _append_dims  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _standing_in(stubs):
        spec.loader.exec_module(module)
    return module


def diffusers_sde() -> Any:
    """The module of diffusers' DPMSolverSDEScheduler, which diffusers hides where torchsde is not installed."""
    stub = ModuleType("torchsde")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchsde", None)
    with _standing_in({"torchsde": stub}):
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")


def _append_dims(x: Any, dims: int) -> Any:
    return x.reshape(x.shape + (1,) * (dims - x.ndim))


@contextlib.contextmanager
def _standing_in(stubs: Mapping[str, ModuleType]) -> Iterator[None]:
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
