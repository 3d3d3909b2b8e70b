"""The table of options in C++ is that of Python, and so are its checks, numbers, weights and sizes."""

import ctypes
import json
import struct
from typing import Any

import numpy as np
import pytest
from support.exports import ROOT, SHAPES
from support.native import probe
from support.probe_arguments import Pair, address, error_of, integer, number, size, text_of

from latentrt.runtime import Bundle
from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.request import guidance
from latentrt.runtime.request.options import OPTIONS, checked_value
from latentrt.runtime.request.time_inputs import SIZE_OPTIONS, guidance_embedding, time_ids_from_call
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.naming import _unlisted_names, scheduler_names
from latentrt.runtime.scheduler.web_ui_names import WEB_UI_SAMPLERS, to_web_ui

MANIFEST = Bundle.open(SHAPES.bundle).manifest


def refused(name: str, value: Any) -> str:
    """What Python says against a value, "" for nothing."""
    try:
        checked_value(name, OPTIONS[name].kind, value, MANIFEST)
    except InputError as error:
        return str(error)
    return ""


def test_the_generated_table_is_of_these_sources() -> None:
    namespace: dict[str, Any] = {"__name__": "option_table", "__file__": str(ROOT / "native/tools/option_table.py")}
    exec((ROOT / "native/tools/option_table.py").read_text(), namespace)  # a script, in no package
    assert namespace["FILE"].read_text() == namespace["option_table"](), "run native/tools/option_table.py"


def test_rows_are_those_of_python() -> None:
    rows = [line.split("\t") for line in text_of("probe_option_table").splitlines()]
    own = {name: option for name, option in OPTIONS.items() if option.native}
    assert [row[0] for row in rows] == list(own)
    for (name, _, fixed, in_json, label), option in zip(rows, own.values(), strict=True):
        constant = option.default is not None and not callable(option.default)
        assert fixed == (json.dumps(option.default) if constant else ""), name
        assert in_json == str(int(option.json)), name
        assert label == (option.web_ui[0] if option.web_ui else ""), name


@pytest.mark.parametrize("name", ["num_inference_steps", "noise_seed_delta", "num_images_per_prompt"])
@pytest.mark.parametrize(
    "value", [-(2**40), -(2**32) - 1, -(2**32), -1, 0, 1, 2, 1024, 1025, 10**4, 10**4 + 1, 2**32, 2**33]
)
def test_integers_are_checked_as_in_python(name: str, value: int) -> None:
    error = error_of(lambda text: probe().probe_check_integer(name.encode(), integer(value), text))
    assert error == refused(name, value)


@pytest.mark.parametrize(
    "name", ["guidance_scale", "guidance_rescale", "guidance_start", "guidance_end", "strength", "denoising_end"]
)
@pytest.mark.parametrize(
    "value", [-1e-9, -0.0, 0.0, 5e-324, 0.1 + 0.2, 0.999, 0.9991, 1.0, 1 + 2**-52, 1e3, 1000.5, 1e16, 1e22, -1e-5]
)
def test_numbers_are_checked_as_in_python(name: str, value: float) -> None:
    error = error_of(lambda text: probe().probe_check_number(name.encode(), number(value), text))
    assert error == refused(name, value)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    error = error_of(lambda text: probe().probe_check_number(b"strength", number(value), text))
    assert error == refused("strength", value) != ""


@pytest.mark.parametrize("name", ["rng", "prompt_syntax", "long_prompt"])
@pytest.mark.parametrize("value", ["cpu", "cuda", "plain", "web-ui", "truncate", "chunk", "CPU", ""])
def test_words_are_checked_as_in_python(name: str, value: str) -> None:
    error = error_of(lambda text: probe().probe_check_choice(name.encode(), value.encode(), text))
    assert error == refused(name, value)


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("value", [-8, 1, 7, 8, 12, 64, 100, 16384, 16385, 16392, 2**31 - 1])
def test_sides_are_checked_as_in_python(name: str, value: int) -> None:
    factor = MANIFEST.model.vae_scale_factor
    error = error_of(lambda text: probe().probe_check_side(name.encode(), integer(value), integer(factor), text))
    assert error == refused(name, value)


@pytest.mark.parametrize("value", [-1, 0, 1, 2, 3, 99])
def test_layers_are_checked_as_in_python(value: int) -> None:
    layers = min(encoder.hidden_states for encoder in MANIFEST.model.text_encoders)
    error = error_of(lambda text: probe().probe_check_layers(b"clip_skip", integer(value), integer(layers), text))
    assert error == refused("clip_skip", value)


@pytest.mark.parametrize("name", SIZE_OPTIONS)
@pytest.mark.parametrize("pair", [(0, 0), (512, 768), (-1, 5), (5, -1), (2**24, 1), (1, 2**24 + 1)])
def test_pairs_are_checked_as_in_python(name: str, pair: tuple[int, int]) -> None:
    error = error_of(lambda text: probe().probe_check_pair(name.encode(), *pair, text))
    assert error == refused(name, pair)


@pytest.mark.parametrize("letter", ["a", "é", "界", "😀"])
@pytest.mark.parametrize("count", [0, 100_000, 100_001])
def test_lengths_of_texts_are_counted_in_characters(letter: str, count: int) -> None:
    text = (letter * count).encode()
    error = error_of(lambda out: probe().probe_check_text(b"negative_prompt", text, size(len(text)), out))
    assert error == refused("negative_prompt", letter * count)


def seeds(given: list[int], images: int, delta: int = 0) -> tuple[list[int], str]:
    listed, out = np.array(given, np.uint64), np.zeros(images, np.uint64)
    error = error_of(
        lambda text: probe().probe_seeds(
            address(listed), size(len(given)), size(images), integer(delta), address(out), text
        )
    )
    return out.tolist(), error


def test_seeds_count_up_or_are_one_for_each() -> None:
    assert seeds([7], 3) == ([7, 8, 9], "")
    assert seeds([7, 2**64 - 1, 0], 3) == ([7, 2**64 - 1, 0], "")
    assert seeds([2**64 - 3], 3) == ([2**64 - 3, 2**64 - 2, 2**64 - 1], "")
    assert seeds([1, 2], 3)[1] == "2 seeds for 3 images: pass one, or one for each"
    assert seeds([], 2)[0] != seeds([], 2)[0]
    assert max(seeds([], 2)[0]) < 2**32 + 2


@pytest.mark.parametrize(
    ("given", "images", "delta"),
    [([2**64 - 2], 3, 0), ([2**64 - 1], 1, 1), ([5, 2**64 - 5], 2, 5), ([2**64 - 5], 1, 4)],
)
def test_seeds_beyond_64_bits_are_refused_as_in_python(given: list[int], images: int, delta: int) -> None:
    each = given if len(given) > 1 else range(given[0], given[0] + images)
    try:
        for seed in each:
            TorchGenerator(seed)
            TorchGenerator(seed + delta)
        reference = ""
    except InputError as error:
        reference = str(error)
    assert bool(seeds(given, images, delta)[1]) == bool(reference)


def test_names_of_web_uis_are_those_of_python() -> None:
    samplers = [str(known.ours["name"]) for known in WEB_UI_SAMPLERS if known.ours is not None]
    suffixes = ("", "_karras", "_sgm_uniform", "_beta", "_beta_timesteps", "_ddim_uniform", "_no")
    crossed = [f"{name}{end}" for name in samplers for end in suffixes]
    named = 0
    for name in (*scheduler_names(), *_unlisted_names(), *crossed, "", "_karras", "DPM++ 2M Karras", "nobody"):
        known = to_web_ui(name) or ("", None)
        named += bool(known[0])
        assert text_of("probe_to_web_ui", name.encode()).split("\n") == [known[0], known[1] or ""], name
    assert named > 200


def doubles(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng(2024)
    bits = np.frombuffer(rng.bytes(8 * count), np.float64)
    bits = bits[np.isfinite(bits)]
    tens = [
        sign * float(f"{digits}e{power}")
        for sign in (1, -1)
        for digits in (1, 9.5, 123456, 9999995)
        for power in range(-30, 30)
    ]
    short = rng.integers(-(10**6), 10**6, count // 4) / 10.0 ** rng.integers(0, 12, count // 4)
    edges = [
        0.0,
        -0.0,
        5e-324,
        2.2250738585072014e-308,
        1.7976931348623157e308,
        1e16,
        9999999999999998.0,
        1e-4,
        1e23,
        0.1,
    ]
    return np.concatenate([bits, rng.standard_normal(count // 4), short, tens, edges])


def test_numbers_are_written_as_python_writes_them() -> None:
    values = doubles(100_000)
    for kind in range(2):
        lines = text_of("probe_numbers", kind, address(values), size(values.size), room=1 << 23).splitlines()
        wanted = [f"{value:g}" if kind else repr(value) for value in values.tolist()]
        wrong = [(ours, theirs) for ours, theirs in zip(lines, wanted, strict=True) if ours != theirs]
        assert not wrong


def test_numbers_that_are_not_finite_are_written_too() -> None:
    nan = struct.unpack("<d", b"\0\0\0\0\0\0\xf8\xff")[0]  # with a sign
    values = np.array([np.inf, -np.inf, np.nan, nan])
    for kind in range(2):
        assert text_of("probe_numbers", kind, address(values), size(4)).split() == ["inf", "-inf", "nan", "nan"]


@pytest.mark.parametrize("value", [0, 7, 999, 1000, 123456, 67108864, 2**64 - 1])
def test_digits_are_grouped(value: int) -> None:
    assert text_of("probe_grouped", ctypes.c_uint64(value)) == f"{value:,}"


PLANS = {
    "plain": Plan.from_config({"_class_name": "EulerDiscreteScheduler"}, 12),
    "cfg++": Plan.from_config({"_class_name": "EulerDiscreteScheduler", "cfg_pp": True}, 9),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 7.5, 1000.0])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.1, 0.95), (0.5, 0.50001), (0.29, 0.58), (0.999, 1.0)])
def test_weights_of_guidance_equal_python(name: str, scale: float, start: float, end: float) -> None:
    plan = PLANS[name]
    table, out = np.ascontiguousarray(plan.guidance), np.zeros((len(plan), 2), np.float32)
    error = error_of(
        lambda text: probe().probe_guidance(
            number(scale), address(table), size(len(plan)), number(start), number(end), address(out), text
        )
    )
    assert not error
    np.testing.assert_array_equal(out, guidance.guidance_weights(scale, plan, start=start, end=end))
    assert guidance.is_plus_plus(plan) == (name == "cfg++")


def test_an_empty_interval_of_guidance_is_refused_as_in_python() -> None:
    table, out = np.array([[0, 1]], np.float32), np.zeros((1, 2), np.float32)
    with pytest.raises(InputError) as reference:
        guidance.check_interval(0.5, 0.25)
    error = error_of(
        lambda text: probe().probe_guidance(
            number(1), address(table), size(1), number(0.5), number(0.25), address(out), text
        )
    )
    assert error == str(reference.value)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_options_without_meaning_for_cfg_pp_are_refused_as_in_python(distilled: bool, rescale: float) -> None:
    try:
        guidance.check_plus_plus({"guidance_rescale": rescale}, distilled=distilled)
        reference = ""
    except InputError as error:
        reference = str(error)
    assert error_of(lambda text: probe().probe_check_plus_plus(number(rescale), int(distilled), text)) == reference


def test_guidance_is_on_above_one_or_above_zero() -> None:
    rows = [(scale, plus, distilled) for scale in (0, 0.5, 1, 1.5) for plus in (0, 1) for distilled in (0, 1)]
    on = [row for row in rows if probe().probe_is_guided(number(row[0]), row[1], row[2])]
    assert on == [(0.5, 1, 0), (1, 1, 0), (1.5, 0, 0), (1.5, 1, 0)]


class Graph:
    """As much of a graph as `time_ids_from_call` reads."""

    def __init__(self, name: str) -> None:
        self.inputs = (type("Spec", (), {"name": name, "shape": ("n", 6)}),)


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"original_size": (1000, 700)},
        {"crops_coords_top_left": (3, 0), "target_size": (640, 512)},
        {"negative_original_size": (9, 8), "negative_target_size": (7, 6), "negative_crops_coords_top_left": (5, 4)},
        {"original_size": (11, 12), "negative_original_size": (9, 8), "negative_target_size": (7, 6)},
        {"negative_crops_coords_top_left": (5, 4)},
        {"negative_original_size": (9, 8)},
        {"negative_target_size": (9, 8), "original_size": (0, 0)},
    ],
)
def test_sizes_for_sdxl_equal_python(given: dict[str, tuple[int, int]], takes: bool) -> None:
    graph: Any = Graph("time_ids" if takes else "timesteps")
    try:
        reference, said = time_ids_from_call(given, graph, 512, 768), ""
    except InputError as refusal:
        reference, said = np.zeros((2, 6), np.float32), str(refusal)
    pairs = (Pair * 6)(*(Pair(*given.get(name, (-1, -1))) for name in SIZE_OPTIONS))
    out = np.zeros((2, 6), np.float32)
    error = error_of(
        lambda text: probe().probe_time_ids(pairs, int(takes), integer(512), integer(768), address(out), text)
    )
    assert error == said
    np.testing.assert_array_equal(out, reference)


def test_half_a_pair_is_refused() -> None:
    pairs = (Pair * 6)(*(Pair(-1, -1) for _ in range(6)))
    pairs[2] = Pair(640, -1)
    out = np.zeros((2, 6), np.float32)
    error = error_of(lambda text: probe().probe_time_ids(pairs, 1, integer(64), integer(64), address(out), text))
    assert error == refused("target_size", (640, -1)) != ""


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.7, 8.0, 14.5])
@pytest.mark.parametrize("width", [32, 255, 256, 512])
def test_embedding_of_guidance_equals_python(scale: float, width: int) -> None:
    """numpy's exponential differs from the C library's in the last bit, which moves the large angles by as much."""
    out, half = np.zeros(width, np.float32), width // 2
    probe().probe_guidance_embedding(number(scale), integer(width), address(out))
    angles = np.abs(1000 * (scale - 1)) * np.exp(np.arange(half) * -np.log(10000) / (half - 1))
    allowed = 3 * 2.0**-23 * np.concatenate([angles, angles, np.zeros(width % 2)]) + 1e-6
    assert (np.abs(out - guidance_embedding(scale, width)) <= allowed).all()
