"""ControlNets and adapters in a batch that changes at every call: each image is what it is alone."""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
from support.exports import Exported
from support.trajectories import alone, coming_and_going, steered, trajectories

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.host_nets import HostNets
from latentrt.runtime.protocols import Bucket

BUCKET = Bucket(2, 9, 7, 77)


@pytest.fixture(params=["onnxruntime", "openvino"])
def pipe(request: pytest.FixtureRequest, exported: Callable[[str], Exported]) -> Iterator[Pipeline]:
    checkpoint = exported("sd1-ports-fp32")
    nets = {"first": exported("sd1-net").bundle, "second": exported("sd1-bgr").bundle}
    with Pipeline.load(checkpoint.bundle, backend=request.param, device="cpu", controls=nets) as pipeline:
        yield pipeline


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_a_changing_batch_draws_what_each_draws_alone(pipe: Pipeline, count: int) -> None:
    """To the bit on ONNX Runtime."""
    wanted = steered(pipe, trajectories(pipe, BUCKET, count, seed=15, masks=True), seed=4)
    assert {len(one.controls) for one in wanted} == {0, 1, 2}
    with closing(pipe.slots(BUCKET, 4)) as slots:
        got = coming_and_going(slots, wanted, seed=6)
    for number, trajectory in enumerate(wanted):
        own = alone(pipe, trajectory)
        if pipe.backend.startswith("onnxruntime"):
            assert np.array_equal(got[number], own), number
        assert relative_error(got[number], own) < 1e-5, number


def test_what_steers_an_image_has_an_effect(pipe: Pipeline) -> None:
    plain = trajectories(pipe, BUCKET, 5, seed=18)
    for one, other in zip(plain, steered(pipe, plain, seed=7), strict=True):
        steers = other.controls or other.image_prompt or other.features
        assert (relative_error(alone(pipe, other), alone(pipe, one)) > 1e-3) == bool(steers)


def test_a_net_that_keeps_its_weights_of_another_call_is_found(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails if residuals of an earlier call stay."""
    right = HostNets.run
    wanted = steered(pipe, trajectories(pipe, BUCKET, 12, seed=15), seed=4)
    calls = []

    def sometimes(self: HostNets, *arguments: object) -> object:
        calls.append(0)
        return right(self, *arguments) if len(calls) % 2 else self.residuals  # type: ignore[arg-type]

    monkeypatch.setattr(HostNets, "run", sometimes)
    with closing(pipe.slots(BUCKET, 4)) as slots:
        got = coming_and_going(slots, wanted, seed=6)
    monkeypatch.undo()
    assert max(relative_error(got[i], alone(pipe, one)) for i, one in enumerate(wanted)) > 1e-3


def test_buffers_come_with_the_first_image_that_needs_them(pipe: Pipeline) -> None:
    plain, *_, two = steered(pipe, trajectories(pipe, BUCKET, 4, seed=3), seed=2)
    with closing(pipe.slots(BUCKET, 2)) as slots:
        slots.fill(0, plain)
        slots.call(np.int32([0]))
        assert not slots._ports._fed
        assert not slots._ports._nets._sets
        blocks = {id(array.base if array.base is not None else array) for array in slots._ports.zeros.values()}
        assert len({array.__array_interface__["data"][0] for array in slots._ports.zeros.values()}) == 1, blocks
        slots.fill(1, two)
        slots.call(np.int32([1, 0]))
        assert len(slots._ports._nets._nets) == 2
