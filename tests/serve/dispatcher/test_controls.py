"""ControlNets at a server: jobs with and without one share calls, and draw what they draw alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from against_diffusers.test_control import blots
from support.exports import Exported
from support.serving import Device

from latentrt.runtime import InputError, Pipeline
from latentrt.serve.messages import DispatcherOptions, Job, ModelSpec

SIZE = (40, 48)  # width, height
CALL = {"num_inference_steps": 5, "guidance_scale": 4.0, "width": SIZE[0], "height": SIZE[1]}


def steering() -> list[dict[str, Any]]:
    """What jobs are steered by."""
    first, second = blots(3, SIZE[::-1]), blots(4, SIZE[::-1])
    embeds = np.random.default_rng(1).standard_normal((2, 48)).astype(np.float32)
    return [
        {},
        {"control_image": {"edges": first}, "control_guidance_end": 0.6},
        {"control_image": {"edges": first, "pose": second}, "controlnet_conditioning_scale": {"pose": 0.5}},
        {"t2i_image": second},
        {"ip_adapter_image_embeds": embeds, "ip_adapter_scale": 0.8},
    ]


@pytest.fixture
def controls(exported: Callable[[str], Exported]) -> tuple[tuple[str, Path], ...]:
    names = {"edges": "sd1-net", "pose": "sd1-bgr", "sketch": "sd1-t2i", "face": "sd1-ip"}
    return tuple((name, exported(of).bundle) for name, of in names.items())


def test_jobs_with_and_without_a_net(
    exported: Callable[[str], Exported], controls: tuple[tuple[str, Path], ...]
) -> None:
    bundle = exported("sd1-ports-fp32").bundle
    spec = ModelSpec("sd", bundle, backend="onnxruntime", sizes=(SIZE,), controls=controls)
    device = Device(spec, DispatcherOptions(device="cpu", batch=4, max_wait=3600))
    try:
        work = [(seed, options) for seed in (5, 6) for options in steering()]
        jobs: list[Job] = [device.submit("a cat", {**CALL, "seed": seed, **options}) for seed, options in work]
        device.wait(jobs)
        with Pipeline.load(bundle, backend="onnxruntime", device="cpu", controls=dict(controls)) as pipe:
            for job, (seed, options) in zip(jobs, work, strict=True):
                alone = pipe("a cat", **CALL, seed=seed, output_type="latent", **options).latents
                got = device.latents(job)
                assert np.array_equal(alone.reshape(got.shape), got), options
        assert max(call.count for call in device.calls) == 4
        with pytest.raises(InputError, match="not a path"):
            device.job("a cat", {**CALL, "control_image": {"edges": "/etc/passwd"}})
        with pytest.raises(InputError, match="unknown ControlNet 'depth'"):
            device.job("a cat", {**CALL, "control_image": {"depth": blots(1, SIZE)}})
    finally:
        device.close()
