"""What a ControlNet reads in each call, for each slot. Knows weights and timesteps, and no device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.protocols import Control, Trajectory

from .tables import TimeFeatures

# Inputs of `control` that are written for each call.
NET_INPUTS = ("weights", "time_features")


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A slot that the net has a say in; `features` is (M, G, F)."""

    control: Control
    features: NDArray[Any]


class NetRows:
    """Writes the rows of one net for each call."""

    def __init__(self, net: str, count: int, features: TimeFeatures) -> None:
        self.net = net
        self._features = features
        self._kept: list[_Kept | None] = [None] * count

    def fill(self, slot: int, trajectory: Trajectory) -> Control | None:
        """Keep what the calls of a trajectory need; returns what it asks of the net."""
        control = next((control for control in trajectory.controls if control.net == self.net), None)
        self._kept[slot] = None
        if control is not None:
            groups = len(trajectory.context)
            features = self._features.at(trajectory.plan.timesteps, groups, control.time_inputs)
            self._kept[slot] = _Kept(control, features)
        return control

    def move(self, source: int, target: int) -> None:
        """Move a slot; the source keeps nothing."""
        self._kept[target], self._kept[source] = self._kept[source], None

    def run(self, at: Sequence[int]) -> bool:
        """Whether the net has a say in this call."""
        return any(
            k >= 0 and kept is not None and kept.control.runs(k) for k, kept in zip(at, self._kept, strict=False)
        )

    def write(self, at: Sequence[int], rows: Mapping[str, NDArray[Any]], count: int) -> None:
        """Write the rows of `NET_INPUTS` for a call of `count` images; weights are 0 where the net has no say."""
        groups = len(rows["weights"]) // count
        for slot in range(count):
            k = at[slot] if slot < len(at) else -1
            kept, own = self._kept[slot], slice(slot * groups, (slot + 1) * groups)
            if kept is None or k < 0:
                rows["weights"][own] = 0
                continue
            rows["weights"][own] = kept.control.weights[k]
            rows["time_features"][own] = kept.features[k]
