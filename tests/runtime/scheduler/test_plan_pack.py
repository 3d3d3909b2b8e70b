"""Plan packs, read by what engines/README.md says of them: every plan is there, and is the one of `from_config`."""

from collections.abc import Callable
from typing import Any

import pytest
from support.exports import EXPORTS, SHAPES, Exported
from support.plan_packs import SD1, ReadPack, differing

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.request.request import _lcm_timesteps
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.naming import resolve_for_model
from latentrt.runtime.scheduler.plan_pack import PackWriter, add_default_schedulers

DDIM = {**SD1, "_class_name": "DDIMScheduler", "clip_sample": False}
XL = {k: v for k, v in SD1.items() if k not in ("set_alpha_to_one", "skip_prk_steps")} | {
    "_class_name": "EulerDiscreteScheduler"
}


def written(config: dict[str, Any], *names: str, steps: tuple[int, ...], **options: Any) -> ReadPack:
    writer = PackWriter(config, prediction_type=config["prediction_type"], **options)
    for name in names:
        writer.add(name, steps)
    return ReadPack(writer.content())


def test_every_plan_of_a_pack_in_its_order() -> None:
    """From noise, then each number of steps that a strength keeps."""
    config, number = dict(SD1), 0
    names = ("pndm", "dpm2", "unipc_karras", "dpm++_sde", "euler_kl_optimal", "euler_a_cfg_pp")
    pack = written(config, *names, steps=(3, 1, 8))
    for entry, name in zip(pack.index["schedulers"], names, strict=True):
        assert (entry["steps"], entry["starts"]) == ([1, 3, 8], [1, 3, 8])
        for steps in (1, 3, 8):
            for strength in (None, *((kept + 0.01) / steps for kept in range(1, steps)), 1.0):
                plan = pack.plan(number)
                assert plan is not None
                assert differing(plan, Plan.from_config(resolve(name, config), steps, strength=strength)) == []
                number += 1
    assert number == pack.index["tables"]["plans"]


def test_plans_that_there_are_not() -> None:
    """With betas that leave no signal at the start, only those that begin later can be computed."""
    config = {**DDIM, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(SchedulerError, match="no signal"):
        Plan.from_config(config, 4)
    plans = [written(config, "", steps=(4,)).plan(number) for number in range(5)]
    assert plans[0] is plans[4] is None
    for kept, plan in enumerate(plans[1:4], start=1):
        assert plan is not None
        assert differing(plan, Plan.from_config(config, 4, strength=kept / 4)) == []
    with pytest.raises(SchedulerError, match="no signal"):
        written(config, "", steps=(1,))


def test_distilled_image_to_image() -> None:
    config = {**SD1, "_class_name": "LCMScheduler", "original_inference_steps": 12}
    pack = written(config, "", "ddim", steps=(2, 5), distilled=True)
    (entry, other), number = pack.index["schedulers"], 0
    assert (entry["original_inference_steps"], other["original_inference_steps"]) == (12, None)
    for steps in (2, 5):
        number += 1 + steps
        for left in range(steps, 13):
            times = _lcm_timesteps(config, steps, min((left + 0.5) / 12, 1))
            plan, wanted = pack.plan(number), Plan.from_config(config, None, strength=1.0, timesteps=times)
            assert plan is not None
            assert differing(plan, wanted) == []
            number += 1
    assert number + 3 + 6 == pack.index["tables"]["plans"]


def test_calls_are_stored_once() -> None:
    """The tail of a DDIM plan is the same whatever it begins from; and so are two packs with the same content."""
    config = DDIM
    tables = written(config, "", steps=(20,)).index["tables"]
    assert (tables["plans"], tables["nodes"], tables["calls"], tables["starts"]) == (21, 20, 20, 21)
    writers = [PackWriter(config, prediction_type="epsilon") for _ in range(2)]
    for writer in writers:
        writer.add("dpm++_2m", (4, 9))
    assert writers[0].content() == writers[1].content()


def test_names_are_all_those_with_the_same_options() -> None:
    pack = written(dict(SD1), "plms", "ddim", "euler_karras", "DPM++ 2M", steps=(2,))
    own, ddim, karras, web = pack.index["schedulers"]
    assert set(own["names"]) == {"plms", "", "pndm", "PNDMScheduler"}
    assert own["labels"]["plms"] is True
    assert ddim["labels"]["ddim"] is True
    assert karras["names"] == ["euler_karras"]
    assert {"dpm++ 2m", "dpmpp_2m karras"} <= set(web["labels"])
    euler = written(dict(SD1), "Euler", steps=(2,)).index["schedulers"][0]
    assert euler["labels"]["euler"] is False  # as it stands, it is another one of ours
    for entry in pack.index["schedulers"]:
        first, *others = (Plan.from_config(resolve(name or None, SD1), 7) for name in entry["names"])
        assert all(differing(first, other) == [] for other in others)


def test_a_second_name_of_a_scheduler_costs_nothing() -> None:
    once = written(dict(SD1), "euler", steps=(3,))
    twice = written(dict(SD1), "euler", "euler:s_churn=0", steps=(3,))
    assert twice.index["schedulers"][0]["names"][-1] == "euler:s_churn=0"
    assert twice.index["tables"] == once.index["tables"]


def test_steps_of_sdxl_are_sdxls() -> None:
    pack = written(XL, "euler_align_your_steps", steps=(6,), text_encoders=2)
    wanted = [Plan.from_config(resolve_for_model("euler_align_your_steps", XL, text_encoders=n), 6) for n in (1, 2)]
    plan = pack.plan(0)
    assert plan is not None
    assert [differing(plan, other) == [] for other in wanted] == [False, True]


def test_steps_that_a_scheduler_cannot_do_are_told(caplog: pytest.LogCaptureFixture) -> None:
    pack = written(dict(SD1), "lcm", steps=(2, 49, 50, 51, 53))
    assert pack.index["schedulers"][0]["steps"] == [2, 49, 50]
    (message,) = caplog.messages
    assert message.startswith("lcm: without 51, 53 steps: num_inference_steps=51 with original_inference_steps=50")


@pytest.mark.parametrize(
    ("name", "steps", "text"),
    [
        ("eular", (2,), "unknown scheduler 'eular'; did you mean 'euler'"),
        ("euler", (), "steps none of 'euler': expected integers from 1 to 1000"),
        ("euler", (0, 1), "steps 0-1 of 'euler'"),
        ("euler", (1001,), "steps 1001 of 'euler'"),
        ("lcm", (60, 70), "num_inference_steps=60 with original_inference_steps=50"),
        ("euler:prediction_type=sample", (2,), "prediction_type='sample', and the model predicts 'epsilon'"),
        ("DPM adaptive", (2,), "chooses its steps by the picture"),
    ],
)
def test_what_cannot_be_packed(name: str, steps: tuple[int, ...], text: str) -> None:
    with pytest.raises(SchedulerError, match=text.replace("(", r"\(")):
        written(dict(SD1), name, steps=steps)


def test_edm_takes_what_it_takes() -> None:
    config = {
        "_class_name": "EDMEulerScheduler",
        "prediction_type": "epsilon",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "num_train_timesteps": 1000,
    }
    with pytest.raises(SchedulerError, match="does not work with a checkpoint of EDM preconditioning"):
        written(config, "heun", steps=(2,))
    writer = PackWriter(config, prediction_type="epsilon")
    add_default_schedulers(writer, steps=(2, 3))
    assert writer.names == ["", "dpm++_2m_karras", "dpm++_2m_sde_karras"]
    assert "euler" in ReadPack(writer.content()).index["schedulers"][0]["names"]


def test_default_schedulers() -> None:
    def names(config: dict[str, Any], **options: Any) -> list[str]:
        writer = PackWriter(config, prediction_type=config["prediction_type"], **options)
        add_default_schedulers(writer, (2,))
        return writer.names

    plain = names(dict(SD1))
    assert plain[:4] == ["", "euler", "euler_a", "dpm++_2m_karras"]
    assert len(plain) == len(names(XL)) == 10
    assert names(dict(SD1), distilled=True)[1] == "lcm"


def test_the_embedded_bundle_has_its_pack() -> None:
    bundle = Bundle.open(SHAPES.bundle)
    (name,) = bundle.manifest.plans
    content = bundle.file(name).read_bytes()
    assert len(content) <= 1.5e6
    pack = ReadPack(content)
    assert pack.index["prediction_type"] == bundle.manifest.model.prediction_type
    assert len(pack.index["schedulers"]) == 10
    own = pack.index["schedulers"][0]
    assert own["names"][0] == ""
    assert (own["steps"], own["starts"]) == ([*range(1, 51)], [*range(1, 51)])
    plan = pack.plan(sum(n + 1 for n in range(1, 20)))
    assert plan is not None
    assert differing(plan, Plan.from_config(bundle.read_json(bundle.manifest.scheduler), 20)) == []


@pytest.mark.parametrize("name", [name for name in EXPORTS if "-ports-" not in name])
def test_exports_have_a_pack(exported: Callable[[str], Exported], name: str) -> None:
    bundle = Bundle.open(exported(name).bundle)
    (file,) = bundle.manifest.plans
    size = bundle.file(file).stat().st_size
    pack = ReadPack(bundle.file(file).read_bytes())
    assert pack.index["schedulers"][0]["names"][0] == ""
    assert size <= 1.5e6
    assert bundle.manifest.format == "latentrt.bundle/2"
    if name == "lcm-fp32":
        assert pack.index["schedulers"][0]["original_inference_steps"] == 50


@pytest.mark.slow
@pytest.mark.parametrize("config", [XL, {**SD1, "_class_name": "LCMScheduler"}], ids=["sdxl", "lcm"])
def test_the_size_of_default_packs(config: dict[str, Any]) -> None:
    writer = PackWriter(config, prediction_type="epsilon", distilled=config["_class_name"] == "LCMScheduler")
    add_default_schedulers(writer)
    assert writer.plans >= 13_250
    assert len(writer.content()) <= 1.5e6
