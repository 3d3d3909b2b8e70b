"""The denoising loop on host arrays, for libraries that run a graph on given buffers.

Knows the order of calls and which buffer goes where; knows nothing about the libraries. Two state buffers alternate, so
the state is never copied.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import NO_INPUTS, Float32
from latentrt.runtime.protocols import Bucket, DenoiseStep, Engine
from latentrt.runtime.scheduler import Plan

from .tables import KnownParts, LoopTables, time_rows

Arrays = Mapping[str, NDArray[Any]]
# Runs a graph on its bound buffers, after rebinding these inputs.
BoundCall = Callable[[Arrays], None]


class HostEngine(Engine, Protocol):
    """An engine that can be bound to arrays of the caller."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind contiguous arrays. Every call reads the current content of the inputs and writes to the outputs."""


class HostDenoiser:
    """The loop for one bucket of sizes. Thread-safe: each run has its own buffers."""

    def __init__(self, parts: Sequence[HostEngine], bucket: Bucket, *, blend: Callable[[], HostEngine]) -> None:
        """`parts` are the engines of time, context and denoise; `blend` creates its engine when needed."""
        self._time, self._context, self._denoise = parts
        self._bucket, self._blend = bucket, blend

    def run(
        self,
        plans: Sequence[Plan],
        *,
        context: Float32,
        guidance: Float32,
        guidance_rescale: Float32,
        noise: Sequence[Float32],
        clean: Float32 | None = None,
        time_inputs: Mapping[str, Float32] = NO_INPUTS,
        extra: Float32 | None = None,
        mask: Float32 | None = None,
    ) -> Iterator[DenoiseStep]:
        """See `Denoiser.run`."""
        tables = LoopTables.from_plans(plans, noise, clean)
        features = self._time_features(tables.timesteps, time_inputs)
        keys_and_values = self._context.run({"hidden_states": context.reshape(-1, *context.shape[2:])})
        fixed = {"guidance": guidance, "guidance_rescale": guidance_rescale, **keys_and_values}
        if extra is not None:
            fixed["extra"] = extra
        states = tables.state, np.zeros_like(tables.state)
        denoise = [
            self._denoise.bind({**fixed, "state": state}, {"next_state": next_state})
            for state, next_state in (states, states[::-1])
        ]
        known = None if mask is None or clean is None else KnownParts.from_plans(plans, noise, clean, mask)
        if known is not None:
            # `blend` writes back to the buffer that `denoise` reads, so the buffers do not alternate.
            blend = self._blend().bind({**known.fixed, "state": states[1]}, {"next_state": states[0]})
        quiet, total = np.zeros_like(tables.state[:, 0]), len(tables.timesteps)
        for k in range(total):
            turn = k % 2 if known is None else 0
            target, fresh = states[1 - turn], tables.noise[k]
            noise_of_call = quiet if fresh is None else fresh
            rows = {"coefficients": tables.coefficients[k], "time_features": features[k], "noise": noise_of_call}
            denoise[turn](rows)
            if known is not None:
                blend({"blend": known.blend[k]})
                target = states[0]
            yield DenoiseStep(k, total, partial(_register, target))

    def _time_features(self, timesteps: Float32, time_inputs: Mapping[str, Float32]) -> NDArray[Any]:
        """(M, B*G, F)."""
        features = self._time.run(time_rows(timesteps, self._bucket.groups, time_inputs))["time_features"]
        return features.reshape(len(timesteps), -1, features.shape[1])


def _register(state: Float32, register: int) -> Float32:
    """A copy of one register, (B, C, h, w)."""
    return state[:, register].copy()
