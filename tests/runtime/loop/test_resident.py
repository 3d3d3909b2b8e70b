"""A batch that changes at every call: each image is what it is alone, to the bit on CPUs.

OpenVINO compiles for a single slot apart, so there the bits are those of an image alone in several slots.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.exports import Exported
from support.trajectories import alone, coming_and_going, state_of, trajectories

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.loop.resident import Resident, run
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.scheduler import REGISTERS

BUCKET = Bucket(2, 6, 10, 77)
COMPILED = {"onnxruntime-cpu": 1, "openvino-cpu": 2}  # OpenVINO compiles for one slot, and for several


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with Pipeline.load(backend=request.param, device="cpu") as pipeline:
        yield pipeline


@pytest.mark.parametrize(("bucket", "count"), [(BUCKET, 3), (replace(BUCKET, groups=1), 2)])
def test_a_changing_batch_draws_what_each_draws_alone(pipe: Pipeline, bucket: Bucket, count: int) -> None:
    wanted = trajectories(pipe, bucket, 9, seed=5, masks=True)
    with closing(pipe.slots(bucket, count)) as slots:
        got = coming_and_going(slots, wanted, seed=1)
    for number, trajectory in enumerate(wanted):
        assert np.array_equal(got[number], alone(pipe, trajectory, COMPILED[pipe.backend])), number


def test_a_full_batch_draws_what_each_draws_alone(pipe: Pipeline) -> None:
    wanted = trajectories(pipe, BUCKET, 5, seed=8)
    with closing(pipe.slots(BUCKET, 5)) as slots:
        last = {p.ticket: state_of(p) for passed in run(slots, wanted) for p in passed if p.finished}
    for ticket, state in last.items():
        assert np.array_equal(state, alone(pipe, ticket.trajectory, COMPILED[pipe.backend]))
    assert len(last) == 5


def test_one_slot_and_several(pipe: Pipeline) -> None:
    for trajectory in trajectories(pipe, BUCKET, 2, seed=21, masks=True):
        assert relative_error(alone(pipe, trajectory, 4), alone(pipe, trajectory)) < 1e-5


@pytest.mark.parametrize("name", ["sdxl-fp32", "sd1-inpaint-fp32"])
def test_inputs_of_other_families(exported: dict[str, Exported], name: str) -> None:
    with Pipeline.load(exported(name).bundle, backend="onnxruntime", device="cpu") as pipe:
        wanted = trajectories(pipe, BUCKET, 4, seed=2)
        with closing(pipe.slots(BUCKET, 2)) as slots:
            got = coming_and_going(slots, wanted, seed=4)
        for number, trajectory in enumerate(wanted):
            assert np.array_equal(got[number], alone(pipe, trajectory)), number


@pytest.mark.parametrize("method", ["fill", "move"])
def test_a_row_in_the_wrong_slot_is_found(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The test above fails if two rows of keys and values are swapped."""
    right = getattr(HostSlots, method)

    def swap(self: HostSlots, slot: int, other: object) -> None:
        right(self, slot, other)
        keys = next(array for name, array in self._inputs.items() if name.startswith("key"))
        keys[[0, 2]] = keys[[2, 0]]

    monkeypatch.setattr(HostSlots, method, swap)
    wanted = trajectories(pipe, BUCKET, 9, seed=5)
    with closing(pipe.slots(BUCKET, 3)) as slots:
        got = coming_and_going(slots, wanted, seed=1)
    monkeypatch.undo()
    assert not all(np.array_equal(got[n], alone(pipe, trajectory, 2)) for n, trajectory in enumerate(wanted))


def test_a_moved_state_is_the_same_to_the_bit(pipe: Pipeline) -> None:
    with closing(pipe.slots(BUCKET, 3)) as slots:
        for slot, trajectory in enumerate(trajectories(pipe, BUCKET, 3, seed=3, masks=True)):
            slots.fill(slot, trajectory)
        slots.call(np.int32([0, 0, 0]))
        before = [slots.fetch(2, register).result() for register in range(REGISTERS)]
        slots.move(2, 0)
        assert np.array_equal([slots.fetch(0, register).result() for register in range(REGISTERS)], before)


def test_a_slot_that_rests_keeps_its_state(pipe: Pipeline) -> None:
    with closing(pipe.slots(BUCKET, 2)) as slots:
        for slot, trajectory in enumerate(trajectories(pipe, BUCKET, 2, seed=6)):
            slots.fill(slot, trajectory)
        slots.call(np.int32([0, 0]))
        before = [slots.fetch(1, register).result() for register in range(REGISTERS)]
        slots.call(np.int32([1, -1]))
        assert np.array_equal([slots.fetch(1, register).result() for register in range(REGISTERS)], before)


class Counted:
    """Slots that note the number of rows of each call."""

    def __init__(self, slots: HostSlots) -> None:
        self.rows: list[int] = []
        self._slots = slots

    def __getattr__(self, name: str) -> object:
        return getattr(self._slots, name)

    def call(self, at: NDArray[np.int32]) -> None:
        self.rows.append(len(at))
        self._slots.call(at)


def test_joining_leaving_and_reading_take_effect_at_the_next_call(pipe: Pipeline) -> None:
    first, second, third = trajectories(pipe, BUCKET, 3, seed=7)
    with closing(pipe.slots(BUCKET, 3)) as slots:
        counted = Counted(slots)
        resident = Resident(counted)
        tickets = [resident.join(first), resident.join(second)]
        resident.step()
        late = resident.join(third)
        passed = resident.step()
        assert [(p.ticket, p.index) for p in passed] == [(tickets[0], 1), (tickets[1], 1), (late, 0)]
        resident.leave(tickets[0])
        preview = passed[2].fetch(REGISTERS - 1).result()
        after = resident.step()
        assert {p.ticket for p in after} == {tickets[1], late}
        assert counted.rows == [2, 3, 2]
        with closing(pipe.slots(BUCKET, COMPILED[pipe.backend])) as own:
            (only,) = next(run(own, [third]))
            assert np.array_equal(only.fetch(REGISTERS - 1).result(), preview)


def test_what_cannot_be_done_is_refused(pipe: Pipeline) -> None:
    one, other = trajectories(pipe, BUCKET, 2, seed=9)
    with closing(pipe.slots(BUCKET, 1)) as slots:
        resident = Resident(slots)
        assert resident.step() == ()
        assert not resident.busy
        with pytest.raises(InputError, match="cannot join slots"):
            resident.join(replace(one, noise=one.noise[:, :, :4]))
        ticket = resident.join(one)
        (passed,) = resident.step()
        with pytest.raises(InputError, match="all 1 slots are taken"):
            resident.join(other)
        passed.fetch(0)  # as nothing has changed
        resident.step()
        with pytest.raises(InputError, match="state after call 0 is no longer available"):
            passed.fetch(0)
        resident.leave(ticket)
        assert resident.free == 1
        assert not resident.busy
