"""Batches that change at every call, on the simulated GPU: what the host waits for, what is queued, what is freed."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.exports import Exported
from support.simulator import Machine, machine
from support.trajectories import alone, coming_and_going, error, trajectories

from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.loop.gpu_work import GpuWork
from latentrt.runtime.loop.resident import Resident, run
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.scheduler import REGISTERS, resolve

BUCKET = Bucket(2, 16, 16, 77)  # as the engines that are built for fixed sizes: one image, four images


@pytest.fixture(params=["tensorrt_rtx", "onnxruntime"])
def there(request: pytest.FixtureRequest, engines: Path) -> Iterator[tuple[Machine, Pipeline]]:
    """A pipeline on a GPU, and its machine."""
    on_gpu = {"onnxruntime": {}} if request.param == "onnxruntime" else {}
    with machine(**on_gpu) as gpu:
        with Pipeline.load(backend=request.param, engines=engines, device="cuda") as pipe:
            yield gpu, pipe
        assert not any(gpu.cuda.held.values()), gpu.cuda.held


@pytest.mark.parametrize("count", [4, 3])
def test_a_changing_batch_draws_what_each_draws_alone(
    there: tuple[Machine, Pipeline], ort: Pipeline, count: int
) -> None:
    _, pipe = there
    wanted = trajectories(pipe, BUCKET, 8, seed=11, masks=pipe.backend.startswith("onnxruntime"))
    with closing(pipe.slots(BUCKET, count)) as slots:
        assert list(slots.counts) == [1, 2, 4 if "tensorrt" in pipe.backend else count]
        got = coming_and_going(slots, wanted, seed=3)
    for number, trajectory in enumerate(wanted):
        assert error(got[number], alone(ort, trajectory)) < 1e-5, number


def test_sizes_of_a_range(there: tuple[Machine, Pipeline], ort: Pipeline) -> None:
    """On TensorRT one engine for one and two images, and masks."""
    _, pipe = there
    bucket = Bucket(2, 9, 12, 77)
    wanted = trajectories(pipe, bucket, 5, seed=4, masks=True)
    with closing(pipe.slots(bucket, 2)) as slots:
        got = coming_and_going(slots, wanted, seed=8)
    for number, trajectory in enumerate(wanted):
        assert error(got[number], alone(ort, trajectory)) < 1e-5, number


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl-fp32", "sd1-inpaint-fp32"])
def test_inputs_of_other_families(exported: Callable[[str], Exported], name: str) -> None:
    bundle, bucket = exported(name).bundle, Bucket(2, 6, 10, 77)
    with machine(onnxruntime={}), Pipeline.load(bundle, backend="onnxruntime", device="cuda") as pipe:
        wanted = trajectories(pipe, bucket, 4, seed=6)
        with closing(pipe.slots(bucket, 2)) as slots:
            got = coming_and_going(slots, wanted, seed=2)
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as cpu:
        for number, trajectory in enumerate(wanted):
            assert error(got[number], alone(cpu, trajectory)) < 1e-5, number


def test_rows_of_two_slots_that_are_swapped_are_found(
    there: tuple[Machine, Pipeline], ort: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above fail if keys and values come to the neighbour."""
    _, pipe = there
    fill = GpuWork.fill_context
    monkeypatch.setattr(GpuWork, "fill_context", lambda *given: fill(*given[:-1], given[-1] ^ 1))
    wanted = trajectories(pipe, BUCKET, 4, seed=11)
    with closing(pipe.slots(BUCKET, 4)) as slots:
        last = [p.fetch(0).result() for passed in run(slots, wanted) for p in passed if p.finished]
    assert max(error(got, alone(ort, trajectory)[0]) for got, trajectory in zip(last, wanted, strict=True)) > 1e-2


def test_a_moved_state_is_the_same_to_the_bit(there: tuple[Machine, Pipeline]) -> None:
    _, pipe = there
    with closing(pipe.slots(BUCKET, 4)) as slots:
        for slot, trajectory in enumerate(trajectories(pipe, BUCKET, 3, seed=3)):
            slots.fill(slot, trajectory)
        slots.call(np.int32([0, 0, 0]))
        before = [slots.fetch(2, register).result() for register in range(REGISTERS)]
        slots.move(2, 0)
        assert np.array_equal([slots.fetch(0, register).result() for register in range(REGISTERS)], before)


# --- what is queued, and what is waited for ---------------------------------------------------------------------------


def warm(pipe: Pipeline, count: int) -> Resident:
    """Slots that ran both directions of all batches twice, and are filled."""
    slots = pipe.slots(BUCKET, count)
    resident = Resident(slots)
    wanted = trajectories(pipe, BUCKET, count, seed=1)
    for number in range(1, count + 1):
        long = replace(wanted[number - 1], plan=_long(pipe), guidance=np.tile(wanted[0].guidance[:1], (60, 1)))
        resident.join(long)
        for _ in range(4):
            resident.step()
    return resident


def _long(pipe: Pipeline) -> Plan:
    return Plan.from_config(resolve("ddim", pipe.bundle.read_json(pipe.bundle.manifest.scheduler)), 60)


@pytest.mark.parametrize("count", [1, 4])
def test_a_call_costs_three_calls_of_the_driver_and_one_wait(there: tuple[Machine, Pipeline], count: int) -> None:
    gpu, pipe = there
    resident = warm(pipe, count)
    calls, waits = len(gpu.cuda.calls), len(gpu.cuda.waits)
    for _ in range(5):
        resident.step()
    launch = [] if pipe.backend.startswith("onnxruntime") else ["cudaGraphLaunch"]  # ONNX Runtime launches by itself
    assert gpu.cuda.calls[calls:] == ["cudaMemcpyAsync", *launch, "cudaEventRecord", "cudaEventSynchronize"] * 5
    assert gpu.cuda.waits[waits:] == ["cudaEventSynchronize"] * 5
    resident._slots.close()


def test_at_most_two_calls_are_unfinished(there: tuple[Machine, Pipeline]) -> None:
    gpu, pipe = there
    resident = warm(pipe, 4)
    gpu.cuda.most_unfinished = 0
    for _ in range(8):
        resident.step()
    assert gpu.cuda.most_unfinished == 2
    resident._slots.close()


def test_reading_one_slot_does_not_drain_the_stream(there: tuple[Machine, Pipeline]) -> None:
    """What is behind a copy stays pending; a preview is there within two calls."""
    gpu, pipe = there
    resident = warm(pipe, 4)
    passed = resident.step()
    copies = [passed[slot].fetch(REGISTERS - 1) for slot in (2, 0)]
    pending = gpu.cuda.pending
    copies[0].result()
    assert 0 < gpu.cuda.pending < pending
    resident.step()
    copies[1].result()
    assert gpu.cuda.pending > 0
    resident._slots.close()


def test_joining_and_leaving_take_effect_within_two_calls(there: tuple[Machine, Pipeline], ort: Pipeline) -> None:
    _, pipe = there
    one, other, late = trajectories(pipe, BUCKET, 3, seed=2)
    with closing(pipe.slots(BUCKET, 4)) as slots:
        resident = Resident(slots)
        tickets = [resident.join(one), resident.join(other)]
        resident.step()
        resident.leave(tickets[0])
        new = resident.join(late)
        passed = resident.step()
        assert [(p.ticket, p.index) for p in passed] == [(tickets[1], 1), (new, 0)]
        preview = passed[1].fetch(0).result()
        with closing(ort.slots(BUCKET, 1)) as own:
            (only,) = next(run(own, [late]))
            assert error(preview, only.fetch(0).result()) < 1e-5
