"""Single UNet calls of peers, and the targets at each precision. Workers are small scripts that use the protocol."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import environments
from benchmarks.peers.calls import decibels, error_of, measure, smaller, unet_megabytes
from benchmarks.peers.compare import EQUAL, Case, Outcome
from benchmarks.peers.environments import PeerError
from benchmarks.peers.goals import precision_goals
from benchmarks.peers.protocol import guided
from benchmarks.peers.table import CONVERSIONS, lacking
from latentrt.runtime import Plan
from latentrt.runtime.scheduler import REGISTERS

SCRIPT = """
import numpy as np
from benchmarks.peers.protocol import guided, serve, timed

def load(job):
    assert job["part"] == "unet"
    return {{"versions": {{}}}}

def call(job):
    inputs = np.load(job["inputs"])
    both = np.concatenate([inputs["sample"]] * 2) * inputs["hidden_states"].mean((1, 2))[:, None, None, None]
    seconds, prediction = timed(lambda: guided(both, inputs["guidance_scale"]) + {noise})
    return seconds + {slowness}, {prediction}

serve(load, None, call)
"""


def case(
    folder: Path,
    name: str,
    *,
    noise: float = 0.0,
    slowness: float = 0.0,
    silent: bool = False,
    precision: str = "fp32",
    own: str | None = None,
) -> Case:
    file = folder / f"{name}.py"
    prediction = "None" if silent else "prediction"
    file.write_text(SCRIPT.format(noise=noise, slowness=slowness, prediction=prediction), encoding="utf-8")
    return Case((sys.executable, file), {"model": str(folder), "part": "unet"}, precision, own)


def test_calls_are_compared_with_the_first_case_and_with_their_own(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    sample = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    hidden_states = np.stack([np.full((77, 3), 1.0, np.float32), np.full((77, 3), 2.0, np.float32)])
    np.savez(inputs, sample=sample, hidden_states=hidden_states, timestep=np.float32(500), guidance_scale=np.float32(4))
    (tmp_path / "denoise.onnx.data").write_bytes(bytes(2_000_000))
    expected = sample + 4 * (2 * sample - sample)
    cases = {
        "latentrt": case(tmp_path, "latentrt"),
        "peer": case(tmp_path, "peer", noise=0.01, slowness=2.0),
        "peer int8": case(tmp_path, "peer int8", noise=0.5, slowness=1.0, precision="int8", own="peer"),
        "silent": case(tmp_path, "silent", silent=True, precision="int8", own="peer"),
        "other": case(tmp_path, "other", noise=1.0),
    }
    outcome = measure(cases, inputs, tmp_path, rounds=2, limit=1e6)
    np.testing.assert_allclose(np.load(tmp_path / "latentrt.npy"), expected, rtol=1e-6)
    assert set(outcome.figures) == {"latentrt", "peer", "peer int8", "silent"}
    assert "predicts something else" in outcome.reasons["other"]
    assert len(outcome.figures["peer"]["call"]) == 2
    assert min(outcome.figures["peer"]["call"]) >= 2.0
    assert outcome.figures["latentrt"]["UNet on disk"] == [2.0]
    norm = float(np.linalg.norm(expected + 0.01))
    own = 20 * math.log10(norm / (0.49 * 16))  # of the square root of 256 values
    assert outcome.facts["peer int8"]["psnr own"] == pytest.approx([own], abs=1e-3)
    assert "psnr own" not in outcome.facts["peer"]
    assert "error" not in outcome.facts["silent"]


def test_an_error_that_is_no_number_is_infinite() -> None:
    ones = np.ones((1, 4, 2, 2), np.float32)
    assert error_of(ones * np.nan, ones) == math.inf
    assert error_of(ones * 1.5, ones) == pytest.approx(0.5)
    assert decibels(0.1) == pytest.approx(20)
    assert decibels(0) == EQUAL


def test_guidance_is_that_of_the_formula() -> None:
    predictions = np.array([[[[1.0]]], [[[3.0]]]])
    assert guided(predictions, 1.0) == 3
    assert guided(predictions, 4.0) == 1 + 4 * 2


def test_our_call_repeats_itself_and_returns_the_prediction() -> None:
    """The plan of the worker: the sample stays, and the last register is the model's output."""
    initial, update = np.zeros((REGISTERS, 2)), np.zeros((1, REGISTERS, REGISTERS + 2))
    initial[0, 0] = update[0, 0, 0] = update[0, -1, REGISTERS] = 1
    plan = Plan(np.float32([500]), update, initial, np.zeros(1), np.float32([[0, 1], [0, 1]]), np.zeros((1, 2)))
    noise = np.random.default_rng(0).standard_normal((4, 2, 2), np.float32)
    (state,) = plan.states(lambda sample, timestep: 3 * sample + timestep, noise)
    np.testing.assert_array_equal(state[0], noise)
    np.testing.assert_allclose(state[-1], 3 * noise + 500)


def test_the_unet_is_measured_in_each_format(tmp_path: Path) -> None:
    for name, size in (("a/denoise.onnx", 1), ("a/denoise.onnx.data", 5), ("a/vae_decoder.onnx.data", 100)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size * 1000))
    for name, size in (("b/unet/openvino_model.bin", 7), ("b/unet/openvino_model.xml", 2), ("b/vae/model.bin", 100)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(bytes(size * 1000))
    assert unet_megabytes(tmp_path / "a") == pytest.approx(0.006)
    assert unet_megabytes(tmp_path / "b") == pytest.approx(0.009)


def outcome_of(values: dict[str, tuple[float, float | None]]) -> tuple[Outcome, dict[str, Case]]:
    """Cases with a latency and a quality; the precision is in the name."""
    outcome, cases = Outcome(), {}
    for name, (seconds, quality) in values.items():
        precision = next((word for word in ("int8", "bf16") if word in name), "fp32")
        cases[name] = Case((), {}, precision, None if precision == "fp32" else name.split()[0])
        outcome.figures[name] = {"call": [seconds, seconds, 100 * seconds]}
        outcome.facts[name] = {} if quality is None else {"psnr own": [quality]}
    return outcome, cases


def test_each_precision_is_compared_with_the_fastest_peer_of_it() -> None:
    outcome, cases = outcome_of(
        {
            "latentrt": (10.0, None),
            "latentrt int8": (3.0, 30.0),
            "latentrt openvino int8": (2.0, 20.0),
            "latentrt bf16": (4.0, 40.0),
            "peer": (8.0, None),
            "peer bf16": (5.0, 41.0),
            "peer int8": (1.0, 10.0),
            "other int8": (4.0, 25.0),
        }
    )
    found = {target.name: (target.value, target.at_most) for target in precision_goals("call", outcome, cases)}
    assert found == {
        "call at int8: ours over the fastest peer's (latentrt openvino int8, peer int8)": (2.0, 1.0),
        "call at bf16: ours over the fastest peer's (latentrt bf16, peer bf16)": (0.8, 1.0),
        # The peer that takes 1 s is worse than ours, so it does not count.
        "call of our fastest over that of the fastest peer with its quality or better "
        "(latentrt openvino int8, other int8)": (0.5, 0.9),
    }


def test_quality_that_is_unknown_and_precisions_of_one_side_have_no_target() -> None:
    outcome, cases = outcome_of({"latentrt": (10.0, None), "latentrt int8": (3.0, None), "peer": (8.0, None)})
    assert [target.value for target in precision_goals("call", outcome, cases)] == []
    outcome, cases = outcome_of({"latentrt": (10.0, None), "peer": (8.0, None), "peer int8": (3.0, None)})
    assert precision_goals("call", outcome, cases) == []
    outcome, cases = outcome_of({"latentrt": (10.0, None), "latentrt int8": (3.0, 20.0)})
    assert precision_goals("call", outcome, cases) == []


def test_int8_is_compared_with_fp32_in_size_and_memory() -> None:
    outcome = Outcome()
    outcome.figures = {
        "latentrt": {"UNet on disk": [800.0], "peak memory": [1000.0]},
        "latentrt int8": {"UNet on disk": [200.0], "peak memory": [700.0]},
        "latentrt openvino": {"UNet on disk": [800.0], "peak memory": [2000.0]},
    }
    assert [(target.value, target.met) for target in smaller(outcome)] == [(0.25, True), (0.7, False)]


def test_a_cpu_without_the_instructions_says_so() -> None:
    assert lacking("fp32", []) is None
    assert lacking("int8 bf16", ["amx_int8", "avx512_bf16"]) is None
    assert lacking("int8", ["avx_vnni"]) is None
    found = lacking("int8 bf16", ["avx2", "avx512_vnni"])
    assert found == "this CPU has no instructions for bf16: none of avx512_bf16, amx_bf16"


def test_arguments_of_quantize_are_words_and_its_reason_is_kept(tmp_path: Path) -> None:
    """With a fake Python that writes its arguments to a file, or fails as `latentrt quantize` does."""
    program = tmp_path / "this" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\nmkdir -p "$5"; echo "$@" > "$5/words"\n'
        'case "$*" in *fail*) printf "latentrt: below the gate\\nlayers\\n" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    places = {"bundle": tmp_path / "b", "prompts": tmp_path / "p.txt", "size": 64, "quantize": "--keep-float 8"}
    environments.convert(tmp_path, "int8-openvino", places, tmp_path / "t")
    words = shlex.split((tmp_path / "t" / "words").read_text())
    assert words[2:6] == ["quantize", str(tmp_path / "b"), str(tmp_path / "t"), "--to"]
    assert words[words.index("--keep-float") :] == ["--keep-float", "8", "--for", "openvino"]
    assert CONVERSIONS["int8-bf16"].source == "bf16"
    with pytest.raises(PeerError, match="int8-openvino failed: latentrt: below the gate"):
        environments.convert(tmp_path, "int8-openvino", {**places, "quantize": "--fail"}, tmp_path / "u")
