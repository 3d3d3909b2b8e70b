"""A batch that may change at every UNet call: trajectories join, advance by one call at a time, and leave.

Knows slots and plans; knows nothing about libraries, prompts or requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.protocols import Fetch, Slots, Trajectory


class Ticket:
    """A trajectory's place in a `Resident`: the calls that it has made, and whether it has left."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.calls = 0
        self.left = False


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A UNet call that a trajectory has made.

    Attributes:
        index, total: of the call, counted from 0.
    """

    ticket: Ticket
    index: int
    total: int
    _resident: "Resident"
    _slot: int
    _moment: int

    @property
    def finished(self) -> bool:
        """Whether this was the last call; the slot is free for another trajectory."""
        return self.index == self.total - 1

    def fetch(self, register: int) -> Fetch:
        """Start copying a register: 0 is the sample, R-1 the predicted clean latents.

        Raises `InputError` after the next step or join, when the state is no longer there.
        """
        return self._resident._fetch(self, register)


class Resident:
    """Trajectories in slots. Used by one thread at a time.

    Slots stay dense: at a join or step, the last one moves into a hole, so that a call needs the fewest rows.
    """

    def __init__(self, slots: Slots, *, padded: bool = False) -> None:
        """`padded`: every call runs all rows, so that no image depends on how many are there."""
        self._slots, self._padded = slots, padded
        self._tickets: list[Ticket] = []  # by slot; those that have left stay until the next change
        self._moment = 0  # counts everything that changes a slot

    @property
    def busy(self) -> bool:
        """Whether a trajectory has calls to make."""
        return any(not ticket.left for ticket in self._tickets)

    @property
    def free(self) -> int:
        """How many more trajectories can join."""
        return self._slots.counts[-1] - sum(not ticket.left for ticket in self._tickets)

    def join(self, trajectory: Trajectory) -> Ticket:
        """Add a trajectory; it makes its first call in the next step.

        Raises `InputError` if all slots are taken, or if its sizes are not those of the slots.
        """
        if trajectory.bucket != self._slots.bucket:
            raise InputError(f"a trajectory of {trajectory.bucket} cannot join slots of {self._slots.bucket}")
        if not self.free:
            raise InputError(f"all {self._slots.counts[-1]} slots are taken: step until one has left")
        self._close_gaps()
        ticket = Ticket(trajectory)
        self._moment += 1
        self._slots.fill(len(self._tickets), trajectory)
        self._tickets.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Cancel a trajectory; its slot is free at once. May be called twice, and after it has finished."""
        ticket.left = True

    def step(self) -> Sequence[Passed]:
        """Run one UNet call for all trajectories; those that have finished have left. Empty if none is there."""
        self._close_gaps()
        if not self._tickets:
            return ()
        self._moment += 1
        at = [ticket.calls for ticket in self._tickets]
        resting = self._slots.counts[-1] - len(at) if self._padded else 0
        self._slots.call(np.array(at + [-1] * resting, np.int32))
        passed = []
        for slot, ticket in enumerate(self._tickets):
            index, total = ticket.calls, len(ticket.trajectory.plan)
            ticket.calls += 1
            ticket.left = ticket.calls == total
            passed.append(Passed(ticket, index, total, self, slot, self._moment))
        return passed

    def _close_gaps(self) -> None:
        """Move the last trajectories into the slots of those that have left."""
        slot = 0
        while slot < len(self._tickets):
            if not self._tickets[slot].left:
                slot += 1
                continue
            last = self._tickets.pop()
            if slot < len(self._tickets):
                self._tickets[slot] = last
                if not last.left:
                    self._moment += 1
                    self._slots.move(len(self._tickets), slot)

    def _fetch(self, passed: Passed, register: int) -> Fetch:
        if passed._moment != self._moment:
            raise InputError(
                f"the state after call {passed.index} is no longer available: read it before the next step"
            )
        return self._slots.fetch(passed._slot, register)


def run(slots: Slots, trajectories: Sequence[Trajectory]) -> Iterator[Sequence[Passed]]:
    """Run trajectories together until all have finished; yields after every UNet call."""
    resident = Resident(slots)
    for trajectory in trajectories:
        resident.join(trajectory)
    while resident.busy:
        yield resident.step()
