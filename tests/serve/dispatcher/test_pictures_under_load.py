"""Pictures do not depend on what else is drawn: latents equal those of `Pipeline`, to the bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.lora_files import shapes_file
from support.serving import Device

from latentrt.runtime import Pipeline
from latentrt.runtime.loop.host import HostSlots
from latentrt.serve.dispatcher import turns
from latentrt.serve.dispatcher.models import LoadedModel
from latentrt.serve.dispatcher.policy import Action, Encode, Policy, Swap
from latentrt.serve.messages import DispatcherOptions, Job, LoraSet, ModelSpec

SETS: tuple[LoraSet, ...] = ((), (("first", 0.8),), (("first", 0.5), ("second", 1.0)))
SCHEDULERS = ("ddim", "euler", "euler_a", "dpm++_2m_karras", "unipc", "heun", "dpm++_2m_sde", "lcm")
SIZES = ((128, 128), (192, 128))
Call = tuple[str, dict[str, Any], LoraSet]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("first", "second")):
        shapes_file(folder / f"{name}.safetensors", 100 * seed + 7)
    return folder


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that weights change several times in a test."""
    monkeypatch.setattr(turns, "LEAST_TURN", 0.6)
    monkeypatch.setattr(turns, "SWAPS_A_TURN", 0)


@pytest.fixture
def device(loras: Path) -> Iterator[Device]:
    spec = ModelSpec("shapes", backend="onnxruntime", sizes=SIZES, loras=loras)
    device = Device(spec, DispatcherOptions(device="cpu", batch=4, max_wait=3600, lazy=True))
    yield device
    device.close()


def calls(seed: int, count: int) -> list[Call]:
    """Calls of all kinds."""
    rng = np.random.default_rng(seed)
    result: list[Call] = []
    for _ in range(count):
        colours = rng.choice(["red", "blue", "green", "yellow"], 2, replace=False)
        width, height = SIZES[rng.integers(2)]
        options: dict[str, Any] = {
            "seed": int(rng.integers(2**32)),
            "num_inference_steps": int(rng.integers(2, 9)),
            "guidance_scale": float(rng.choice([1.0, 3.0, 6.5])),
            "scheduler": str(rng.choice(SCHEDULERS)),
            "width": width,
            "height": height,
            "num_images_per_prompt": int(rng.choice([1, 1, 1, 2])),
            "negative_prompt": str(rng.choice(["", "a grey circle"])),
        }
        if rng.random() < 0.3:
            pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
            options |= {"image": Image.fromarray(pixels), "strength": 0.7}
            if rng.random() < 0.6:
                options["mask_image"] = Image.fromarray(
                    np.repeat([[0, 255]], width // 2, 1).repeat(height, 0).astype(np.uint8)
                )
        if rng.random() < 0.2:
            options |= {"prompt_syntax": "web-ui"}
        prompt = f"a large {colours[0]} star left of a (small {colours[1]} square:1.2)"
        result.append((prompt, options, SETS[rng.integers(len(SETS))]))
    return result


def drawn_under_load(device: Device, work: list[Call]) -> list[Job]:
    """All of them at once, by 16 clients."""
    jobs = [
        device.submit(prompt, options, loras=loras, client=f"client {number % 16}")
        for number, (prompt, options, loras) in enumerate(work)
    ]
    device.wait(jobs)
    return jobs


def different(device: Device, work: list[Call], jobs: list[Job], loras: Path) -> list[int]:
    """Numbers of the calls whose latents are not those that are drawn alone."""
    result = []
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        for chosen in SETS:
            pipe.set_loras({loras / f"{name}.safetensors": weight for name, weight in chosen})
            for number, ((prompt, options, of_call), job) in enumerate(zip(work, jobs, strict=True)):
                if of_call == chosen:
                    alone = pipe(prompt, **options, output_type="latent").latents
                    got = device.latents(job)
                    if not np.array_equal(alone.reshape(got.shape), got):
                        result.append(number)
    return result


def swaps(monkeypatch: pytest.MonkeyPatch) -> list[LoraSet]:
    """The sets that are put in, in order."""
    seen: list[LoraSet] = []
    put_in = LoadedModel.put_in

    def noted(self: LoadedModel, chosen: LoraSet) -> None:
        put_in(self, chosen)
        seen.append(chosen)

    monkeypatch.setattr(LoadedModel, "put_in", noted)
    return seen


@pytest.mark.parametrize(("seed", "count"), [(31, 30), pytest.param(32, 200, marks=pytest.mark.slow)])
def test_pictures_under_load_are_those_drawn_alone(
    device: Device, loras: Path, monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    seen = swaps(monkeypatch)
    work = calls(seed, count)
    jobs = drawn_under_load(device, work)
    assert different(device, work, jobs, loras) == []
    assert {*seen} == {*SETS}, "weights changed to every set and back"
    assert len({call.count for call in device.calls}) == 4, "batches of every size were run"


@pytest.mark.slow
def test_a_row_in_the_wrong_slot_is_found(device: Device, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_plan_moves(self: HostSlots, source: int, target: int) -> None:
        self._rows.move(source, target)

    monkeypatch.setattr(HostSlots, "move", only_the_plan_moves)
    work = [call for call in calls(33, 24) if not call[2]]
    assert different(device, work, drawn_under_load(device, work), loras)


@pytest.mark.slow
def test_weights_of_another_set_are_found(device: Device, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "put_in", lambda *_: None)
    work = calls(34, 12)
    wrong = different(device, work, drawn_under_load(device, work), loras)
    assert sorted(wrong) == [number for number, call in enumerate(work) if call[2]]


@pytest.mark.slow
def test_texts_encoded_before_the_swap_are_found(device: Device, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, early = Policy.next, set[str]()

    def encodes_too_early(self: Policy, now: float) -> Action:
        action = original(self, now)
        if isinstance(action, Swap):
            jobs = [j for j in self.jobs.values() if j.group.weights == action.weights and j.id not in early]
            if jobs:
                early.update(job.id for job in jobs)
                return Encode(jobs[0].group, tuple(jobs))
        return action

    monkeypatch.setattr(Policy, "next", encodes_too_early)
    work = calls(35, 16)
    assert different(device, work, drawn_under_load(device, work), loras)
    assert early
