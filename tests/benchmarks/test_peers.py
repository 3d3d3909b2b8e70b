"""The comparison with peers rejects other pictures, continues without a peer that fails, takes turns, and stays within
its memory. Workers are small scripts that use the protocol."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from benchmarks.peers import environments
from benchmarks.peers.checkpoint import with_public_names
from benchmarks.peers.compare import EQUAL, Case, Outcome, compare, psnr
from benchmarks.peers.environments import PeerError, make_environment
from benchmarks.peers.goals import goals
from benchmarks.peers.setup import SCHEDULERS, scheduler_config
from benchmarks.peers.table import CONVERSIONS, ENVIRONMENTS, PEERS, Environment, lacking
from benchmarks.peers.workers import Residents, Worker

JOB = {"prompt": "a star", "steps": 3, "size": 16, "guidance_scale": 4.0, "seed": 1, "latents": "none"}
SCRIPT = """
import sys
from pathlib import Path
from PIL import Image
from benchmarks.peers.protocol import serve

def note(text):
    with Path({journal!r}).open("a") as file:
        print({name!r}, text, file=file)

def load(job):
    print("libraries talk")
    note("load")
    if job["options"].get("fails"):
        raise ValueError("no such model")
    return {{"versions": {{}}}}

def draw(job):
    note("draw %d" % job["steps"])
    if {name!r} == "dies":
        print("out of luck", file=sys.stderr, flush=True)
        sys.exit(3)
    return Image.new("RGB", (16, 16), {colour!r}), job["steps"]

serve(load, draw)
note("end")
"""

Make = Callable[..., Case]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.txt"


@pytest.fixture
def make(tmp_path: Path, journal: Path) -> Make:
    """Makes a case of a fake worker that draws one colour."""

    def case(name: str, colour: tuple[int, int, int] = (200, 0, 0), own: str | None = None, **options: object) -> Case:
        file = tmp_path / f"{name}.py"
        text = SCRIPT.format(journal=str(journal), name=name, colour=colour)
        file.write_text(text, encoding="utf-8")
        return Case((sys.executable, file), {"model": "none", "scheduler": "none", "options": options}, own=own)

    return case


def run(cases: dict[str, Case], folder: Path, *, limit: float = 1e6, repetitions: int = 2) -> Outcome:
    floors = {"psnr_floor": 30, "reduced_floor": 15}
    return compare(cases, [JOB], folder, **floors, cold_starts=2, repetitions=repetitions, limit=limit)


def test_psnr_is_that_of_the_formula(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (100, 100, 100)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (110, 110, 110)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 9), (100, 100, 100)).save(tmp_path / "c.png")
    assert psnr(tmp_path / "a.png", tmp_path / "b.png") == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(tmp_path / "a.png", tmp_path / "a.png") == math.inf
    assert psnr(tmp_path / "a.png", tmp_path / "c.png") == -math.inf


def test_a_peer_with_another_picture_is_reported_and_not_measured(make: Make, tmp_path: Path) -> None:
    cases = {"ours": make("ours"), "near": make("near", (201, 0, 0)), "other": make("other", (0, 0, 200))}
    outcome = run(cases, tmp_path)
    assert set(outcome.figures) == {"ours", "near"}
    assert "draws another picture: PSNR" in outcome.reasons["other"]
    assert outcome.facts["ours"]["psnr"] is None
    assert outcome.facts["near"]["psnr"] == pytest.approx(10 * math.log10(3 * 255**2))
    assert outcome.facts["near"]["unet_calls"] == 3
    counts = {figure: len(values) for figure, values in outcome.figures["near"].items()}
    assert counts == {
        "load": 2,
        "cold start, first picture": 2,
        "cold start, second picture": 2,
        "peak memory": 2,
        "latency": 2,
    }
    names = {measurement.name: measurement.unit for measurement in outcome.measurements("shapes")}
    assert names["shapes: near: latency"] == "s"
    assert names["shapes: ours: peak memory"] == "MB"


def test_reduced_precision_is_held_against_the_same_program(make: Make, tmp_path: Path) -> None:
    """Not against the reference, from which the program may differ in full precision already."""
    cases = {
        "ours": make("ours"),
        "peer": make("peer", (202, 0, 0)),
        "peer int8": make("peer int8", (212, 0, 0), own="peer"),
        "peer bf16": make("peer bf16", (202, 0, 0), own="peer"),
        "noise": make("noise", (0, 0, 200), own="peer"),
    }
    jobs = [JOB, {**JOB, "seed": 2}]
    outcome = compare(cases, jobs, tmp_path, psnr_floor=30, reduced_floor=15, cold_starts=0, repetitions=1, limit=1e6)
    assert outcome.facts["peer int8"]["psnr"] == pytest.approx(10 * math.log10(3 * 255**2 / 12**2))
    assert outcome.facts["peer int8"]["psnr own"] == pytest.approx([10 * math.log10(3 * 255**2 / 10**2)] * 2)
    assert outcome.facts["peer bf16"]["psnr own"] == [EQUAL, EQUAL]
    assert "psnr own" not in outcome.facts["peer"]
    assert "expected at least 15 dB" in outcome.reasons["noise"]


def test_workers_that_fail_are_reported_with_their_reason(make: Make, tmp_path: Path) -> None:
    cases = {"broken": make("broken", fails=True), "dies": make("dies"), "ours": make("ours")}
    outcome = run(cases, tmp_path)
    assert outcome.reasons == {
        "broken": "ValueError: no such model",
        "dies": "its process ended with status 3: out of luck",
    }
    assert set(outcome.figures) == {"ours"}


def test_draws_take_turns_in_reversed_order_every_other_time(make: Make, tmp_path: Path, journal: Path) -> None:
    run({"a": make("a"), "b": make("b")}, tmp_path, repetitions=3)
    lines = journal.read_text().splitlines()
    cold, draws = lines[: 4 * 2 * 3], [line for line in lines[4 * 2 * 3 :] if line.endswith("draw 3")]
    assert [line.split()[0] for line in cold if line.endswith("load")] == ["a", "b", "a", "b", "b", "a"]
    assert "".join(line[0] for line in draws) == "ba" + "ab" + "ba" + "ab"
    assert lines.count("a load") == 3 + 1


def test_workers_leave_before_memory_is_exceeded(make: Make, journal: Path) -> None:
    cases = {name: make(name) for name in "abc"}
    residents = Residents(
        {name: case.command for name, case in cases.items()},
        {name: case.load for name, case in cases.items()},
        {"a": 400.0, "b": 500.0, "c": 300.0},
        limit=900,
        warm_up={"steps": 1},
    )
    seen = []
    for name in "abacb":
        residents.ask(name, "draw", **JOB)
        seen.append("".join(residents.names))
    residents.close()
    # c takes the place of b, which was used before a; b then takes that of a.
    assert seen == ["a", "ab", "ba", "ac", "cb"]
    assert residents.starts == {"a": 1, "b": 2, "c": 1}
    lines = journal.read_text().splitlines()
    assert lines.index("b end") < lines.index("c load")
    again = lines[lines.index("c load") :]
    assert [line for line in again if line[0] == "b"] == ["b load", "b draw 1", "b draw 3", "b end"]


def test_a_worker_reports_memory_and_keeps_what_libraries_print_apart(make: Make) -> None:
    case = make("ours")
    with Worker(case.command) as worker:
        assert worker.ask("load", **case.load)["facts"] == {"versions": {}}
        assert 1 < worker.ask("memory")["megabytes"] < 2000


@pytest.mark.slow
def test_an_environment_that_fails_keeps_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wish = Environment(("no-such-package-at-all",))
    with pytest.raises(PeerError, match=r"installing bad failed: .*no-such-package-at-all"):
        make_environment(tmp_path, "bad", wish)
    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: pytest.fail("it was tried again"))
    with pytest.raises(PeerError, match=r"no-such-package-at-all.*remove .*bad to try again"):
        make_environment(tmp_path, "bad", wish)


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_environment(tmp_path, "bare", Environment())
    assert environments.installed_megabytes(tmp_path, "bare") < 0.1  # nothing beside pip and setuptools
    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: pytest.fail("it was made again"))
    make_environment(tmp_path, "bare", Environment())


def test_what_pip_cannot_install_runs_in_its_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Environment(given="SOME_DEMO")
    monkeypatch.delenv("SOME_DEMO", raising=False)
    with pytest.raises(PeerError, match="set SOME_DEMO to its folder"):
        make_environment(tmp_path, "demo", wish)
    monkeypatch.setenv("SOME_DEMO", str(tmp_path))
    monkeypatch.setenv("SOME_DEMO_PYTHON", str(tmp_path / "none"))
    with pytest.raises(PeerError, match=r"SOME_DEMO_PYTHON=.*none is not a program"):
        make_environment(tmp_path, "demo", wish)
    monkeypatch.setenv("SOME_DEMO_PYTHON", sys.executable)
    make_environment(tmp_path, "demo", wish)
    command = [environments.program(tmp_path, "demo"), "-c", "import sys; print(sys.prefix, sys.argv[1])", "a b"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.split(maxsplit=1) == [sys.prefix, "a b\n"]


def test_variables_of_this_machine_do_not_reach_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environments.clean_variables()
    assert "OPENBLAS_CORETYPE" not in found
    assert found["OMP_NUM_THREADS"] == "7"


def test_the_scheduler_has_the_checkpoints_betas_and_prediction(tmp_path: Path) -> None:
    own = {"_class_name": "PNDMScheduler", "beta_end": 0.02, "prediction_type": "v_prediction", "skip_prk_steps": True}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(own))
    found = scheduler_config(tmp_path, "euler")
    assert found == {**SCHEDULERS["euler"], "beta_end": 0.02, "prediction_type": "v_prediction"}


def test_a_text_encoder_without_the_public_names_gets_them(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "text_encoder").mkdir(parents=True)
    (old / "model_index.json").write_text("{}")
    save_file({"final_layer_norm.bias": np.arange(3.0)}, old / "text_encoder" / "model.safetensors")
    assert with_public_names(old, new) == new
    found = load_file(new / "text_encoder" / "model.safetensors")
    assert {name: list(tensor) for name, tensor in found.items()} == {"text_model.final_layer_norm.bias": [0, 1, 2]}
    assert (new / "model_index.json").read_text() == "{}"
    assert with_public_names(new, tmp_path / "newer") == new


def test_a_conversion_is_made_once_for_each_size(tmp_path: Path) -> None:
    """With a fake command that writes its arguments to a file."""
    program = tmp_path / "latentrt-tensorrt-rtx" / "bin" / "latentrt"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\nmkdir -p "$4"; echo "$@" > "$4/words"; test "$6" != 13 || { echo no >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    places = {"checkpoint": tmp_path / "c", "bundle": tmp_path / "b", "size": 64}
    seconds = environments.convert(tmp_path, "tensorrt-rtx", places, tmp_path / "e-64")
    words = (tmp_path / "e-64" / "words").read_text().split()
    assert (
        words == f"build {tmp_path}/b --engines {tmp_path}/e-64 --height 64 --width 64 --backend tensorrt_rtx".split()
    )
    assert CONVERSIONS["tensorrt-rtx"].depends_on_size
    assert not CONVERSIONS["onnx"].depends_on_size
    with pytest.raises(PeerError, match="conversion to tensorrt-rtx failed: no"):
        environments.convert(tmp_path, "tensorrt-rtx", {**places, "size": 13}, tmp_path / "e-13")
    program.unlink()
    assert environments.convert(tmp_path, "tensorrt-rtx", places, tmp_path / "e-64") == seconds


@pytest.mark.parametrize("name", PEERS)
def test_every_row_names_an_environment_and_a_worker_that_exist(name: str) -> None:
    peer = PEERS[name]
    assert peer.environment in ENVIRONMENTS
    assert importlib.util.find_spec(f"benchmarks.peers.{peer.worker}")
    assert peer.model in {"bundle", "checkpoint", *CONVERSIONS}
    assert peer.engines in {None, *CONVERSIONS}
    assert np.all([conversion.environment in ENVIRONMENTS for conversion in CONVERSIONS.values()])
    names = list(PEERS)
    assert lacking(peer.precision, []) is None or peer.own
    if peer.own:
        assert names.index(peer.own) < names.index(name)
        assert PEERS[peer.own].own is None
        assert name.startswith(peer.own.split()[0])


def test_pictures_that_take_minutes_are_drawn_twice_only(make: Make, tmp_path: Path, journal: Path) -> None:
    """The first process is counted, and its second picture is the latency."""
    outcome = compare(
        {"ours": make("ours")},
        [JOB],
        tmp_path,
        psnr_floor=30,
        reduced_floor=15,
        cold_starts=0,
        repetitions=0,
        limit=1e6,
        keep_first=True,
    )
    figures = outcome.figures["ours"]
    assert figures["latency"] == figures["cold start, second picture"]
    assert [len(values) for values in figures.values()] == [1] * 5
    assert journal.read_text().splitlines() == ["ours load", "ours draw 3", "ours draw 3", "ours end"]


def test_goals_are_ratios_of_medians() -> None:
    def row(latency: float, first: float, memory: float) -> dict[str, list[float]]:
        return {"latency": [9.0, latency, 0.1], "cold start, first picture": [first], "peak memory": [memory]}

    cases = {
        name: Case((), {}, "bf16" if "bf16" in name else "fp32")
        for name in ("latentrt", "latentrt openvino", "latentrt bf16", "diffusers", "diffusers bf16", "other")
    }
    figures = {
        "latentrt": row(3.0, 2.0, 500),
        "latentrt openvino": row(2.0, 4.0, 900),
        "latentrt bf16": row(0.5, 0.5, 50),  # another precision
        "diffusers": row(4.0, 10.0, 1000),
        "diffusers bf16": row(1.0, 1.0, 100),  # another precision
        "other": {**row(2.5, 20.0, 400)},
    }
    sizes = {"latentrt": 200, "latentrt openvino": 300, "diffusers": 1000, "diffusers bf16": 1000, "other": 900}
    values = [target.value for target in goals(Outcome(figures=figures), sizes, cases)]
    assert values == pytest.approx([2 / 2.5, 3 / 4, 2 / 10, 200 / 1000, 500 / 400])
    # A peer that cannot draw has no part in them.
    assert [t.value for t in goals(Outcome(figures={"latentrt": figures["latentrt"]}), sizes, cases)] == []
    # What pip did not install has no size, and is compared in all else.
    del sizes["diffusers"]
    assert [t.value for t in goals(Outcome(figures=figures), sizes, cases)] == pytest.approx(
        [2 / 2.5, 3 / 4, 2 / 10, 500 / 400]
    )
