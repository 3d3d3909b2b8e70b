"""diffusers' own schedulers as the reference for plans: both are driven by the same nonlinear toy model."""

import importlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.scheduler import Plan

TOLERANCE = 2e-5
TIMESTEP_TOLERANCE = 2e-3
SHAPE = (4, 4, 4)
SEED = 7


def toy_model(x: np.ndarray, t: Any) -> np.ndarray:
    return 0.9 * np.tanh(0.7 * x + 0.001 * float(t)) + 0.1 * np.sin(3 * x)


def diffusers_scheduler(config: dict[str, Any]) -> Any:
    import diffusers
    import torch

    scheduler_class = getattr(diffusers, config["_class_name"])
    with pytest.MonkeyPatch.context() as patch:
        # Some constructors lay out 1000 steps, which takes longer than all that is compared.
        patch.setattr(scheduler_class, "set_timesteps", lambda self, *_: setattr(self, "sigmas", torch.zeros(1)))
        return scheduler_class(**{k: v for k, v in config.items() if not k.startswith("_")})


class WideTorch:
    """`torch` for a scheduler's module, whose casts to float32 keep float64."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.float32 = torch, torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)


WIDENED = ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "alphas_cumprod", "final_alpha_cumprod")


def run_diffusers(
    scheduler: Any, eta: float, *, wide: bool, begin: int = 0, end: int | None = None, clean: np.ndarray | None = None
) -> dict[str, Any]:
    """Model inputs of every call and the end, clean predictions (None where the class keeps them to itself)."""
    import torch

    name = type(scheduler).__name__
    module = importlib.import_module(type(scheduler).__module__)
    dtype = torch.float64 if wide else torch.float32
    generator = torch.Generator().manual_seed(SEED)

    def draw(shape: Any, **_: Any) -> Any:
        return torch.randn(shape, generator=generator).to(dtype)

    if wide:
        for attribute in WIDENED:
            # The classes that step in sigmas have no other use for alphas_cumprod than their table of sigmas.
            by_sigma = hasattr(scheduler, "sigmas")
            if hasattr(scheduler, attribute) and by_sigma == attribute.startswith("sigmas"):
                setattr(scheduler, attribute, getattr(scheduler, attribute).double())
    if name == "LMSDiscreteScheduler":
        scheduler.sigmas = scheduler.sigmas.numpy()  # its integrals index them thousands of times
    times = scheduler.timesteps[begin:end]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    noise = draw(SHAPE)
    if clean is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        add_noise = getattr(scheduler, "add_noise", None)
        known = torch.from_numpy(clean).to(dtype)
        x = add_noise(known, noise, times[:1]) if add_noise else scheduler.scale_noise(known, times[:1], noise)
    inputs, predictions = [], []
    extra = {"eta": eta} if name in ("DDIMScheduler", "TCDScheduler") else {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", draw)
        if wide:
            patch.setattr(module, "torch", WideTorch(torch))
        for t in times:
            inputs.append((scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x).numpy())
            output = torch.from_numpy(toy_model(inputs[-1], t)).to(dtype)
            result = scheduler.step(output, t, x, **extra)
            x = result.prev_sample
            predictions.append(getattr(result, "denoised", getattr(result, "pred_original_sample", None)))
    inputs.append(x.numpy())
    return {"timesteps": times.numpy(), "inputs": inputs, "clean": predictions}


def run_plan(plan: Plan, *, wide: bool, clean: np.ndarray | None = None) -> dict[str, Any]:
    generator = TorchGenerator(SEED)
    noise = generator.randn(SHAPE)
    inputs = [plan.initial[0, 0] * noise + (0 if clean is None else plan.initial[0, 1] * clean)]
    predictions = []
    noise = noise.astype(np.float64) if wide else noise
    for state in plan.states(toy_model, noise, clean, lambda: generator.randn(SHAPE)):
        inputs.append(state[0])
        predictions.append(state[-1])
    largest = float(np.abs(plan.coefficients).max())
    return {"timesteps": plan.timesteps, "inputs": inputs, "clean": predictions, "largest": largest}


def difference(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = TOLERANCE) -> str:
    """What differs by more than it may; empty where nothing does.

    A plan's coefficients are float32: where they are very large (20,000 for the cosine schedule with noise prediction),
    their rounding alone is more than the usual tolerance.
    """
    allowed = max(tolerance, 2.0**-24 * ours["largest"])
    if len(ours["timesteps"]) != len(theirs["timesteps"]):
        return f"{len(ours['timesteps'])} calls, diffusers has {len(theirs['timesteps'])}"
    off = float(np.abs(ours["timesteps"] - theirs["timesteps"]).max())
    if off > (0 if theirs["timesteps"].dtype.kind == "i" else TIMESTEP_TOLERANCE):
        return f"timesteps differ by {off:.1e}"
    for name in ("inputs", "clean"):
        for i, (a, b) in enumerate(zip(ours[name], theirs[name], strict=True)):
            if b is not None:
                error = float(np.abs(np.asarray(b) - a).max() / np.abs(np.asarray(b)).max())
                if not error <= allowed:
                    return f"{name} at call {i} differ by {error:.1e}"
    return ""


def product(**choices: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Every combination, as keyword arguments."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))
