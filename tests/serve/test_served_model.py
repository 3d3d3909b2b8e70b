"""What the front end checks of a call, before any work."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from support.exports import SHAPES

from latentrt.runtime import Bundle, InputError
from latentrt.runtime.bundle import EngineRecord
from latentrt.serve.served_model import Limits, ServedModel, sizes_of_engines, usual_sizes

BUNDLE = Bundle.open(SHAPES.bundle)


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    (tmp_path / "ink.safetensors").touch()
    return ServedModel("shapes", BUNDLE, lora_folder=tmp_path, limits=Limits(images=3, steps=20, chunks=2, loras=1))


def test_usual_sizes() -> None:
    assert usual_sizes(1024, 1024)[:3] == ((1024, 1024), (1152, 896), (896, 1152))
    assert (1344, 768) in usual_sizes(1024, 1024)
    for width, height in usual_sizes(512, 512):
        assert width % 64 == height % 64 == 0
        assert abs(width * height / 512**2 - 1) < 0.12


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a star", {"width": 256, "height": 128}, "the nearest is 192x128"),
        ("a star", {"num_images_per_prompt": 4}, "at most 3"),
        ("a star", {"num_inference_steps": 21}, "21 UNet calls"),
        ("a star", {"num_inference_steps": 15, "scheduler": "heun"}, "UNet calls"),
        ("star " * 400, {"long_prompt": "chunk"}, "150 tokens"),
        ("a star", {"image": "photo.png"}, "not a path"),
        ("a star", {"latents": b"x"}, "not a path"),
    ],
)
def test_what_a_call_may_not_ask_for(model: ServedModel, prompt: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.request(prompt, options)


def test_the_length_of_the_texts_is_that_of_the_trajectory(model: ServedModel) -> None:
    long = model.request("star " * 100, {"long_prompt": "chunk"})
    assert (model.bucket(long).tokens, model.bucket(long).groups) == (154, 2)
    plain = model.request("star " * 100, {"guidance_scale": 1.0})
    assert (model.bucket(plain).tokens, model.bucket(plain).groups) == (77, 1)


def test_a_request_crosses_processes(model: ServedModel) -> None:
    request = model.request("a star", {"seed": 5, "scheduler": "euler"})
    copy = pickle.loads(pickle.dumps(request))
    assert (copy.seeds, copy.scheduler, copy.positive.texts) == (request.seeds, "euler", request.positive.texts)
    assert (copy.plan.coefficients == request.plan.coefficients).all()


def test_loras(model: ServedModel) -> None:
    assert model.loras({"ink": 0.5}) == (("ink", 0.5),)
    assert model.loras({"ink": 0}) == ()
    for given, message in (
        ({"inc": 1.0}, "did you mean 'ink'"),
        ({"../ink": 1.0}, "unknown LoRA"),
        ({"ink": float("nan")}, "from -100 to 100"),
        ({"ink": True}, "from -100 to 100"),
    ):
        with pytest.raises(InputError, match=message):
            model.loras(given)


def test_sizes_of_engines() -> None:
    fixed = EngineRecord(
        "denoise", "x.engine", "tensorrt", "10.16", None, ("8.9",), "fp16", False,
        {"B": (1, 4, 8), "h": (16, 16, 16), "w": (24, 24, 24)}, {}, False, "", None,
    )  # fmt: skip
    assert sizes_of_engines(BUNDLE, [fixed]) == ((192, 128),)
    ranged = replace(fixed, profile={"h": (8, 16, 16), "w": (8, 16, 24)})
    assert sizes_of_engines(BUNDLE, [fixed, ranged]) == ((192, 128), (128, 128))
    assert sizes_of_engines(BUNDLE, [replace(fixed, graph="vae_decoder"), replace(fixed, profile={})]) is None
