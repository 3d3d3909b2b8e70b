"""The arrays that a loop over several plans reads: coefficients, timesteps, noise. Knows only plans and shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.scheduler import REGISTERS, Plan


@dataclass(frozen=True, slots=True, eq=False)
class LoopTables:
    """Inputs of a loop over several plans; shorter plans are padded with calls that keep the state unchanged.

    Attributes:
        timesteps: (M, B) float32.
        coefficients: (M, B, R, R+2) float32.
        noise: for each of M calls (B, C, h, w) float32, or None if no plan draws.
        state: (B, R, C, h, w) float32, the first state.
    """

    timesteps: Float32
    coefficients: Float32
    noise: tuple[Float32 | None, ...]
    state: Float32

    @staticmethod
    def from_plans(plans: Sequence[Plan], noise: Sequence[Float32], clean: Float32 | None) -> "LoopTables":
        """Stack plans; arguments as for `Denoiser.run`."""
        calls, batch = max(map(len, plans)), len(plans)
        timesteps = np.zeros((calls, batch), np.float32)
        coefficients = np.zeros((calls, batch, REGISTERS, REGISTERS + 2), np.float32)
        coefficients[:, :, range(REGISTERS), range(REGISTERS)] = 1
        draws: list[Float32 | None] = [None] * calls
        state = np.empty((batch, REGISTERS, *noise[0].shape[1:]), np.float32)
        for b, (plan, drawn) in enumerate(zip(plans, noise, strict=True)):
            timesteps[: len(plan), b] = plan.timesteps
            coefficients[: len(plan), b] = plan.coefficients
            known = drawn[0] * 0 if clean is None else clean[b]
            state[b] = np.tensordot(plan.initial, np.stack([drawn[0], known]), 1)
            for call, fresh in zip(np.flatnonzero(plan.draws), drawn[1:], strict=True):
                if draws[call] is None:
                    draws[call] = np.zeros((batch, *drawn.shape[1:]), np.float32)
                draws[call][b] = fresh  # type: ignore[index]
        return LoopTables(timesteps, coefficients, tuple(draws), state)

    def padded(self, batch: int) -> "LoopTables":
        """Pad to a larger batch; the state of added images stays zero."""
        added = batch - self.state.shape[0]
        if not added:
            return self
        return LoopTables(
            timesteps=np.pad(self.timesteps, ((0, 0), (0, added))),
            coefficients=np.pad(self.coefficients, ((0, 0), (0, added), (0, 0), (0, 0))),
            noise=tuple(None if fresh is None else _with_zeros(fresh, added) for fresh in self.noise),
            state=_with_zeros(self.state, added),
        )


@dataclass(frozen=True, slots=True, eq=False)
class KnownParts:
    """Inputs of the graph `blend`, which puts known latents back after each call.

    Attributes:
        fixed: `mask` (B, 1, h, w), `clean` and `noise` (B, C, h, w).
        blend: (M, B, 2) float32; after the end of a plan, its last row is repeated.
    """

    fixed: Mapping[str, Float32]
    blend: Float32

    @staticmethod
    def from_plans(plans: Sequence[Plan], noise: Sequence[Float32], clean: Float32, mask: Float32) -> "KnownParts":
        """Stack plans; arguments as for `Denoiser.run`."""
        calls = max(map(len, plans))
        rows = [np.pad(plan.blend, ((0, calls - len(plan)), (0, 0)), mode="edge") for plan in plans]
        first = np.stack([drawn[0] for drawn in noise])
        return KnownParts({"mask": mask, "clean": clean, "noise": first}, np.stack(rows, axis=1))

    def padded(self, batch: int) -> "KnownParts":
        """Pad to a larger batch."""
        added = batch - self.blend.shape[1]
        fixed = {name: _with_zeros(array, added) for name, array in self.fixed.items()}
        return KnownParts(fixed, np.pad(self.blend, ((0, 0), (0, added), (0, 0))))


def time_rows(timesteps: Float32, groups: int, time_inputs: Mapping[str, Float32]) -> dict[str, Float32]:
    """Inputs of the graph `time`, one row per call, image and group; timesteps are (M, B)."""
    rows = {"timesteps": np.repeat(timesteps, groups, axis=1).ravel()}
    for name, array in time_inputs.items():
        rows[name] = np.tile(array.reshape(-1, array.shape[-1]), (len(timesteps), 1))
    return rows


def _with_zeros(array: Float32, rows: int) -> Float32:
    return np.concatenate([array, np.zeros((rows, *array.shape[1:]), array.dtype)])
