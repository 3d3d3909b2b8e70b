"""More models than memory holds: loaded when asked for, beside what is drawn, and never closed with accepted work."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import PATIENCE, Device

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
            time.sleep(0.1)


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


def test_an_unloaded_model_draws_what_it_accepted_and_leaves_memory(device: Device) -> None:
    long = drawn(device, "a-5", num_inference_steps=60)
    model = weakref.ref(device.dispatcher._shelf.models["a-5"].stages)
    wait = device.dispatcher.set_loaded("a-5", False)
    with pytest.raises(RefusedError, match="a-5 is unloaded") as refused:
        device.dispatcher.submit(device.job("a star", OPTIONS, model="a-5"))
    assert refused.value.reason == "unloaded"
    assert loaded(device) == ["b-5", "a-5"]
    wait()
    assert isinstance(device.end(long), Done)
    assert loaded(device) == ["b-5"]
    gc.collect()
    assert model() is None
    assert isinstance(device.end(drawn(device, "b-5")), Done)


def test_a_model_is_loaded_again_and_draws_the_same(device: Device) -> None:
    first = device.latents(drawn(device, "a-5"))
    device.dispatcher.set_loaded("a-5", False)()
    device.dispatcher.set_loaded("a-5", True)()
    assert loaded(device) == ["b-5", "a-5"]
    again = device.submit("a star", OPTIONS, model="a-5")  # it need not be asked for twice
    assert device.latents(again).tobytes() == first.tobytes()


def test_an_unloaded_model_makes_no_room_and_takes_none(device: Device) -> None:
    device.dispatcher.set_loaded("a-5", False)()
    assert isinstance(device.end(drawn(device, "c-5")), Done)
    assert loaded(device) == ["b-5", "c-5"]
    long = [drawn(device, model, num_inference_steps=60) for model in ("b-5", "c-5")]
    with pytest.raises(RefusedError, match="waits until one of b-5, c-5 has no work"):
        device.dispatcher.set_loaded("a-5", True)()
    assert all(isinstance(device.end(job), Done) for job in long)
    device.dispatcher.set_loaded("a-5", True)()
    assert "a-5" in loaded(device)


def test_a_model_that_is_loaded_for_the_operator_may_be_damaged(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spec: ModelSpec, options: DispatcherOptions) -> LoadedModel:
        raise ValueError(f"{spec.name} is damaged, {options.device}")

    device.dispatcher.set_loaded("a-5", False)()
    with monkeypatch.context() as patch:
        patch.setattr(shelf, "load_model", broken)
        with pytest.raises(RefusedError, match="a-5 cannot be loaded: a-5 is damaged"):
            device.dispatcher.set_loaded("a-5", True)()
    device.dispatcher.set_loaded("a-5", True)()  # at once, not after the pause that work waits for
    assert "a-5" in loaded(device)
    with pytest.raises(RefusedError, match="does not serve 'd'"):
        device.dispatcher.set_loaded("d", False)


def test_a_model_that_is_unloaded_while_it_loads(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, load = threading.Event(), threading.Event(), shelf.load_model

    def slow(spec: ModelSpec, options: DispatcherOptions) -> LoadedModel:
        begun.set()
        go_on.wait(PATIENCE)
        return load(spec, options)

    device.dispatcher.set_loaded("a-5", False)()
    monkeypatch.setattr(shelf, "load_model", slow)
    device.dispatcher.set_loaded("a-5", True)
    with pytest.raises(RefusedError, match="is being loaded"):
        device.dispatcher.submit(device.job("a star", OPTIONS, model="a-5"))
    begun.wait(PATIENCE)
    gone = device.dispatcher.set_loaded("a-5", False)
    go_on.set()
    gone()
    assert loaded(device) == ["b-5"]


def test_a_device_begins_without_what_is_unloaded() -> None:
    options = DispatcherOptions(
        device="cpu", batch=2, lazy=True, unloaded=("a-5",), loader="benchmarks.serving.delayed:load_delayed"
    )
    device = Device(ModelSpec("a-5"), options)
    try:
        assert loaded(device) == []
        device.dispatcher.set_loaded("a-5", True)()
        assert isinstance(device.end(device.submit("a star", OPTIONS)), Done)
    finally:
        device.close()
