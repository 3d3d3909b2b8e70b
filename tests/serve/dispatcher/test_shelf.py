"""More models than memory holds: loaded when asked for, beside what is drawn, and never closed with accepted work."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import Device

from latentrt.serve.dispatcher import shelf
from latentrt.serve.dispatcher.models import LoadedModel
from latentrt.serve.messages import DispatcherOptions, Done, Job, ModelSpec, RefusedError

NAMES = ("a-5", "b-5", "c-5")  # models with UNet calls of 5 ms
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "seed": 1}


@pytest.fixture
def device() -> Iterator[Device]:
    options = DispatcherOptions(
        device="cpu", batch=2, lazy=True, loaded=2, loader="benchmarks.serving.delayed:load_delayed"
    )
    device = Device(ModelSpec(NAMES[0]), options, *map(ModelSpec, NAMES[1:]))
    yield device
    device.close()


def loaded(device: Device) -> list[str]:
    return list(device.dispatcher._shelf.models)


def drawn(device: Device, model: str, **options: Any) -> Job:
    """A job that is submitted again until its model is loaded."""
    while True:
        job = device.job("a star", OPTIONS | options, model=model)
        try:
            device.dispatcher.submit(job)
            return job
        except RefusedError as error:
            if error.reason != "starting":
                raise
            time.sleep(0.02)


def test_the_model_used_last_stays(device: Device) -> None:
    assert loaded(device) == ["a-5", "b-5"]
    for model, left in (("a-5", ["b-5", "a-5"]), ("c-5", ["a-5", "c-5"]), ("b-5", ["c-5", "b-5"])):
        assert isinstance(device.end(drawn(device, model)), Done)
        assert loaded(device) == left


def test_a_model_with_work_is_not_closed(device: Device) -> None:
    long = [drawn(device, model, num_inference_steps=60) for model in ("a-5", "b-5")]
    with pytest.raises(RefusedError, match="waits until one of a-5, b-5 has no work"):
        device.dispatcher.submit(device.job("a star", OPTIONS, model="c-5"))
    other = drawn(device, "c-5")
    assert all(isinstance(device.end(job), Done) for job in (*long, other))


def test_a_model_that_cannot_be_loaded_says_so(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: ModelSpec, options: DispatcherOptions) -> LoadedModel:
        raise ValueError(f"{spec.name} is damaged, {options.device}")

    monkeypatch.setattr(shelf, "load_model", broken)
    for _ in range(200):
        with pytest.raises(RefusedError) as refused:
            device.dispatcher.submit(device.job("a star", OPTIONS, model="c-5"))
        if "damaged" in refused.value.message:
            break
        time.sleep(0.02)
    assert "c-5 cannot be loaded: c-5 is damaged" in refused.value.message
    assert refused.value.retry_after is not None
    assert 20 < refused.value.retry_after <= 30
    assert isinstance(device.end(drawn(device, "b-5")), Done)


def test_an_unknown_model(device: Device) -> None:
    with pytest.raises(RefusedError) as refused:
        device.dispatcher.submit(device.job("a star", OPTIONS, model="d"))
    assert refused.value.reason == "unknown_model"
