"""A request that comes back from its document is the same in every bit."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import Exported
from support.lora_files import shapes_file

from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.request import Call, Request
from latentrt.serve.jobs.resolved import ModelChangedError, Resolver, shown_request
from latentrt.serve.jobs.store import KeptJob, NewJob
from latentrt.serve.messages import Job, Output, Previews
from latentrt.serve.served_model import ServedModel

from .fakes import job_for, shapes_model

RNG = np.random.default_rng(5)
PICTURE = Image.fromarray(RNG.integers(0, 256, (37, 53, 3), np.uint8))
MASK = Image.fromarray(np.uint8(255) * (RNG.random((37, 53)) > 0.5))
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 0.001, "beta_end": 0.02, "clip_sample": False}
PALETTE = PICTURE.quantize(7)
PALETTE.info["transparency"] = 3
TURNED = PICTURE.copy()
TURNED.info["exif"] = (exif := Image.Exif(), exif.__setitem__(0x0112, 6), exif.tobytes())[2]
PLAN = Plan.from_config({"_class_name": "EulerDiscreteScheduler"}, 3)
LARGE = {"width": 64, "height": 64}
LONG = "a (red:1.3) star, [blue] BREAK " * 12
CALLS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one seed": {"seed": 7},
    "seeds": {"seed": [2**63 + 5, 0], "num_images_per_prompt": 2},
    "images": {"num_images_per_prompt": 3},
    "prompts": {"prompt": ["a", "b"], "num_images_per_prompt": 2, "negative_prompt": ["c", ""]},
    "unusual": {"prompt": '\U0001f308 ☃ \x00\\"', "negative_prompt": "\u2028"},
    "long": {"prompt": LONG, "long_prompt": "chunk"},
    "web-ui": {"prompt": LONG.replace("BREAK", "AND", 11), "prompt_syntax": "web-ui", "clip_skip": 1},
    "scheduler": {"scheduler": "euler_a", "noise_seed_delta": 31337, "rng": "cuda"},
    "config": {"scheduler": DDIM, "eta": 0.7},
    "named config": {"scheduler": {"name": "euler", "timestep_spacing": "trailing"}},
    "plan": {"scheduler": PLAN, "num_inference_steps": None},
    "plan from a picture": {"scheduler": PLAN, "num_inference_steps": None, "image": PICTURE},
    "timesteps": {"scheduler": "euler", "num_inference_steps": None, "timesteps": [951, 600, 77]},
    "sigmas": {"scheduler": "euler", "num_inference_steps": None, "sigmas": (11.5, 3.25, 1.0, 0.0)},
    "cfg++": {"scheduler": "euler_cfg_pp"},
    "guidance": {"guidance_scale": 2.5, "guidance_rescale": 0.6, "guidance_start": 0.1, "guidance_end": 0.9},
    "picture": {"image": PICTURE},
    "pictures": {"prompt": ["a", "b"], "image": [PICTURE, PALETTE], "strength": 0.7},
    "palette": {"image": PALETTE, "strength": 1},
    "turned": {"image": TURNED},
    "grey": {"image": PICTURE.convert("LA")},
    "cmyk": {"image": PICTURE.convert("CMYK")},
    "mask": {"image": PICTURE, "mask_image": MASK},
    "one bit": {"image": PICTURE, "mask_image": MASK.convert("1"), "strength": 1.0},
    "deep mask": {"image": PICTURE, "mask_image": Image.fromarray(np.asarray(MASK).astype(np.uint16) * 257)},
    "bytes": {"image": np.asarray(PICTURE)},
    "floats": {"image": RNG.random((37, 53, 3)), "mask_image": RNG.random((32, 32)).astype(np.float32)},
    "booleans": {"image": PICTURE, "mask_image": RNG.random((37, 53)) > 0.5},
    "stack": {"prompt": ["a", "b"], "image": RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)},
    "latents": {"image": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32), "denoising_start": 0.5, **LARGE},
    "noise": {"latents": RNG.standard_normal((2, 4, 4, 4)), "num_images_per_prompt": 2},
    "end": {"denoising_end": 0.5, "scheduler": "euler"},
    "tiling": {"vae_tiling": True},
}


def kept_of(new: NewJob, **changes: Any) -> KeptJob:
    own = {f.name: getattr(new, f.name) for f in fields(KeptJob) if hasattr(new, f.name)}
    rest = {"state": "running", "alone": False, "number": 1, "attempts": 1, "created": 0.0, "started": None}
    ended = {"ended": None, "expires": None, "failure": None, "pictures": (), "timings": {}}
    return KeptJob(**{**own, **rest, **ended, **changes})


def again(model: ServedModel, job: Job) -> Job:
    """The job through its document, at another resolver, as after a restart."""
    new = Resolver(lambda: {model.name: model}).new_job(job, now=100.0)
    assert new.document.isascii()
    kept = kept_of(new)
    resolver = Resolver(lambda: {model.name: model})
    assert resolver.inputs_of(kept) == set(new.inputs)
    return resolver.job(kept, new.inputs.__getitem__, now=100.0)


def assert_same(ours: Any, other: Any) -> None:
    """Equal in every bit and type."""
    if isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif hasattr(ours, "__dataclass_fields__"):
        for field in fields(ours):
            assert_same(getattr(ours, field.name), getattr(other, field.name))
    else:
        assert ours == other


def assert_same_request(ours: Request, other: Request) -> None:
    for field in fields(Request):
        if field.name != "options":
            assert_same(getattr(ours, field.name), getattr(other, field.name))
    assert_same(ours.guidance, other.guidance)
    fixed = ("seed", "height", "width", "num_inference_steps", "strength")
    for name, value in ours.options.items():
        if name not in (*fixed, "scheduler", "image", "mask_image", "latents"):
            assert other.options[name] == value, name  # type: ignore[literal-required]
    assert other.options["seed"] == ours.seeds


@pytest.mark.parametrize("name", CALLS)
def test_the_request_comes_back(name: str) -> None:
    options = dict(CALLS[name])
    model = shapes_model()
    job = job_for(model, prompt=options.pop("prompt", "a star"), options=options)
    other = again(model, job)
    assert_same_request(job.request, other.request)
    assert_same_request(job.request, again(model, other).request)


def test_sizes_of_sdxl_come_back(exported: Callable[[str], Exported]) -> None:
    bundle = Bundle.open(exported("sdxl-fp32").bundle)
    model = ServedModel("sdxl", bundle, sizes=[(32, 32)])
    sizes = {"original_size": (600, 400), "crops_coords_top_left": (3, 5), "target_size": (64, 64)}
    negative = {"negative_original_size": (20, 10), "negative_target_size": (8, 8)}
    job = job_for(model, options={**sizes, **negative, "prompt_2": "a circle", "negative_prompt_2": "no"})
    assert_same_request(job.request, again(model, job).request)


@pytest.mark.parametrize("name", ["seeds", "mask", "noise", "long", "plan"])
def test_the_same_latents_are_drawn(name: str) -> None:
    options = dict(CALLS[name])
    model = shapes_model()
    job = job_for(model, prompt=options.pop("prompt", "a star"), options=options)
    with Pipeline.load(device="cpu") as pipe:
        first, second = (
            [step.result for step in pipe._checked_steps(Call(request))][-1]
            for request in (job.request, again(model, job).request)
        )
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.latents, second.latents)


def test_what_is_not_of_the_request_comes_back(tmp_path: Path) -> None:
    shapes_file(tmp_path / "style.safetensors", 3)
    model = shapes_model(lora_folder=tmp_path)
    job = job_for(
        model,
        "an id",
        loras=(("style", 0.5),),
        weight=2.5,
        priority="batch",
        deadline=30.0,
        output=Output("webp", 70, False),
        previews=Previews("vae", 3),
    )
    other = again(model, job)
    for field in fields(Job):
        if field.name != "request":
            assert getattr(other, field.name) == getattr(job, field.name)
    shown = shown_request(Resolver(lambda: {"shapes": model}).new_job(job, now=0).document)
    assert shown is not None
    assert (shown["loras"], shown["seed"], shown["prompt"]) == ({"style": 0.5}, list(job.request.seeds), ["a red star"])


def test_another_model_is_found_out(tmp_path: Path) -> None:
    lora = tmp_path / "style.safetensors"
    shapes_file(lora, 3)
    model = shapes_model(lora_folder=tmp_path)
    models: dict[str, ServedModel] = {"shapes": model}
    resolver = Resolver(lambda: models)
    new = resolver.new_job(job_for(model, loras=(("style", 1.0),)), now=0)
    kept = kept_of(new)
    resolver.job(kept, new.inputs.__getitem__, now=0)

    def message() -> str:
        with pytest.raises(ModelChangedError) as raised:
            resolver.job(kept, new.inputs.__getitem__, now=0)
        return str(raised.value)

    data = lora.read_bytes()
    lora.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "another file" in message()
    lora.unlink()
    assert "not there" in message()
    lora.write_bytes(data)
    models["shapes"] = ServedModel("shapes", model.bundle, sizes=[(64, 64)], lora_folder=tmp_path)
    assert "32x32" in message()
    other = json.loads(new.document) | {"bundle": "0" * 64}
    with pytest.raises(ModelChangedError, match="another bundle"):
        resolver.job(replace(kept, document=json.dumps(other)), new.inputs.__getitem__, now=0)
    models.clear()
    assert "no model" in message()


def test_a_clients_object_is_not_taken_for_a_note() -> None:
    """Else a client could name the bytes of another client's picture, or files that are not there."""
    model = shapes_model()
    config: Mapping[str, Any] = {**DDIM, "$kept": "array", "sha256": "0" * 64}
    try:
        job = job_for(model, options={"scheduler": config})
    except ValueError:
        return  # refused before; fine as well
    assert again(model, job).request.options["scheduler"] == config


def test_the_accepted_plan_is_drawn() -> None:
    """Also where the scheduler's code would compile another one by now."""
    model = shapes_model()
    job = job_for(model)
    plan = Plan.from_arrays({**job.request.plan.to_arrays(), "timesteps": job.request.plan.timesteps + np.float32(1)})
    accepted = replace(job, request=replace(job.request, plan=plan))
    assert_same(again(model, accepted).request.plan, plan)


def test_no_path_of_the_server_is_in_a_document() -> None:
    model = shapes_model()
    new = Resolver(lambda: {"shapes": model}).new_job(job_for(model), now=0)
    assert os.fspath(model.bundle.path) not in new.document
