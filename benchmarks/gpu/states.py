"""Each register of the state after each call of the loop, against a float64 replay on the host.

The replay applies the plan's coefficients in float64 to the backend's state before the call, and to a prediction of
ONNX Runtime on the CPU for that state. Each call is checked on its own, so an error shows in the call and register
where it occurs.
"""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime import Pipeline, Plan, TorchGenerator
from latentrt.runtime.loop import resident
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import REGISTERS, resolve

from .backends import ensure_engines
from .places import TOLERANCE, Place, on_each_backend
from .report import Report

Float64 = NDArray[np.float64]
SCHEDULERS = ("dpm++_2m_karras", "euler_a", "pndm", "heun", "unipc")
PROMPT, SCALE = ("", "a small blue circle on a white background"), 5.0


def run(place: Place, report: Report, steps: int = 6) -> None:
    """Check all schedulers on all backends; the error of a register is relative to its largest value."""
    engines = ensure_engines(place, report, "plain")
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        ids = cpu.tokenizer.encode(list(PROMPT)).ids
        context = cpu.run("text_encoder", {"input_ids": ids})["hidden_states"][:, 0]
        predict = predictor(cpu, context)
        config = cpu.bundle.read_json(cpu.bundle.manifest.scheduler)

        def compare(backend: str, pipe: Pipeline) -> None:
            for name in SCHEDULERS:
                plan = Plan.from_config(resolve(name, config), steps)
                errors = np.stack(list(state_errors(pipe, plan, context, predict)))
                call, register = np.unravel_index(errors.argmax(), errors.shape)
                report.at_most(
                    f"{backend}: {name}, worst in call {call} of {len(plan)}, register {register}",
                    float(errors.max()),
                    TOLERANCE,
                )

        on_each_backend(place, report, compare, engines=engines)


def predictor(cpu: Pipeline, context: NDArray[np.float32]) -> Callable[[Float64, np.float32], Float64]:
    """A function from sample and timestep to the guided prediction (C, h, w): `denoise` with a table that copies it."""
    keys = cpu.run("context", {"hidden_states": context})
    table = np.zeros((1, REGISTERS, REGISTERS + 2), np.float32)
    table[0, 0, REGISTERS] = 1

    def predict(sample: Float64, timestep: np.float32) -> Float64:
        state = np.zeros((1, REGISTERS, *sample.shape), np.float32)
        state[0, 0] = sample
        features = cpu.run("time", {"timesteps": np.full(2, timestep, np.float32)})
        inputs = {
            "state": state,
            "coefficients": table,
            "guidance": np.array([[1 - SCALE, SCALE]], np.float32),
            "guidance_rescale": np.zeros(1, np.float32),
            "noise": state[:, 0] * 0,
        }
        prediction: Float64 = cpu.run("denoise", inputs | features | keys)["next_state"][0, 0].astype(np.float64)
        return prediction

    return predict


def state_errors(
    pipe: Pipeline, plan: Plan, context: NDArray[np.float32], predict: Callable[[Float64, np.float32], Float64]
) -> Iterator[Float64]:
    """(R,) for each call: the largest error of each register, relative to its largest value; 0 where both are zero."""
    manifest = pipe.bundle.manifest
    model, defaults = manifest.model, manifest.defaults
    height, width = defaults.height // model.vae_scale_factor, defaults.width // model.vae_scale_factor
    shape = (model.latent_channels, height, width)
    generator = TorchGenerator(23)
    noise = np.stack([generator.randn(shape) for _ in range(1 + int(plan.draws.sum()))])
    draws = iter(noise[1:].astype(np.float64))
    state = np.tensordot(plan.initial.astype(np.float64), np.stack([noise[0], noise[0] * 0]).astype(np.float64), 1)
    guidance = np.tile(np.array([1 - SCALE, SCALE], np.float32), (len(plan), 1))
    trajectory = Trajectory(plan, context, guidance, noise)
    with closing(pipe.slots(trajectory.bucket, 1)) as slots:
        calls = resident.run(slots, [trajectory])
        for (call,), table, timestep, draw in zip(calls, plan.coefficients, plan.timesteps, plan.draws, strict=True):
            fresh = next(draws) if draw else np.zeros(shape)
            columns = np.concatenate([state, predict(state[0], timestep)[None], fresh[None]])
            expected = np.tensordot(table.astype(np.float64), columns, 1)
            state = np.stack([call.fetch(r).result() for r in range(REGISTERS)]).astype(np.float64)
            largest = np.abs(expected).max(axis=(1, 2, 3))
            errors = np.abs(state - expected).max(axis=(1, 2, 3))
            yield np.where(errors == 0, 0.0, errors / np.maximum(largest, np.finfo(np.float32).tiny))
