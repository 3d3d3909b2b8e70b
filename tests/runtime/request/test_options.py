"""The table of options: types, limits, and everything generated from its rows."""

import argparse
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from support.exports import ROOT, SHAPES, Exported

from latentrt.runtime import InputError, Plan, SchedulerError
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.cli.flags import add_option_flags, given_options
from latentrt.runtime.request import OPTIONS, CallOptions, Request
from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import checked, json_options, options_table, request_schema

MANIFEST = Bundle.open(SHAPES.bundle).manifest
EULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}

# A value of each option that differs from its default.
EXAMPLES: dict[str, Any] = {
    "num_inference_steps": 3,
    "scheduler": "euler_a",
    "guidance_scale": 2.5,
    "seed": 7,
    "rng": "cuda",
    "noise_seed_delta": 3,
    "negative_prompt": "a square",
    "prompt_2": "a red circle",
    "negative_prompt_2": "blue",
    "prompt_syntax": "web-ui",
    "long_prompt": "chunk",
    "num_images_per_prompt": 2,
    "height": 64,
    "width": 72,
    "eta": 0.5,
    "timesteps": [900.0, 500.0, 100.0],
    "sigmas": [9.0, 3.0, 0.0],
    "clip_skip": 1,
    "guidance_rescale": 0.3,
    "guidance_start": 0.2,
    "guidance_end": 0.8,
    "image": "photo.png",
    "mask_image": "mask.png",
    "strength": 0.6,
    "control_image": {"canny": "edges.png"},
    "controlnet_conditioning_scale": {"canny": 0.7},
    "control_guidance_start": 0.1,
    "control_guidance_end": {"canny": 0.9},
    "control_mode": 2,
    "guess_mode": True,
    "ip_adapter_image": "face.png",
    "ip_adapter_scale": [0.5, 0.25],
    "t2i_image": "sketch.png",
    "adapter_conditioning_scale": 0.8,
    "adapter_conditioning_factor": 0.6,
    "denoising_start": 0.5,
    "denoising_end": 0.6,
    "latents": "noise.npy",
    "original_size": (96, 80),
    "crops_coords_top_left": (3, 5),
    "target_size": (64, 48),
    "negative_original_size": (32, 40),
    "negative_crops_coords_top_left": (1, 2),
    "negative_target_size": (48, 32),
    "aesthetic_score": 7.5,
    "negative_aesthetic_score": 1.5,
    "refiner_start": 0.7,
    "hires_scale": 1.5,
    "hires_strength": 0.4,
    "hires_steps": 4,
    "hires_upscaler": "lanczos",
    "vae_tiling": True,
}


def test_every_option_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(json_options())
    assert set(OPTIONS) == set(CallOptions.__annotations__)


# --- types and limits -------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    object(),
    b"bytes",
    {1, 2},
    1j,
    float("nan"),
    float("inf"),
    Fraction(1, 3),
    np.array([1, 2]),
    np.array(3),
    np.zeros((2, 2, 2, 2, 2)),
    [],
    [[]],
    [None],
    {"a": object()},
    {1: 2},
    lambda: 0,
    -1,
    2**64,
    10**30,
    "nonexistent.png",
    "\ud800",
    Path("nowhere"),
    True,
]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", ODD, ids=[f"{i}-{type(value).__name__}" for i, value in enumerate(ODD)])
def test_odd_values_are_accepted_or_refused(name: str, value: Any) -> None:
    """Only errors of latentrt are raised."""
    message = ""
    try:
        Request.from_call(MANIFEST, EULER, "a", {"num_inference_steps": 2, name: value})  # type: ignore[misc]
    except (InputError, SchedulerError) as error:
        message = str(error)
    assert len(message) < 1500


@pytest.mark.parametrize("name", OPTIONS)
def test_numpy_scalars_are_numbers_and_arrays_are_not(name: str) -> None:
    given = EXAMPLES.get(name)
    if isinstance(given, bool) or not isinstance(given, int | float):
        return
    scalar: Any = np.int64(given) if isinstance(given, int) else np.float32(given)
    got = checked({name: scalar}, MANIFEST)[name]  # type: ignore[literal-required]
    assert type(got) is type(given)
    assert got == pytest.approx(given)
    with pytest.raises(InputError, match=f"^{name}=.*: expected a"):
        checked({name: np.array([given])}, MANIFEST)
    with pytest.raises(InputError, match=f"^{name}=.*: expected a"):
        checked({name: np.array(given)}, MANIFEST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 10**30}, r"height=10+: expected an integer from 8 to 16384"),
        ({"width": 2**31 - 8}, r"width=2147483640: expected an integer from 8 to 16384"),
        ({"num_images_per_prompt": 10**9}, r"num_images_per_prompt=1000000000: expected an integer from 1 to 1024"),
        ({"timesteps": "999,1"}, r"timesteps='999,1': expected a list of at most 10000 numbers"),
        ({"sigmas": [1, float("nan")]}, r"sigmas=\[1, nan\]: expected a list of at most 10000 numbers"),
        ({"sigmas": range(10**7, 0, -1)}, r"sigmas=range\(10000000, 0, -1\): expected a list of at most 10000 numbers"),
        ({"timesteps": [10**400]}, r"expected numbers that fit a float"),
        ({"seed": range(10**8)}, r"seed=range\(0, 100000000\): expected at most 1024 seeds"),
        ({"vae_tiling": 1}, r"vae_tiling=1: expected True or False"),
        ({"original_size": (1, 2, 3)}, r"expected a pair of integers >= 0"),
        ({"scheduler": [1]}, r"expected a scheduler's name, a diffusers config, or a Plan"),
        ({"latents": "noise.png"}, r"expected an array, or the path of a .npy file"),
        ({"prompt_embeds": {1, 2}}, r"prompt_embeds='set': expected an array of numbers"),
        ({"seed": np.array([1, 2])}, r"seed=.*expected an integer, or a list with one for each image"),
        ({"seed": 2**64}, r"seed="),
        ({"negative_prompt": []}, r"negative_prompt=\[\]: expected a text or a non-empty list of texts"),
        ({"rng": np.array(["cpu"])}, r"expected one of 'cpu', 'cuda'"),
    ],
)
def test_messages_say_what_was_given_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(options, MANIFEST)


def test_pictures_are_counted_before_they_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: pytest.fail("a picture was resized"))
    picture = Image.new("RGB", (16, 16))
    with pytest.raises(InputError, match="20 images for 1 prompts"):
        Request.from_call(MANIFEST, EULER, "a", {"image": [picture] * 20, "height": 8192, "width": 8192})
    with pytest.raises(InputError, match="2 images of 16384x16384 pixels"):
        Request.from_call(MANIFEST, EULER, ["a", "b"], {"image": picture, "height": 16384, "width": 16384})


def test_images_of_all_prompts_are_counted() -> None:
    with pytest.raises(InputError, match="600 prompts of 2 images each: expected at most 1024 images"):
        Request.from_call(MANIFEST, EULER, ["a"] * 600, {"num_images_per_prompt": 2})
    with pytest.raises(InputError, match=r"2 images of 16384x16384 pixels: expected at most 67,108,864 pixels"):
        Request.from_call(MANIFEST, EULER, "a", {"num_images_per_prompt": 2, "height": 16384, "width": 16384})


# --- generated from the rows ------------------------------------------------------------------------------------------


def test_the_docs_hold_the_table() -> None:
    command = "python -c \"from latentrt.runtime.request.options import options_table; print(options_table(), end='')\""
    assert options_table() in (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), command


def test_every_flag_gives_its_option() -> None:
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    words = []
    for name, value in EXAMPLES.items():
        flag = OPTIONS[name].flag or f"--{name.replace('_', '-')}"
        named = [f"{net}={one}" for net, one in value.items()] if isinstance(value, dict) else [value]
        values = value if isinstance(value, tuple) else named
        listed = [",".join(map(str, value))] if isinstance(value, list) else map(str, values)
        words += [flag] if value is True else [flag, *listed]
    got = given_options(parser.parse_args(words))
    assert got == {name: list(value) if isinstance(value, tuple) else value for name, value in EXAMPLES.items()}


def test_the_schema_takes_what_the_check_takes() -> None:
    schema = request_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"prompt": "a", **json.loads(json.dumps(EXAMPLES))})
    assert not validator.is_valid({"seed": 1})
    assert not validator.is_valid({"prompt": "a", "output_type": "np"})
    draw = random.Random(5)
    values: list[Any] = [None, True, -1, 0, 1, 0.5, 8, 64, 1025, 20000, "cpu", "x", [], [1, 2], ["a"], {}, [0.5]]
    for _ in range(2000):
        name, value = draw.choice(list(json_options())), draw.choice(values)
        if name in BY_HASH or value is None:  # paths are opened; None means "not given"
            continue
        try:
            checked({name: value}, MANIFEST)
        except InputError:
            continue
        assert validator.is_valid({"prompt": "a", name: value}), (name, value)


def test_defaults_are_those_of_the_table_and_the_bundle(sd1: Exported) -> None:
    manifest = Bundle.open(sd1.bundle).manifest
    values = checked({}, manifest)
    assert values["guidance_scale"] == manifest.defaults.guidance_scale
    assert (values["rng"], values["clip_skip"], values["output_type"]) == ("cpu", 0, "pil")
    assert checked({"rng": None}, manifest)["rng"] == "cpu"


def test_a_plan_survives_json() -> None:
    plan = Plan.from_config(EULER, 3)
    row = OPTIONS["scheduler"].kind
    document = json.loads(json.dumps(row.to_json(plan)))
    again = row.check("scheduler", document, MANIFEST)
    assert all(np.array_equal(a, b) for a, b in zip(plan.to_arrays().values(), again.to_arrays().values(), strict=True))
    with pytest.raises(SchedulerError, match="the plan is missing 'timesteps'"):
        row.check("scheduler", {k: v for k, v in document.items() if k != "timesteps"}, MANIFEST)
    with pytest.raises(SchedulerError, match="a value that is not a number"):
        row.check("scheduler", {**document, "timesteps": ["x"]}, MANIFEST)
