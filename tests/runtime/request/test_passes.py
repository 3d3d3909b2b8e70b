"""Calls of two passes: what they are made of, their seeds, steps and texts, and what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES

from latentrt.runtime import InputError, Pipeline, Plan, SchedulerError
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.cli.main import main
from latentrt.runtime.latents import UPSCALERS, enlarged_latents
from latentrt.runtime.request import ModelFacts, Request, checked_call
from latentrt.runtime.request.passes import _steps_for
from latentrt.runtime.request.web_ui_text import options_of_web_ui

PROMPT = "a blue heart on a white background"
SIZE: dict[str, Any] = {"height": 64, "width": 48, "num_inference_steps": 5}
LATENTS = {"output_type": "latent"}


@pytest.fixture(scope="module")
def shapes() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def refined() -> Iterator[Pipeline]:
    """The small model as its own refiner: any model of the same latents may be one."""
    with Pipeline.load(SHAPES.bundle, refiner=SHAPES.bundle, device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    bundle = Bundle.open(SHAPES.bundle)
    return ModelFacts(bundle.manifest, bundle.read_json(bundle.manifest.scheduler))


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_the_second_pass_is_a_call_of_its_own_with_the_same_seeds(shapes: Pipeline, upscaler: str) -> None:
    own = {"scheduler": "euler_a", "seed": [3, 11], "num_images_per_prompt": 2}
    first = shapes(PROMPT, **SIZE, **own, output_type="latent" if upscaler.startswith("latent") else "np")
    if upscaler.startswith("latent"):
        image: Any = enlarged_latents(first.latents, upscaler, 12, 9)
    else:
        filter_ = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}[upscaler]
        image = [Image.fromarray(picture).resize((72, 96), filter_) for picture in first.images]
    second = {"image": image, "strength": 0.7, "num_inference_steps": 5}
    if isinstance(image, list):  # one for each prompt
        wanted = [shapes(PROMPT, scheduler="euler_a", seed=s, **{**second, "image": i}, **LATENTS).latents[0]
                  for s, i in zip((3, 11), image, strict=True)]  # fmt: skip
    else:
        wanted = list(shapes(PROMPT, **own, **second, **LATENTS).latents)
    got = shapes(PROMPT, **SIZE, **own, hires_scale=1.5, hires_strength=0.7, hires_upscaler=upscaler, **LATENTS)
    assert got.latents.shape == (2, 4, 12, 9)
    assert np.abs(got.latents - np.stack(wanted)).max() < 1e-5
    assert got.seeds == (3, 11)


@pytest.mark.parametrize(("made", "strength"), [(1, 1.0), (10, 0.7), (7, 0.3), (15, 0.55), (3, 0.999), (20, 0.5)])
def test_hires_steps_are_those_that_are_made(facts: ModelFacts, made: int, strength: float) -> None:
    call = checked_call(facts, "a", {**SIZE, "hires_scale": 2, "hires_steps": made, "hires_strength": strength})
    assert call.second is not None
    assert len(call.second.plan) == made == int(_steps_for(made, strength) * strength)
    assert call.unet_calls == 5 + made


def test_sizes_of_the_second_pass_are_whole_latents(facts: ModelFacts) -> None:
    factor = facts.manifest.model.vae_scale_factor
    for side, scale in ((64, 1.3), (48, 2), (56, 1.7), (128, 1.0)):
        call = checked_call(facts, "a", {"height": side, "width": 64, "num_inference_steps": 4, "hires_scale": scale})
        assert call.second is not None
        assert call.second.height == int(side * scale / factor + 1e-6) * factor
        assert call.second.strength == facts.manifest.defaults.strength


def test_steps_go_through_both_passes(shapes: Pipeline) -> None:
    steps = []
    for step in shapes.stream(PROMPT, seed=4, hires_scale=2, hires_strength=0.6, hires_upscaler="lanczos", **SIZE):
        steps.append((step.index, step.total, step.latents().shape, step.preview()[0].size, step.result is None))
    assert [(index, total) for index, total, *_ in steps] == [(i, 8) for i in range(8)]
    assert [shape for _, _, shape, *_ in steps] == [(1, 4, 8, 6)] * 5 + [(1, 4, 16, 12)] * 3
    assert [size for *_, size, _ in steps] == [(48, 64)] * 5 + [(96, 128)] * 3
    assert [unfinished for *_, unfinished in steps] == [True] * 7 + [False]


def test_a_call_may_be_left_in_either_pass(shapes: Pipeline) -> None:
    wanted = shapes(PROMPT, seed=4, hires_scale=2, **SIZE, **LATENTS).latents
    for calls in (2, 6):
        stream = shapes.stream(PROMPT, seed=4, hires_scale=2, **SIZE)
        for _ in range(calls):
            next(stream)
        stream.close()
    assert np.array_equal(shapes(PROMPT, seed=4, hires_scale=2, **SIZE, **LATENTS).latents, wanted)


def test_timings_add_up_over_both_passes(shapes: Pipeline) -> None:
    timings = shapes(PROMPT, seed=4, hires_scale=2, hires_upscaler="nearest", **SIZE).timings
    assert {"denoise", "vae_encoder", "vae_decoder", "total"} <= set(timings)
    assert sum(value for name, value in timings.items() if name != "total") <= timings["total"]


def test_the_text_tells_of_both_passes(shapes: Pipeline) -> None:
    hires = {"hires_scale": 1.5, "hires_strength": 0.7, "hires_steps": 4, "hires_upscaler": "latent-bicubic"}
    picture = shapes(PROMPT, seed=4, scheduler="euler", **SIZE, **hires).images[0]
    document = json.loads(picture.info["latentrt"])
    assert {name: document[name] for name in hires} == hires
    assert (document["height"], document["width"], document["num_inference_steps"]) == (64, 48, 5)
    assert not {"strength", "image", "denoising_end", "refiner_start"} & set(document)
    text = picture.info["parameters"]
    for part in ("Hires upscale: 1.5", "Hires steps: 4", "Hires upscaler: Latent (bicubic)", "Size: 48x64"):
        assert part in text
    assert "Denoising strength: 0.7" in text
    options, _, _ = options_of_web_ui(text, {})
    assert {name: options[name] for name in hires} == hires
    assert "strength" not in options


def test_web_uis_make_as_many_steps_in_the_second_pass() -> None:
    settings = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Denoising strength: 0.5, {}"
    plain, _, _ = options_of_web_ui(f"a\n{settings.format('Hires upscale: 2, Hires upscaler: Lanczos')}", {})
    assert (plain["hires_scale"], plain["hires_steps"], plain["hires_strength"]) == (2.0, 20, 0.5)
    told, _, _ = options_of_web_ui(f"a\n{settings.format('Hires upscale: 2, Hires steps: 8')}", {})
    assert (told["hires_steps"], told["hires_upscaler"]) == (8, "latent")
    other, _, _ = options_of_web_ui(f"a\n{settings.format('Hires upscale: 2, Hires upscaler: 4x-UltraSharp')}", {})
    assert not {name for name in other if name.startswith("hires")}


def test_the_refiner_goes_on_with_the_generators(shapes: Pipeline, refined: Pipeline) -> None:
    """The same model as base and refiner draws what it draws alone, with stochastic samplers, too."""
    for scheduler in ("euler", "euler_a", "dpm++_2m_sde"):
        for extra in ({}, {"noise_seed_delta": 5}):
            call = {**SIZE, "num_inference_steps": 6, "scheduler": scheduler, "seed": 8, **extra, **LATENTS}
            alone = shapes(PROMPT, **call).latents
            both = refined(PROMPT, refiner_start=0.5, **call).latents
            # Multistep samplers forget the steps of the base.
            assert (np.abs(both - alone).max() < 2e-4) == (scheduler != "dpm++_2m_sde"), scheduler
            assert np.abs(both - alone).max() < 3


def test_the_refiner_is_left_out_at_one_and_used_by_default(shapes: Pipeline, refined: Pipeline) -> None:
    call = {**SIZE, "num_inference_steps": 10, "seed": 8, "scheduler": "dpm++_2m"}
    alone = refined(PROMPT, refiner_start=1, **call)
    assert np.array_equal(alone.latents, shapes(PROMPT, **call).latents)
    assert "refiner" not in json.loads(alone.images[0].info["latentrt"])
    default = refined(PROMPT, **call)
    assert np.array_equal(default.latents, refined(PROMPT, refiner_start=0.8, **call).latents)
    document = json.loads(default.images[0].info["latentrt"])
    checkpoint = shapes.bundle.manifest.checkpoint
    assert (document["refiner_start"], document["refiner"]) == (0.8, checkpoint.name)
    assert document["refiner_sha256"] == checkpoint.sha256
    assert (
        f"Refiner switch at: 0.8, Refiner: {checkpoint.name} [{checkpoint.sha256[:10]}]"
        in (default.images[0].info["parameters"])
    )
    refined.warm_up(height=64, width=48)


def test_refined_pictures_are_drawn_again(refined: Pipeline, tmp_path: Path, capsys: Any) -> None:
    picture = refined(PROMPT, seed=9, refiner_start=0.6, **SIZE).images[0]
    picture.save(tmp_path / "a.png")
    again = ["generate", "--like", str(tmp_path / "a.png"), "--device", "cpu", "-o", str(tmp_path / "b.png")]
    assert main(again) == 1
    assert "was refined with shapes (sha256 " in capsys.readouterr().err
    assert main([*again, "--refiner", str(SHAPES.bundle)]) == 0
    assert np.array_equal(Image.open(tmp_path / "b.png"), picture)
    assert main([*again, "--refiner-start", "1"]) == 1  # of a pipeline without a refiner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refiner_start": 0.5}, r"refiner_start=0.5: there is no refiner; load one with Pipeline.load\(refiner="),
        ({"hires_steps": 3}, "hires_steps: of the second pass, which hires_scale asks for"),
        ({"hires_scale": 0.5}, "hires_scale=0.5: expected a number from 1 to 8"),
        ({"hires_scale": 2, "hires_upscaler": "esrgan"}, "hires_upscaler='esrgan': expected one of 'latent'"),
        ({"hires_scale": 2, "mask_image": "x.png"}, "mask_image: does not go with hires_scale"),
        ({"hires_scale": 2, "denoising_end": 0.5}, "denoising_end: does not go with hires_scale"),
        ({"hires_scale": 2, "scheduler": Plan.from_config({"_class_name": "DDIMScheduler", "clip_sample": False}, 3)},
         "a compiled plan is of one pass"),
        ({"hires_scale": 2, "height": 8192, "width": 8192}, "1 images of 16384x16384 pixels"),
        ({"hires_scale": 2, "seed": "x"}, "seed='x'"),
        ({"hires_scale": 2, "hires_steps": 900, "hires_strength": 0.5}, "num_inference_steps=1800"),
        ({"aesthetic_score": 5}, "aesthetic_score: only SDXL's refiner takes an aesthetic score"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_does_not_go_together_is_told(facts: ModelFacts, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, SchedulerError), match=message):
        checked_call(facts, "a", {**SIZE, **options})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hires_scale": 2}, "hires_scale does not go with the refiner: pass refiner_start=1"),
        ({"denoising_end": 0.5}, "denoising_end: does not go with a refiner"),
        ({"image": "x.png", "mask_image": "x.png"}, "mask_image: does not go with a refiner"),
        ({"prompt_embeds": np.zeros((1, 77, 64), np.float32)}, "prompt_embeds: does not go with a refiner"),
        ({"scheduler": "restart"}, "denoising_start and denoising_end have no meaning"),
        ({"refiner_start": 0.01, "scheduler": "ddim:timestep_spacing=leading"}, "denoising_end=0.01"),
        ({"refiner_start": 0}, "refiner_start=0: expected a number above 0"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_does_not_go_with_a_refiner_is_told(facts: ModelFacts, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, SchedulerError), match=message):
        checked_call(facts, "a", {**SIZE, **options}, refiner=facts)  # type: ignore[typeddict-item]


def test_a_refiner_of_other_latents_or_another_scale_is_refused(facts: ModelFacts) -> None:
    model = replace(facts.manifest.model, scaling_factor=0.5)
    other = ModelFacts(replace(facts.manifest, model=model), facts.scheduler_config)
    with pytest.raises(InputError, match=r"the refiner has scaling_factor 0.5, and the base"):
        checked_call(facts, "a", {**SIZE}, refiner=other)
    euler = {**facts.scheduler_config, "_class_name": "EulerDiscreteScheduler"}
    ddim = {**facts.scheduler_config, "_class_name": "DDIMScheduler"}
    base = ModelFacts(facts.manifest, ddim)
    with pytest.raises(InputError, match=r"of their size, and the refiner's scheduler expects 1: pass a scheduler"):
        checked_call(base, "a", {**SIZE}, refiner=ModelFacts(facts.manifest, euler))
    checked_call(base, "a", {**SIZE, "scheduler": "euler"}, refiner=ModelFacts(facts.manifest, euler))


def test_one_pass_says_what_it_does_not_do(facts: ModelFacts) -> None:
    for options in ({"hires_scale": 2.0}, {"refiner_start": 0.5}, {"hires_steps": 2}):
        with pytest.raises(InputError, match="this draws in one pass; leave it out"):
            Request.from_call(facts.manifest, facts.scheduler_config, "a", options)  # type: ignore[arg-type]
