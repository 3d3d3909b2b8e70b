"""Trajectories that have little in common, and batches that they join and leave."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.arrays import DTYPES, Float32
from latentrt.runtime.bundle import TensorSpec, shape_at, takes
from latentrt.runtime.loop.resident import Passed, Resident, Ticket, run
from latentrt.runtime.protocols import AdapterFeatures, Bucket, Control, ImagePrompt, Slots, Trajectory
from latentrt.runtime.scheduler import resolve

SCHEDULERS = ("ddim", "euler_a", "dpm++_2m_karras", "heun", "unipc", "dpm2_a")


def trajectories(pipe: Pipeline, bucket: Bucket, count: int, seed: int, *, masks: bool = False) -> list[Trajectory]:
    """Different schedulers, lengths, texts and guidance; with `masks`, every third one has a mask."""
    rng = np.random.default_rng(seed)
    return [_one(pipe, bucket, rng, i, mask=masks and i % 3 == 0) for i in range(count)]


def _one(pipe: Pipeline, bucket: Bucket, rng: np.random.Generator, i: int, *, mask: bool) -> Trajectory:
    manifest, normal = pipe.bundle.manifest, lambda *shape: rng.standard_normal(shape, np.float32)
    channels, groups = manifest.model.latent_channels, bucket.groups
    config = pipe.bundle.read_json(manifest.scheduler)
    plan = Plan.from_config(resolve(SCHEDULERS[i % len(SCHEDULERS)], config), int(rng.integers(2, 6)))
    width = next(spec.shape[-1] for spec in pipe.bundle.graph("context").inputs)
    scale = rng.uniform(1.5, 6)
    weights = np.float32([1 - scale, scale] if groups == 2 else [1])
    time = pipe.bundle.graph("time").inputs
    inpaints = takes(pipe.bundle.graph("denoise"), "extra")
    guidance = np.tile(weights, (len(plan), 1))
    if groups == 2 and i % 2:
        guidance[int(rng.integers(1, len(plan))) :] = 0, 1
    return Trajectory(
        plan,
        context=normal(groups, bucket.tokens, int(width)),
        guidance=guidance,
        noise=normal(1 + int(plan.draws.sum()), channels, bucket.height, bucket.width),
        guidance_rescale=float(rng.choice([0, 0.7])),
        clean=normal(channels, bucket.height, bucket.width) if mask else None,
        mask=(rng.random((1, bucket.height, bucket.width)) < 0.5).astype(np.float32) if mask else None,
        extra=normal(channels + 1, bucket.height, bucket.width) if inpaints else None,
        time_inputs={s.name: normal(groups, int(s.shape[1])) for s in time if s.name != "timesteps"},
    )


def alone(pipe: Pipeline, trajectory: Trajectory, count: int = 1) -> Float32:
    """(R, C, h, w), the last state of a trajectory in `count` slots of its own."""
    with closing(pipe.slots(trajectory.bucket, count)) as slots:
        *_, (last,) = run(slots, [trajectory])
        return state_of(last)


def state_of(passed: Passed) -> Float32:
    """(R, C, h, w)."""
    fetches = [passed.fetch(register) for register in range(passed.ticket.trajectory.plan.coefficients.shape[1])]
    return np.stack([fetch.result() for fetch in fetches])


def coming_and_going(slots: Slots, wanted: Sequence[Trajectory], seed: int) -> list[Float32]:
    """The last state of each trajectory, from a batch that they join and others leave at random calls."""
    rng = np.random.default_rng(seed)
    resident, waiting, found = Resident(slots), list(range(len(wanted))), {}
    numbers: dict[Ticket, int | None] = {}
    while len(found) < len(wanted):
        for ticket in [t for t, number in numbers.items() if number is None and not t.left and rng.random() < 0.3]:
            resident.leave(ticket)
        while resident.free and waiting and rng.random() < 0.6:
            number = waiting.pop(int(rng.integers(len(waiting))))
            numbers[resident.join(wanted[number])] = number
            if resident.free and rng.random() < 0.4:
                numbers[resident.join(wanted[int(rng.integers(len(wanted)))])] = None
        for passed in resident.step():
            number = numbers[passed.ticket]
            if passed.finished and number is not None:
                found[number] = state_of(passed)
    return [found[number] for number in range(len(wanted))]


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


def steered(pipe: Pipeline, wanted: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """The same with ControlNets and adapters: none, one net, two, and those of other ports."""
    rng = np.random.default_rng(seed)
    names = list(pipe._backend.nets)
    uses: list[tuple[str, ...]] = [(), (names[0],), (), (names[1], names[0]), (names[1],)]
    return [
        replace(
            one,
            controls=tuple(_control(pipe, name, one, rng) for name in uses[i % len(uses)]),
            image_prompt=_image_prompt(pipe, one, rng) if i % 4 == 1 else None,
            features=_features(pipe, one, rng) if i % 3 == 2 else None,
        )
        for i, one in enumerate(wanted)
    ]


def _normal(rng: np.random.Generator, spec: TensorSpec, bucket: Bucket) -> NDArray[Any]:
    array = 0.5 * rng.standard_normal(shape_at(spec, bucket.sizes(1)), np.float32)
    return array.astype(DTYPES[spec.dtype].numpy)


def _control(pipe: Pipeline, name: str, one: Trajectory, rng: np.random.Generator) -> Control:
    graph = pipe._backend.nets[name].engine("control").spec
    by_name = {spec.name: spec for spec in graph.inputs}
    calls, groups = len(one.plan), len(one.context)
    weights = rng.uniform(0.2, 1.2, (calls, groups, by_name["weights"].shape[1])).astype(np.float32)  # type: ignore[arg-type]
    weights[rng.random(calls) < 0.4] = 0
    return Control(name, _normal(rng, by_name["hint_features"], one.bucket)[0], weights, dict(one.time_inputs))


def _image_prompt(pipe: Pipeline, one: Trajectory, rng: np.random.Generator) -> ImagePrompt:
    specs = [spec for spec in pipe.bundle.graph("denoise").inputs if spec.name.startswith("image_")]
    strength = rng.random((len(one.plan), len(one.context), specs[-1].shape[1])).astype(np.float32)  # type: ignore[arg-type]
    return ImagePrompt({spec.name: _normal(rng, spec, one.bucket) for spec in specs[:-1]}, strength)


def _features(pipe: Pipeline, one: Trajectory, rng: np.random.Generator) -> AdapterFeatures:
    specs = [spec for spec in pipe.bundle.graph("denoise").inputs if spec.name.startswith("adapter_")]
    tensors = {spec.name: _normal(rng, spec, one.bucket)[0] for spec in specs}
    return AdapterFeatures(tensors, int(rng.integers(1, len(one.plan) + 1)))
