"""Guidance within an interval of the calls, as diffusers' guiders have it."""

import numpy as np
import pytest
from diffusers.guiders import ClassifierFreeGuidance

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.request.guidance import guidance_weights
from latentrt.runtime.scheduler import Plan

CALL = {"num_inference_steps": 6, "seed": 4, "height": 64, "width": 80, "output_type": "latent"}
PROMPT = "a small green star on a white background"


@pytest.mark.parametrize("calls", [1, 7, 20, 29, 100])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.9), (0.29, 0.57), (0.0, 0.3), (0.55, 1.0), (0.1, 0.11)])
def test_the_calls_are_those_of_diffusers(calls: int, start: float, end: float) -> None:
    guider = ClassifierFreeGuidance(3.5, start=start, stop=end)
    expected = []
    for k in range(calls):
        guider.set_state(step=k, num_inference_steps=calls, timestep=None)
        expected.append(guider._is_cfg_enabled())
    plan = Plan.from_config({"_class_name": "EulerDiscreteScheduler"}, calls)
    got = guidance_weights(3.5, plan, start=start, end=end)
    assert got.dtype == np.float32
    assert got.tolist() == [[-2.5, 3.5] if guided else [0, 1] for guided in expected]


def test_outside_of_the_interval_the_prompt_alone_counts() -> None:
    """The first part is that of a guided picture, the rest that of an unguided one that goes on from there."""
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        whole = [step.latents() for step in pipe.stream(PROMPT, guidance_scale=5.0, **CALL)]
        part = [step.latents() for step in pipe.stream(PROMPT, guidance_scale=5.0, guidance_end=0.5, **CALL)]
        first = [step.latents() for step in pipe.stream(PROMPT, guidance_scale=1.0, **CALL)]
        late = [step.latents() for step in pipe.stream(PROMPT, guidance_scale=5.0, guidance_start=0.5, **CALL)]
    assert np.array_equal(part[:3], whole[:3])
    assert relative_error(part[-1], whole[-1]) > 1e-2
    assert np.array_equal(late[:3], first[:3])
    assert relative_error(late[-1], first[-1]) > 1e-2


def test_calls_without_guidance_run_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the latents are the same to the bit as with both groups."""
    bound: list[str] = []
    call = HostSlots._call
    monkeypatch.setattr(HostSlots, "_call", lambda self, *call_of: bound.append(call_of[0]) or call(self, *call_of))
    options = {**CALL, "guidance_scale": 4.0, "guidance_end": 0.4, "guidance_rescale": 0.5, "num_images_per_prompt": 2}
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        got = pipe(PROMPT, **options).latents
        assert bound == ["denoise"] * 2 + ["one group"] * 4
        monkeypatch.setattr("latentrt.runtime.loop.tables.CallRows.unguided", lambda _self, _at: False)
        assert np.array_equal(pipe(PROMPT, **options).latents, got)


def test_an_empty_interval_is_refused() -> None:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        with pytest.raises(InputError, match=r"guidance_start=0.6, guidance_end=0.5: expected guidance_start < guid"):
            pipe(PROMPT, guidance_start=0.6, guidance_end=0.5, **CALL)
        with pytest.raises(InputError, match="guidance_start"):
            pipe(PROMPT, guidance_start=1.0, **CALL)


def test_plus_plus_has_its_own_scale() -> None:
    """0 to 1: by default that of the bundle, divided as in AUTOMATIC1111's web UI."""
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        call = {**CALL, "scheduler": "euler_cfg_pp"}
        usual = pipe.bundle.manifest.defaults.guidance_scale
        default = pipe(PROMPT, **call).latents
        assert np.array_equal(default, pipe(PROMPT, guidance_scale=usual / 12.5, **call).latents)
        assert relative_error(default, pipe(PROMPT, **{**call, "scheduler": "euler"}).latents) > 1e-3
        # with the prompt on both sides there is nothing to guide
        same = {"guidance_scale": 0.8, "negative_prompt": PROMPT}
        alone = pipe(PROMPT, guidance_scale=1.0, **{**call, "scheduler": "euler"}).latents
        assert relative_error(pipe(PROMPT, **same, **call).latents, alone) < 1e-4
        with pytest.raises(InputError, match=r"guidance_rescale with CFG\+\+"):
            pipe(PROMPT, guidance_rescale=0.7, **call)
