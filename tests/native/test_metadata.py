"""The text that C++ writes into PNG files is Python's, byte for byte."""

import ctypes
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.exports import SHAPES
from support.native import probe
from support.probe_arguments import Pair, address, pixels, size, text_of

from latentrt.runtime import Pipeline
from latentrt.runtime.request import Request
from latentrt.runtime.request.guidance import is_plus_plus
from latentrt.runtime.request.metadata import hashed
from latentrt.runtime.request.time_inputs import SIZE_OPTIONS
from latentrt.runtime.scheduler import Plan, resolve

ARRAYS = ("timesteps", "coefficients", "initial", "noise_levels", "blend", "guidance")
TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "scheduler")
WORDS = {"rng": ("cpu", "cuda"), "prompt_syntax": ("plain", "web-ui"), "long_prompt": ("truncate", "chunk")}


class Recorded(ctypes.Structure):
    """`ProbeRecorded`."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in TEXTS),
        ("num_inference_steps", ctypes.c_int64),
        ("strength", ctypes.c_double),
        ("guidance_scale", ctypes.c_double),
        ("guidance_rescale", ctypes.c_double),
        ("guidance_start", ctypes.c_double),
        ("guidance_end", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("rng", ctypes.c_int32),
        ("prompt_syntax", ctypes.c_int32),
        ("long_prompt", ctypes.c_int32),
        ("plus_plus", ctypes.c_int32),
        ("vae_tiling", ctypes.c_int32),
        ("noise_seed_delta", ctypes.c_int64),
        ("clip_skip", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("pairs", Pair * 6),
        ("image", ctypes.c_char_p),
        ("mask", ctypes.c_char_p),
        ("latents", ctypes.c_char_p),
        ("model", ctypes.c_char_p),
        ("model_sha256", ctypes.c_char_p),
        ("version", ctypes.c_char_p),
        ("calls", ctypes.c_size_t),
        ("arrays", ctypes.c_void_p * 6),
        ("draws", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle) as loaded:
        yield loaded


def sha256_of(given: Any) -> bytes:
    """By C++; "" for nothing."""
    if given is None:
        return b""
    out = ctypes.create_string_buffer(65)
    array = np.ascontiguousarray(given)
    if array.dtype == np.float32:
        probe().probe_hash_of_floats(address(array), size(array.size), out)
    else:
        probe().probe_hash_of_picture(pixels([array]), out)
    return out.value


def picture_of(given: Any, row: int) -> Any:
    """The one of several pictures that an image was drawn from."""
    if isinstance(given, list) or (isinstance(given, np.ndarray) and given.ndim == 4):
        return given[row if len(given) > 1 else 0]
    return given


def recorded(request: Request, index: int, source: dict[str, str]) -> Recorded:
    """What a library that has this request knows of one of its images."""
    options, positive, negative = request.options, request.positive, request.negative
    mine = Recorded()
    given: Any = options
    texts = (
        positive.texts[0][index].text,
        negative.texts[0][index].text if negative.is_text else None,
        None,
        None,
        given["scheduler"] if isinstance(given["scheduler"], str) else request.scheduler,
    )
    for name, text in zip(TEXTS, texts, strict=True):
        setattr(mine, name, text.encode() if text is not None else None)
    for name in (
        "guidance_scale",
        "guidance_rescale",
        "guidance_start",
        "guidance_end",
        "noise_seed_delta",
        "clip_skip",
    ):
        setattr(mine, name, given[name])
    for name, allowed in WORDS.items():
        setattr(mine, name, allowed.index(given[name]))
    mine.num_inference_steps = request.num_inference_steps or 0
    mine.strength = -1 if request.strength is None else request.strength
    mine.seed, mine.height, mine.width = request.seeds[index], request.height, request.width
    mine.plus_plus, mine.vae_tiling = is_plus_plus(request.plan), given["vae_tiling"]
    mine.pairs = (Pair * 6)(*(Pair(*(given[name] or (-1, -1))) for name in SIZE_OPTIONS))
    row = 0 if request.image is None else int(request.image.rows[index])
    latents = None if request.image is None else request.image.latents
    mine.image = sha256_of(picture_of(given["image"], row) if latents is None else latents[row])
    mine.mask = sha256_of(picture_of(given["mask_image"], row))
    mine.latents = sha256_of(None if request.noise is None else request.noise[index])
    for name, value in source.items():
        setattr(mine, name, value.encode())
    return mine


def with_plan(mine: Recorded, plan: Plan) -> list[NDArray[Any]]:
    """Puts a plan of the caller in; returns the arrays, which must be kept."""
    arrays = [np.ascontiguousarray(getattr(plan, name), np.float32) for name in ARRAYS]
    draws = np.ascontiguousarray(plan.draws, np.uint8)
    mine.calls, mine.draws = len(plan), draws.ctypes.data
    mine.arrays = (ctypes.c_void_p * 6)(*(array.ctypes.data for array in arrays))
    mine.scheduler = b""
    return [*arrays, draws]


def written(mine: Recorded) -> dict[str, str]:
    text = text_of("probe_png_texts", ctypes.byref(mine))
    return dict(part.split("=", 1) for part in text.split("\0") if part)


def compare(pipeline: Pipeline, prompt: Any, options: dict[str, Any]) -> list[dict[str, str]]:
    """Every image of a call, drawn by nobody: Python's texts and those of C++."""
    references = pipeline.png_texts(prompt, **options)
    manifest = pipeline.bundle.manifest
    options = {**options, "seed": json.loads(references[0]["latentrt"])["seed"]} if "seed" not in options else options
    request = Request.from_call(manifest, pipeline._stages.facts.scheduler_config, prompt, options)  # type: ignore[arg-type]
    document = json.loads(references[0]["latentrt"])
    source = {
        "model": manifest.checkpoint.name,
        "model_sha256": manifest.checkpoint.sha256,
        "version": document["version"],
    }
    for index, reference in enumerate(references):
        mine = recorded(request, index, source)
        kept = with_plan(mine, request.plan) if isinstance(options.get("scheduler"), Plan) else []
        assert written(mine) == reference
        del kept
    return references


def picture(channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (64, 72) if channels == 1 else (64, 72, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


PROMPTS = {
    "plain": "a red star on a blue background",
    "empty": "",
    "quotes": 'a "red" star, \'blue\' \\ back\\slash / {"json": [1]}',
    "lines": "first line\nsecond line\r\nthird\ttab, Steps: 99, Seed: 1",
    "unicode": "étoile rouge, 赤い星, красная звезда, \u2028 \ufeff \xa0",
    "emoji": "a 😀 and a 👩\u200d🚀, \U0010ffff",
    "control": "bell \x07, escape \x1b, delete \x7f, \x1f\x0b\x0c\x08",
    "brackets": "(a red star:1.3), [blue], \\(real\\) BREAK a background",
}
SCHEDULERS = (
    "euler", "euler_a", "euler_karras", "euler_sgm_uniform", "euler_beta_timesteps", "ddim",
    "ddim:timestep_spacing=trailing", "dpm++_2m_karras", "dpm++_2m_sde_exponential", "unipc", "lcm", "heun", "tcd",
    "EulerDiscreteScheduler", "DPM++ 2M Karras", "dpmpp_2m", "plms", "euler_cfg_pp", "ddim_cfg_pp", "res_multistep",
    "deis:solver_order=3",
)  # fmt: skip
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"prompt {name}": (text, {"seed": 3}) for name, text in PROMPTS.items()},
    **{f"negative {name}": ("a star", {"negative_prompt": text, "seed": 4}) for name, text in PROMPTS.items()},
    **{f"scheduler {name}": ("a star", {"scheduler": name, "seed": 5}) for name in SCHEDULERS},
    "random seed": ("a star", {}),
    "seeds": ("a star", {"seed": [2**64 - 1, 2**32, 0], "num_images_per_prompt": 3}),
    "several prompts": (["one", "two"], {"negative_prompt": ["none", ""], "num_images_per_prompt": 2, "seed": 9}),
    "web ui": (PROMPTS["brackets"], {"prompt_syntax": "web-ui", "long_prompt": "chunk", "seed": 1}),
    "gpu": ("a star", {"rng": "cuda", "noise_seed_delta": 31337, "seed": 1}),
    "delta below zero": ("a star", {"noise_seed_delta": -5, "seed": 100}),
    "clip skip": ("a star", {"clip_skip": 1, "seed": 1}),
    "guidance": ("a star", {"guidance_scale": 12.34567891, "guidance_rescale": 0.7, "seed": 1}),
    "interval": ("a star", {"guidance_start": 0.1, "guidance_end": 1 / 3, "seed": 1, "guidance_scale": 1e-7}),
    "steps and size": ("a star", {"num_inference_steps": 7, "height": 64, "width": 96, "vae_tiling": True, "seed": 2}),
    "cfg++ with a scale": ("a star", {"scheduler": "euler_a_cfg_pp", "guidance_scale": 0.6, "seed": 2}),
    "image": ("a star", {"image": picture(), "strength": 0.55, "seed": 2}),
    "grey image": ("a star", {"image": picture(1), "seed": 2}),
    "images": (["a", "b"], {"image": [picture(3, 1), picture(4, 2)], "seed": 2, "num_images_per_prompt": 2}),
    "stack": (["a", "b"], {"image": np.stack([picture(3, 1), picture(3, 2)]), "strength": 1e-3 * 999, "seed": 2}),
    "pil image": ("a star", {"image": Image.fromarray(picture(4)), "seed": 2, "strength": 1.0}),
    "mask": ("a star", {"image": picture(), "mask_image": picture(1, 5), "seed": 2, "strength": 0.75}),
    "mask of 0 and 1": ("a star", {"image": picture(), "mask_image": picture(1, 5) // 128, "seed": 2}),
    "latents as image": ("a star", {"image": np.ones((1, 4, 8, 8), np.float32) / 3, "seed": 2}),
    "noise": (["a", "b"], {"latents": np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32), "seed": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_texts_equal_python(pipeline: Pipeline, name: str) -> None:
    prompt, options = CALLS[name]
    if "noise" in name:
        options = {**options, "height": 64, "width": 64}
    references = compare(pipeline, prompt, options)
    assert all(json.loads(text["latentrt"])["format"] == "latentrt.picture/1" for text in references)


def test_there_are_many_calls() -> None:
    assert len(CALLS) >= 40


@pytest.mark.parametrize("name", ["euler", "dpm++_2m_sde", "ddim_cfg_pp"])
def test_plans_of_the_caller_are_written_whole(pipeline: Pipeline, name: str) -> None:
    config = pipeline.bundle.path.joinpath(pipeline.bundle.manifest.scheduler).read_text()
    plan = Plan.from_config(resolve(name, json.loads(config)), 5)
    (reference,) = compare(pipeline, "a star", {"scheduler": plan, "seed": 8})
    assert "Sampler: custom plan" in reference["parameters"]
    assert len(json.loads(reference["latentrt"])["scheduler"]["coefficients"]) == len(plan)


def test_sizes_for_sdxl_are_written() -> None:
    """The small model takes none, so the values are made up, beside what Python writes for such a document."""
    mine = Recorded(prompt=b"p", scheduler=b"euler", model=b"m", model_sha256=b"0" * 64, version=b"1", image=b"")
    mine.mask, mine.latents, mine.strength = b"", b"", -1
    mine.pairs = (Pair * 6)(Pair(1, 2), Pair(0, 0), Pair(-1, -1), Pair(3, 4), Pair(-1, -1), Pair(5, 6))
    mine.prompt_2, mine.negative_prompt_2 = b"second", "zweites ä".encode()
    document = json.loads(written(mine)["latentrt"])
    names = ("original_size", "crops_coords_top_left", "negative_original_size", "negative_target_size")
    assert [document[name] for name in names] == [[1, 2], [0, 0], [3, 4], [5, 6]]
    assert "target_size" not in document
    assert (document["prompt_2"], document["negative_prompt_2"]) == ("second", "zweites ä")
    order = list(document)
    assert order.index("prompt_2") < order.index("negative_prompt_2") < order.index("prompt_syntax")


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_003])
def test_hashes_are_those_of_hashlib(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    for piece in (1, 7, 64, 100, length + 1):
        out = ctypes.create_string_buffer(65)
        probe().probe_sha256(data, size(length), size(piece), out)
        assert out.value.decode() == hashlib.sha256(data).hexdigest()


def test_pictures_with_gaps_have_the_hash_of_their_pixels() -> None:
    whole = picture()
    out = ctypes.create_string_buffer(65)
    structs = pixels([whole[:, :50]], stride=72 * 3)
    probe().probe_hash_of_picture(structs, out)
    assert {"sha256": out.value.decode()} == hashed(whole[:, :50])


def test_every_character_is_escaped_as_in_python() -> None:
    text = "".join(map(chr, (*range(0x300), 0x2028, 0xFFFF, 0x10FFFF)))
    data = text.encode()
    assert text_of("probe_json_text", data, size(len(data))) == json.dumps(text, ensure_ascii=False)
