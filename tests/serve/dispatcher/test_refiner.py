"""A refiner as the second stage of jobs: base, then refiner, in one worker; the pictures of a pipeline with both."""

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import Exported
from support.serving import Device

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.serve.dispatcher.models import owner_of, refiner_name, served_model
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.keys import Key
from latentrt.serve.http.webui.translation import translated
from latentrt.serve.jobs.resolved import ModelChangedError, Resolver
from latentrt.serve.messages import (
    DispatcherOptions,
    Done,
    Failed,
    Job,
    ModelSpec,
    Output,
    Picture,
    Preview,
    Previews,
    Progress,
)

SIZE = (40, 32)  # width, height
CALL: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 4.0, "width": SIZE[0], "height": SIZE[1]}
CALLS: list[dict[str, Any]] = [
    {"refiner_start": 0.6},
    {},
    {"refiner_start": 0.4, "scheduler": "euler_a", "aesthetic_score": 9.0, "negative_prompt": "fog"},
    {"refiner_start": 1},
    {"refiner_start": 0.6, "image": Image.effect_noise(SIZE, 60).convert("RGB"), "strength": 0.9},
]

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(exported: Callable[[str], Exported]) -> ModelSpec:
    base, refiner = exported("sdxl-fp32").bundle, exported("sdxl-refiner-fp32").bundle
    return ModelSpec("xl", base, backend="onnxruntime", sizes=(SIZE,), refiner=refiner)


@pytest.fixture
def device(spec: ModelSpec) -> Iterator[Device]:
    device = Device(spec, DispatcherOptions(device="cpu", batch=3, max_wait=3600, lazy=True))
    yield device
    device.close()


def submitted(device: Device, options: dict[str, Any], **facts: Any) -> Job:
    call = device.model.call("a cat", options)
    number = str(len(device.events))
    job = Job(number, "xl", call.first, second=call.second, **{"output": Output("latents"), **facts})
    device.events[number] = []
    device.dispatcher.submit(job)
    return job


def test_pictures_are_those_of_a_pipeline(device: Device, spec: ModelSpec) -> None:
    """To the bit, with stochastic noise, several images of a job, and jobs of one pass and two in the same calls."""
    work = [CALL | {"seed": [seed, seed + 7], "num_images_per_prompt": 2} | one for seed, one in enumerate(CALLS, 5)]
    work = [{**one, "image": one.get("image")} for one in work]
    jobs = [submitted(device, one) for one in work]
    png = submitted(device, work[0], output=Output("png"))
    device.wait([*jobs, png])
    with Pipeline.load(spec.path, refiner=spec.refiner, backend="onnxruntime", device="cpu") as pipe:
        for job, options in zip(jobs, work, strict=True):
            alone = pipe("a cat", output_type="latent", **options).latents
            got = device.latents(job)
            assert np.array_equal(alone.reshape(got.shape), got), options
        assert jobs[3].second is None
        alone = pipe("a cat", **work[0])
        files = sorted((e for e in device.events[png.id] if isinstance(e, Picture)), key=lambda e: e.image)
        for file, wanted in zip(files, alone.images, strict=True):
            image = Image.open(io.BytesIO(file.data))
            assert np.array_equal(np.asarray(image), np.asarray(wanted))
            assert image.info["parameters"] == wanted.info["parameters"]
            assert "Refiner switch at: 0.6" in image.info["parameters"]
    models = {call.model for call in device.calls}
    assert models == {"xl", refiner_name("xl")}
    assert {owner_of(model) for model in models} == {"xl"}
    assert max(call.count for call in device.calls if call.model != "xl") == 3


def test_events_go_over_both_passes(device: Device) -> None:
    job = submitted(device, CALL | {"refiner_start": 0.6, "seed": 3}, output=Output("png"), previews=Previews())
    assert isinstance(device.end(job), Done)
    made = [(e.call, e.calls) for e in device.events[job.id] if isinstance(e, Progress)]
    assert made == [(call, 5) for call in range(1, 6)]
    assert [e.call for e in device.events[job.id] if isinstance(e, Preview)] == [1, 2, 4]
    end = device.events[job.id][-1]
    assert isinstance(end, Done)
    assert {"queue", "encode", "denoise", "decode", "total"} <= end.timings.keys()


def test_a_job_is_cancelled_in_its_second_pass(device: Device) -> None:
    """Its slots are free then, and others go on."""
    job = submitted(device, CALL | {"refiner_start": 0.1, "num_inference_steps": 120, "seed": 3})
    while not any(isinstance(e, Progress) and e.call > 20 for e in device.events[job.id]):
        assert not device._ended[job.id].wait(0.002)
    device.dispatcher.cancel(job.id)
    end = device.end(job)
    assert isinstance(end, Failed)
    assert end.kind == "cancelled"
    assert isinstance(device.end(submitted(device, CALL | {"seed": 3})), Done)
    assert device.dispatcher.load().running == device.dispatcher.load().waiting == 0


def test_work_of_both_passes_is_admitted(spec: ModelSpec) -> None:
    """A deadline that the first pass alone could meet is refused."""
    device = Device(spec, DispatcherOptions(device="cpu", batch=1, max_wait=3600, lazy=True))
    try:
        options = CALL | {"num_inference_steps": 100, "refiner_start": 0.1, "seed": 3}
        call = device.model.call("a cat", options)
        one = device.dispatcher.submit(Job("one", "xl", call.first))
        device.wait([Job("one", "xl", call.first)])
        two = device.dispatcher.submit(Job("two", "xl", call.first, second=call.second))
        assert two.estimate > 3 * one.estimate
        device.wait([Job("two", "xl", call.first)])
    finally:
        device.close()


def test_a_kept_job_is_drawn_by_both(spec: ModelSpec) -> None:
    model = served_model(spec)
    resolver = Resolver(lambda: {"xl": model})
    for options in CALLS[:4]:
        call = model.call("a cat", CALL | {"seed": 3} | options)
        job = Job("1", "xl", call.first, second=call.second if call.refines else None)
        kept = resolver.new_job(job, now=0.0)
        found = SimpleNamespace(
            id="1", document=kept.document, model="xl", client="", weight=1.0, priority="interactive", deadline=None,
            alone=False,
        )  # fmt: skip
        again = resolver.job(found, kept.inputs.__getitem__, now=0.0)  # type: ignore[arg-type]
        assert (again.second is None) == (job.second is None) == (options.get("refiner_start") == 1)
        assert again.calls == job.calls
        if again.second is not None and job.second is not None:
            assert np.array_equal(again.second.plan.timesteps, job.second.plan.timesteps)
            assert np.array_equal(again.second.time_ids, job.second.time_ids)  # type: ignore[arg-type]
    alone = served_model(ModelSpec("xl", spec.path, sizes=(SIZE,)))
    with pytest.raises(ModelChangedError, match="another bundle"):
        Resolver(lambda: {"xl": alone}).job(found, kept.inputs.__getitem__, now=0.0)  # type: ignore[arg-type]


def test_without_a_refiner_it_is_refused_by_name(exported: Callable[[str], Exported]) -> None:
    model = served_model(ModelSpec("xl", exported("sdxl-fp32").bundle, backend="onnxruntime", sizes=(SIZE,)))
    with pytest.raises(InputError, match=r"refiner_start: xl has no refiner .* refiner in the table \[\[model\]\]"):
        model.call("a cat", {"refiner_start": 0.8})
    with pytest.raises(InputError, match="aesthetic_score: only SDXL's refiner"):
        model.call("a cat", {"aesthetic_score": 6.0})
    with pytest.raises(ApiError, match="xl has no refiner at this server"):
        translated({"refiner_checkpoint": "other", "prompt": "a"}, lambda _: model, pixels=1000)


def test_names_of_the_web_ui(spec: ModelSpec) -> None:
    model = served_model(spec)
    assert model.refiner is not None
    name = Bundle.open(spec.refiner or "").manifest.checkpoint.name
    reader = CallReader({"xl": model}, HttpConfig())

    def job(**fields: Any) -> Job:
        asked = translated({"prompt": "a cat", "steps": 10, **fields}, lambda _: model, pixels=1000)
        return reader.job(asked.call, Key(""), words=asked.words)

    try:
        assert job().second is None
        assert job(refiner_checkpoint="None", refiner_switch_at=0.8).second is None
        assert job(refiner_switch_at=0).second is None
        for title in (name, f"{name} [0123456789]"):
            second = job(refiner_checkpoint=title, refiner_switch_at=0.6).second
            assert second is not None
            assert len(second.plan) == 4
        assert job(refiner_start=0.5).second is not None
        with pytest.raises(ApiError, match=f"xl has the refiner {name}"):
            job(refiner_checkpoint="other")
        with pytest.raises(Exception, match="refiner_switch_at=0"):
            job(refiner_checkpoint=name, refiner_switch_at=0)
    finally:
        reader.close()
