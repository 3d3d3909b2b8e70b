"""The inputs of `denoise` and `blend` that change with every call. Knows plans and shapes, and no device.

Rows of a call are written from what the host keeps of each slot, so that nothing on the device grows with a plan.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32, RunGraph
from latentrt.runtime.bundle import Graph, TensorSpec
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import REGISTERS

# Inputs of `denoise` that are written for each call; those of `noise` only where a plan draws.
CALL_INPUTS = ("coefficients", "guidance", "guidance_rescale", "time_features")
STRENGTH = "image_strength"  # of UNets with a port for IP-Adapters, written for each call, too
FEATURES_KEPT = 32
_IDENTITY = np.eye(REGISTERS, REGISTERS + 2, dtype=np.float32)

Rows = Mapping[str, NDArray[Any]]


def time_graph(graphs: Mapping[str, Graph]) -> str:
    """The graph that makes time features: a ControlNet has one of its own."""
    return "control_time" if "control" in graphs else "time"


class TimeFeatures:
    """The features of all timesteps of a plan, kept for the last plans. Thread-safe."""

    def __init__(self, run: RunGraph, graph: str = "time") -> None:
        self._run, self._graph = run, graph
        self._kept: OrderedDict[tuple[object, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, trajectory: Trajectory) -> NDArray[Any]:
        """(M, G, F) in the dtype of the graph, bfloat16 as uint16."""
        return self.at(trajectory.plan.timesteps, len(trajectory.context), trajectory.time_inputs)

    def at(self, timesteps: Float32, groups: int, more: Mapping[str, Float32]) -> NDArray[Any]:
        """The same for timesteps (M,) and what else the graph reads, each (G, width)."""
        inputs = {"timesteps": np.repeat(timesteps, groups)}
        for name, array in more.items():
            inputs[name] = np.tile(array, (len(timesteps), 1))
        given = ((name, array.tobytes()) for name, array in more.items())
        key = (groups, timesteps.tobytes(), *given)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        rows = self._run(self._graph, inputs)["time_features"]
        features = rows.reshape(len(timesteps), groups, -1)
        with self._lock:
            self._kept[key] = features
            while len(self._kept) > FEATURES_KEPT:
                self._kept.popitem(last=False)
        return features

    def clear(self) -> None:
        """Forget everything, after a change of weights."""
        with self._lock:
            self._kept.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What the host keeps of a filled slot.

    Attributes:
        features: (M, G, F).
        draws: (M,), row of the trajectory's noise that each call draws; 0 where it draws none.
    """

    trajectory: Trajectory
    features: NDArray[Any]
    draws: NDArray[np.int64]


class CallRows:
    """Writes the rows of each call."""

    def __init__(self, count: int) -> None:
        self._kept: list[_Kept | None] = [None] * count

    def fill(self, slot: int, trajectory: Trajectory, features: NDArray[Any]) -> None:
        """Keep what the calls of a trajectory need."""
        draws = np.where(trajectory.plan.draws, np.cumsum(trajectory.plan.draws), 0)
        self._kept[slot] = _Kept(trajectory, features, draws)

    def move(self, source: int, target: int) -> None:
        """Move a slot; the source keeps nothing."""
        self._kept[target], self._kept[source] = self._kept[source], None

    def draws(self, at: Sequence[int]) -> bool:
        """Whether any slot draws noise in this call."""
        return any(kept.draws[k] for k, kept in self._running(at))

    def masked(self, at: Sequence[int]) -> bool:
        """Whether any slot of this call has a mask."""
        return any(kept.trajectory.mask is not None for _, kept in self._running(at))

    def ports(self, at: Sequence[int]) -> frozenset[str]:
        """The ports that any slot of this call feeds: keys of `PORTS`."""
        found = set[str]()
        for k, kept in self._running(at):
            trajectory = kept.trajectory
            if any(control.runs(k) for control in trajectory.controls):
                found.add("control")
            if trajectory.features is not None and k < trajectory.features.calls:
                found.add("t2i")
            if trajectory.image_prompt is not None and trajectory.image_prompt.strength[k].any():
                found.add("ip-adapter")
        return frozenset(found)

    def ended(self, at: Sequence[int]) -> Iterator[int]:
        """The slots whose features of a T2I-Adapter end with this call."""
        for slot, (k, kept) in enumerate(zip(at, self._kept, strict=False)):
            if kept is not None and kept.trajectory.features is not None and k == kept.trajectory.features.calls:
                yield slot

    def unguided(self, at: Sequence[int]) -> bool:
        """Whether all slots of this call take the last group's prediction alone."""
        return all(_takes_last_group(kept.trajectory.guidance[k]) for k, kept in self._running(at))

    def _running(self, at: Sequence[int]) -> Iterator[tuple[int, _Kept]]:
        for k, kept in zip(at, self._kept, strict=False):
            if k >= 0 and kept is not None:
                yield k, kept

    def write(self, at: Sequence[int], rows: Rows) -> None:
        """Write the rows of a call.

        Args:
            at: the call of each of the first slots, see `Slots.call`; the rows after them rest.
            rows: arrays by name: `CALL_INPUTS`, and `noise` and `blend` where the call needs them.
        """
        for slot in range(len(rows["coefficients"])):
            k = at[slot] if slot < len(at) else -1
            kept = self._kept[slot]
            if kept is not None:
                _write_inputs(kept, max(k, 0), slot, rows)
            if kept is None or k < 0:
                rows["coefficients"][slot] = _IDENTITY
                if STRENGTH in rows:
                    groups = len(rows[STRENGTH]) // len(rows["coefficients"])
                    rows[STRENGTH][slot * groups : (slot + 1) * groups] = 0
                if "noise" in rows:
                    rows["noise"][slot] = 0


def _write_inputs(kept: _Kept, k: int, slot: int, rows: Rows) -> None:
    plan, groups = kept.trajectory.plan, kept.features.shape[1]
    guidance = kept.trajectory.guidance[k]
    rows["coefficients"][slot] = plan.coefficients[k]
    rows["guidance"][slot] = guidance
    rows["guidance_rescale"][slot] = 0 if _takes_last_group(guidance) else kept.trajectory.guidance_rescale
    rows["time_features"][slot * groups : (slot + 1) * groups] = kept.features[k]
    if "noise" in rows:
        rows["noise"][slot] = kept.trajectory.noise[kept.draws[k]] if kept.draws[k] else 0
    if "blend" in rows:
        rows["blend"][slot] = plan.blend[k]
    if STRENGTH in rows:
        picture = kept.trajectory.image_prompt
        rows[STRENGTH][slot * groups : (slot + 1) * groups] = 0 if picture is None else picture.strength[k]


def ports_of(denoise: Graph) -> dict[str, list[TensorSpec]]:
    """The inputs of each port that a graph has, but for `STRENGTH`, which is written for each call."""
    named = [spec for spec in denoise.inputs if spec.name != STRENGTH]
    found = {port: [s for s in named if s.name.startswith(prefix)] for port, prefix in PORTS.items()}
    return {port: specs for port, specs in found.items() if specs}


def known_parts(trajectory: Trajectory) -> dict[str, NDArray[np.float32] | float]:
    """The inputs of `blend` that stay; an image without a mask keeps its whole state: 1 * state + 0 * 0."""
    if trajectory.mask is None or trajectory.clean is None:
        return {"mask": 1.0, "clean": 0.0, "noise": 0.0}
    return {"mask": trajectory.mask, "clean": trajectory.clean, "noise": trajectory.noise[0]}


def _takes_last_group(guidance: NDArray[np.float32]) -> bool:
    return bool(guidance[-1] == 1 and not guidance[:-1].any())
