"""Plans in C++: every plan of a pack is Python's to the bit, whatever the strength; damaged packs are refused."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native import BUNDLE, INPUT, SCHEDULER
from support.plan_packs import SD1, PackError, Packs, differing, joined, parts, read_document

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.runtime.request.request import _lcm_timesteps
from latentrt.runtime.scheduler import Plan, resolve, scheduler_names
from latentrt.runtime.scheduler.document import plan_document
from latentrt.runtime.scheduler.plan_pack import PackWriter, add_default_schedulers

LCM = {**SD1, "_class_name": "LCMScheduler", "original_inference_steps": 40}
V_PREDICTION = {
    **SD1,
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "solver_order": 2,
}
# The plans that begin at its last timestep cannot be computed, the others can.
NO_SIGNAL = {**V_PREDICTION, "_class_name": "DDIMScheduler", "prediction_type": "epsilon", "clip_sample": False}
STEPS = (1, 3, 6, 11)
NAMES = (
    *("", "euler", "euler_a", "ddim", "dpm++_3m", "unipc_karras", "heun", "dpm2_a", "lms", "sa_solver", "deis_beta"),
    # Another number of steps than was asked for, samplers with calls of their own, guidance of each call.
    *("euler_ddim_uniform", "euler_beta_timesteps", "dpm++_sde_karras", "dpm_fast", "restart", "euler_cfg_pp"),
    *("DPM++ 2M Karras", "euler:timestep_spacing=trailing,s_churn=10", "euler_align_your_steps", "DPM2"),
)


def packed(folder: Path, config: Mapping[str, Any], names: tuple[str, ...], steps: Any, **options: Any) -> Path:
    """A pack with these schedulers."""
    writer = PackWriter(config, prediction_type=config["prediction_type"], **options)
    for name in names:
        writer.add(name, steps)
    file = folder / "a.plans"
    file.write_bytes(writer.content())
    return file


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("packs"), SD1, NAMES, STEPS)


def strengths(steps: int) -> Iterator[float]:
    """Doubles on both sides of where the number of steps changes, and others."""
    rng = random.Random(steps)
    for kept in {1, steps // 3 + 1, steps}:
        for exact in (kept / steps, kept * (1 / steps)):
            yield from (exact, math.nextafter(exact, 0), math.nextafter(exact, 2))
    yield from (0.3, 0.29999999, 1 / 3, 0.7 * 0.1, 0.1 + 0.2, 5e-324, 1.0, math.nextafter(1, 0), rng.random())


def expected(config: Mapping[str, Any], steps: int | None, **options: Any) -> Plan | None:
    try:
        return Plan.from_config(config, steps, **options)
    except SchedulerError:
        return None


def found(packs: Packs, name: str, steps: int, strength: float | None = None, **options: bool) -> Plan | None:
    try:
        return packs.find(name, steps, strength, **options)
    except PackError as error:
        if error.status not in (SCHEDULER, INPUT):
            raise
        return None


def compare(packs: Packs, name: str, config: Mapping[str, Any], steps: int) -> int:
    """Compare the plan from noise and those of many strengths; returns how many there were."""
    given = [None, *(s for s in strengths(steps) if s <= 1)]
    seen = 0
    for strength in given:
        got, wanted = found(packs, name, steps, strength), expected(config, steps, strength=strength)
        assert (got is None) == (wanted is None), (name, steps, strength)
        if got is not None and wanted is not None:
            assert differing(got, wanted) == [], (name, steps, strength)
            seen += 1
    return seen


def test_every_plan_is_pythons(pack: Path) -> None:
    with Packs(pack) as packs:
        for name in NAMES:
            assert sum(compare(packs, name, resolve(name or None, SD1), steps) for steps in STEPS) > 40, name


@pytest.mark.parametrize("config", [V_PREDICTION, EDM, NO_SIGNAL], ids=["v_prediction", "edm", "no-signal"])
def test_other_models(config: dict[str, Any], tmp_path: Path) -> None:
    names = ("", "euler_karras", "dpm++_2m_sde")
    with Packs(packed(tmp_path, config, names, (1, 5, 14)), predicts=config["prediction_type"]) as packs:
        for name in names:
            assert sum(compare(packs, name, resolve(name or None, config), steps) for steps in (1, 5, 14)) > 12


@pytest.mark.slow
@pytest.mark.parametrize(("config", "every"), [(SD1, 1), (V_PREDICTION, 7)], ids=["epsilon", "v_prediction"])
def test_every_plan_of_a_default_pack_is_pythons(config: dict[str, Any], every: int, tmp_path: Path) -> None:
    writer = PackWriter(config, prediction_type=config["prediction_type"])
    add_default_schedulers(writer)
    (tmp_path / "default.plans").write_bytes(writer.content())
    assert (tmp_path / "default.plans").stat().st_size <= 1.5e6
    with Packs(tmp_path / "default.plans", predicts=config["prediction_type"]) as packs:
        for name in writer.names:
            chosen = resolve(name or None, config)
            for steps in range(1, 51, every):
                for kept in range(steps + 1):
                    strength = None if kept == 0 else min(kept / steps * (1 + 2**-50), 1.0)
                    got, wanted = found(packs, name, steps, strength), expected(chosen, steps, strength=strength)
                    assert got is not None
                    assert wanted is not None
                    assert differing(got, wanted) == [], (name, steps, strength)


def test_image_to_image_with_distilled_models(tmp_path: Path) -> None:
    """LCM places all steps within the part that the strength leaves; the other schedulers leave out steps."""
    file = packed(tmp_path, LCM, ("lcm", "euler"), (1, 4, 9, 40), distilled=True)
    lcm, other = resolve("lcm", LCM), resolve("euler", LCM)
    with Packs(file) as packs:
        for steps in (1, 4, 9, 40):
            for strength in (s for s in (*strengths(40), *strengths(steps)) if s <= 1):
                got, wanted = found(packs, "lcm", steps, strength, distilled=True), None
                try:
                    times = _lcm_timesteps(lcm, steps, strength)
                    wanted = Plan.from_config(lcm, None, strength=1.0, timesteps=times)
                except InputError:
                    with pytest.raises(
                        PackError, match=rf"num_inference_steps={steps}: expected at most \d+ at"
                    ) as why:
                        packs.find("lcm", steps, strength, distilled=True)
                    assert why.value.status == INPUT
                assert (got is None) == (wanted is None), (steps, strength)
                assert got is None or wanted is None or differing(got, wanted) == []
            compare(packs, "lcm", lcm, steps)
        without, within = packs.find("lcm", 4, 0.5), packs.find("lcm", 4, 0.5, distilled=True)
        assert (len(without), len(within)) == (2, 4)
        wanted = Plan.from_config(other, 9, strength=0.5)
        assert differing(packs.find("euler", 9, 0.5, distilled=True), wanted) == []


def test_names(pack: Path, tmp_path: Path) -> None:
    """A name means what `resolve` takes it for: ours as they stand, those of web UIs in any case."""
    other = packed(tmp_path, SD1, ("Euler", "lcm"), (2, 3))
    with Packs(pack, other) as packs:
        assert packs.names[:5] == ["", "pndm", "plms", "PNDMScheduler", "euler"]
        assert {"EulerDiscreteScheduler", "DPM++ 2M Karras", "lcm"} < set(packs.names)
        assert differing(packs.find(" dpm++ 2m KARRAS", 6), packs.find("DPM++ 2M Karras", 6)) == []
        assert differing(packs.find("PLMS", 6), packs.find("", 6)) == []
        for name in ("Euler", "EULER\t", "euler", "LCM"):
            assert differing(packs.find(name, 3), Plan.from_config(resolve(name, SD1), 3)) == [], name
        for name in ("PnDm", "Lms_", "dpm++_2m_karras ", "EULER_A_", "dpm++ 2m\0"):
            with pytest.raises(PackError, match="there are no plans of"):
                packs.find(name, 6)
    with Packs(other) as packs, pytest.raises(PackError, match="there are no plans of 'euler'"):
        packs.find("euler", 2)  # which is another one than "Euler"


def test_all_names_that_are_aliases_mean_the_same(tmp_path: Path) -> None:
    with Packs(packed(tmp_path, SD1, ("ddim", "dpm++_2m", "unipc", "heun"), (3,))) as packs:
        names = packs.names
        assert {"ddim", "DPMSolverMultistepScheduler", "unipc_bh2"} < set(names)
        for name in scheduler_names():
            wanted = expected(resolve(name, SD1), 3)
            if name in names:
                assert wanted is not None
                assert differing(packs.find(name, 3), wanted) == [], name


def test_earlier_packs_are_asked_first(pack: Path, tmp_path: Path) -> None:
    """One with another beta schedule, so that the plans of the two differ."""
    other = {**SD1, "beta_end": 0.02}
    first = packed(tmp_path, other, ("euler",), (6, 7))
    with Packs(first, pack) as packs:
        assert differing(packs.find("euler", 6), Plan.from_config(resolve("euler", other), 6)) == []
        assert differing(packs.find("euler", 11), Plan.from_config(resolve("euler", SD1), 11)) == []
        assert differing(packs.find("heun", 6, 0.5), Plan.from_config(resolve("heun", SD1), 6, strength=0.5)) == []


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        (
            ("eular", 6),
            ["there are no plans of 'eular'", "'euler'", "latentrt plans BUNDLE --scheduler eular --steps 6"],
        ),
        (("euler", 12), ["'euler' with 12 steps", "1, 3, 6, 11.", "--scheduler euler --steps 12"]),
        (("", 2**62), ["the checkpoint's own scheduler with", "--scheduler '' --steps 4611686018427387904"]),
        (("it's $HOME", 3), [r"--scheduler 'it'\''s $HOME' --steps 3"]),
        (("x" * 5000, 3), ["--scheduler NAME --steps 3"]),
        (("euler", -1), ["with -1 steps"]),
        (("euler", 3, 0.2), ["strength=0.2 leaves none of 3 steps: raise num_inference_steps"]),
        (("euler", 3, 0.0), ["strength=0.0: expected > 0 (keep the image) and <= 1 (redraw it)"]),
        (("euler", 3, math.nextafter(1, 2)), ["expected > 0"]),
        (("euler", 3, math.nan), ["strength=nan: expected > 0"]),
        (("euler", 3, -math.inf), ["strength=-inf"]),
    ],
)
def test_missing_plans(call: Any, texts: list[str], pack: Path) -> None:
    with Packs(pack) as packs, pytest.raises(PackError) as error:
        packs.find(*call)
    assert error.value.status == SCHEDULER
    for text in texts:
        assert text in str(error.value)


def test_no_plans_at_all() -> None:
    with Packs() as packs, pytest.raises(PackError, match=r"none at all.*--scheduler euler --steps 20"):
        packs.find("euler", 20)


def test_packs_from_noise_only(tmp_path: Path) -> None:
    writer = PackWriter(SD1, prediction_type="epsilon")
    writer.add("euler", (5,), starts=False)
    (tmp_path / "n.plans").write_bytes(writer.content())
    with Packs(tmp_path / "n.plans") as packs:
        assert len(packs.find("euler", 5)) == 5
        with pytest.raises(PackError, match="begin from noise, not from an image"):
            packs.find("euler", 5, 1.0)
    with Packs(tmp_path / "n.plans", packed(tmp_path, SD1, ("euler",), (5,))) as packs:
        assert len(packs.find("euler", 5, 0.5)) == 2


def test_other_models_and_other_files_are_refused(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="predicts 'epsilon', and this one predicts 'v_prediction'") as error:
        Packs(pack, predicts="v_prediction")
    assert error.value.status == BUNDLE
    assert str(pack) in str(error.value)
    with pytest.raises(PackError, match="No such file"):
        Packs(tmp_path / "none")
    with pytest.raises(PackError, match="not a regular file"):
        Packs(tmp_path)
    for text in (b"", b"LRTPLANS", b"x" * 100):
        (tmp_path / "x").write_bytes(text)
        with pytest.raises(PackError, match="it is no plan pack"):
            Packs(tmp_path / "x")


def small_pack() -> bytes:
    writer = PackWriter(SD1, prediction_type="epsilon")
    writer.add("euler_a", (1, 3))
    writer.add("dpm++_2m", (3,))
    return writer.content()


def test_a_changed_value_is_another_plan(tmp_path: Path) -> None:
    """What the other tests would not see if they compared nothing: a row that differs, and starts that are shifted."""
    index, data = parts(small_pack())
    size = index["tables"]
    wanted = {s: Plan.from_config(resolve("euler_a", SD1), 3, strength=s) for s in (0.4, 0.7, 1.0)}

    def faulty(changed: bytes) -> list[list[str]]:
        (tmp_path / "p").write_bytes(joined(index, changed))
        with Packs(tmp_path / "p") as packs:
            return [differing(packs.find("euler_a", 3, s), plan) for s, plan in wanted.items()]

    assert faulty(data) == [[], [], []]
    words = np.frombuffer(data, "<u4", len(data) // 4).copy()
    first = size["values"] + 2 * size["nodes"]
    plans = words[first : first + 2 * size["plans"]].reshape(-1, 2)
    assert len(plans) == 2 + 4 + 4  # 1 and 3 steps, and 3 steps: from noise and each start
    plans[3:6] = plans[[4, 5, 3]]
    assert all("timesteps" in names for names in faulty(words.tobytes() + data[4 * len(words) :]))
    changes = 0
    for value in range(size["values"]):
        words = np.frombuffer(data, "<u4", len(data) // 4).copy()
        words[value] ^= 1
        changes += any(faulty(words.tobytes() + data[4 * len(words) :]))
    assert changes > size["values"] // 3  # the others are of other plans


def _size(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["tables"].update({name: value})


def _of_scheduler(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["schedulers"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *(
            (_size(name, v), "cannot be used")
            for name in ("values", "nodes", "plans", "calls", "starts")
            for v in (0, 3, 2**32 - 2)
        ),
        *(
            (_size("call_patterns", v), "no integer|other sizes|pattern")
            for v in (-1, 2**32 - 1, 2**63, 2**64, 1.5, 1e300, "1", None, True)
        ),
        (_size("more", 1), "unknown key 'more'"),
        (lambda index: index["tables"].pop("nodes"), "missing 'nodes'"),
        (lambda index: index.update(tables=[]), "not an object"),
        (lambda index: index.update(schedulers={}), "not a list"),
        (lambda index: index.update(schedulers=[1]), "not an object"),
        (lambda index: index["schedulers"].pop(), "other plans than there are"),
        (lambda index: index.update(registers=8), "8 registers, and this library's 7"),
        (lambda index: index.update(format="latentrt.plans/2"), "its format is 'latentrt.plans/2'"),
        (lambda index: index.update(extra=1), "unknown key 'extra'"),
        (_of_scheduler(steps=[3, 1]), "do not rise"),
        (_of_scheduler(steps=[1, 1]), "do not rise"),
        (_of_scheduler(steps=[1]), "other steps than starts"),
        (_of_scheduler(steps=[], starts=[]), "other steps than starts"),
        (_of_scheduler(steps=[0, 3]), "no integer from 1"),
        (_of_scheduler(starts=[1, 65536]), "other plans than there are"),
        (_of_scheduler(starts=[1, 2**63]), "no integer from 0"),
        (_of_scheduler(original_inference_steps=7), "other plans than there are"),
        (_of_scheduler(original_inference_steps="7"), "no integer"),
        (_of_scheduler(names=[]), "has no name"),
        (_of_scheduler(names=[1]), "not a text"),
        (_of_scheduler(labels=[]), "not an object"),
        (_of_scheduler(labels={"a": 1}), "not true or false"),
        (_of_scheduler(config=None), "not an object"),
    ],
)
def test_an_index_that_lies(change: Callable[[dict[str, Any]], Any], text: str, tmp_path: Path) -> None:
    index, data = parts(small_pack())
    change(index)
    (tmp_path / "p").write_bytes(joined(index, data))
    with pytest.raises(PackError, match=text) as error:
        Packs(tmp_path / "p")
    assert error.value.status == BUNDLE


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_an_index_that_is_no_json(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(joined(text, b""))
    with pytest.raises(PackError, match="cannot be used as a plan pack"):
        Packs(tmp_path / "p")


def test_truncated_and_altered_packs(tmp_path: Path) -> None:
    content, file = small_pack(), tmp_path / "p"
    for length in (*range(0, len(content), 31), len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(PackError, match=r"no plan pack|bytes instead of"):
            Packs(file)
    file.write_bytes(content + b"\0")
    with pytest.raises(PackError, match="bytes instead of"):
        Packs(file)
    for at in range(8, len(content), 23):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(PackError, match=r"its version|bytes instead of|check sum|too large"):
            Packs(file)


def test_tables_that_lead_nowhere(tmp_path: Path) -> None:
    """Every number of the tables, one after the other, with the check sum of the altered file."""
    index, data = parts(small_pack())
    size, refused = index["tables"], 0
    first = 4 * size["values"]
    for at in range(first, len(data), 3):
        for byte in (0, 0x7F, 0xFF):
            (tmp_path / "p").write_bytes(joined(index, data[:at] + bytes([byte]) + data[at + 1 :]))
            try:
                with Packs(tmp_path / "p") as packs:
                    for name, steps, strength in (("euler_a", 3, None), ("euler_a", 1, 1.0), ("dpm++_2m", 3, 0.5)):
                        found(packs, name, steps, strength)
            except PackError as error:
                if error.status != BUNDLE:
                    raise
                refused += 1
    assert refused > (len(data) - first) // 6


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    index, data = parts(small_pack())
    infinite = np.full(index["tables"]["values"], np.inf, "<f4").tobytes()
    (tmp_path / "p").write_bytes(joined(index, infinite + data[len(infinite) :]))
    with Packs(tmp_path / "p") as packs, pytest.raises(PackError, match="NaN or infinity") as error:
        packs.find("euler_a", 3)
    assert error.value.status == SCHEDULER


@pytest.mark.parametrize(
    ("name", "steps", "strength"),
    [("dpm++_sde", 5, None), ("euler_a_cfg_pp", 7, None), ("unipc", 9, 0.61), ("pndm", 4, 1)],
)
def test_documents(name: str, steps: int, strength: float | None) -> None:
    config = resolve(name, V_PREDICTION)
    plan = Plan.from_config(config, steps, strength=strength)
    document = plan_document(plan, config, steps)
    read, predicts = read_document(json.dumps(document))
    assert differing(read, plan) == []
    assert predicts == "v_prediction"
    for key in ("scheduler_config", "num_inference_steps", "checked_against", "residual"):
        document.pop(key)
    bare, predicts = read_document(json.dumps(document))
    assert (differing(bare, plan), predicts) == ([], "")
    document.pop("guidance")
    plain = Plan(**{k: v for k, v in plan.to_arrays().items() if k != "guidance"})
    assert differing(read_document(json.dumps(document))[0], plain) == []


def _changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_changed(format="latentrt.plan/2"), "'latentrt.plan/2': this library reads 'latentrt.plan/1'"),
        (lambda document: document.pop("format"), "missing"),
        (_changed(format=1), "missing"),
        (_changed(timesteps=[]), "no timesteps"),
        (_changed(timesteps=5), "no timesteps"),
        (_changed(timesteps=[[1]] * 3), "not a number"),
        (_changed(timesteps=[1.0] * 4), "expected"),
        (lambda document: document.pop("coefficients"), "missing 'coefficients'"),
        (lambda document: document["coefficients"][1].pop(), "has 6 entries"),
        (lambda document: document["coefficients"][2][6].append(0), "has 10 entries"),
        (lambda document: document["coefficients"][2][6].__setitem__(0, 1e39), "infinity"),
        (lambda document: document["coefficients"][2][6].__setitem__(0, None), "not a number"),
        (_changed(initial=[[0, 0]] * 8), "has 8 entries"),
        (_changed(draws=["a"] * 3), "not a number"),
        (_changed(noise_levels=[[1, 0]] * 3), "has 3 entries"),
        (_changed(blend=None), "has no entries"),
        (_changed(guidance=[[0, 1]]), "has 1 entries"),
    ],
)
def test_documents_that_are_no_plans(change: Callable[[dict[str, Any]], Any], text: str) -> None:
    config = resolve("euler", SD1)
    document = plan_document(Plan.from_config(config, 3), config, 3)
    change(document)
    with pytest.raises(PackError, match=text) as error:
        read_document(json.dumps(document))
    assert error.value.status == SCHEDULER


@pytest.mark.parametrize("text", [b"", b"[", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b"{" * 9])
def test_texts_that_are_no_documents(text: bytes) -> None:
    with pytest.raises(PackError) as error:
        read_document(text)
    assert error.value.status == SCHEDULER
