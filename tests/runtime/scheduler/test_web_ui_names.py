"""Names of samplers and schedule types in web UIs, both ways."""

from pathlib import Path

import pytest

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.naming import short_names
from latentrt.runtime.scheduler.web_ui_names import (
    AUTOMATIC1111_TYPES,
    COMFYUI_TYPES,
    WEB_UI_SAMPLERS,
    from_web_ui,
    names_table,
    to_web_ui,
)

CHECKPOINT = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
# The menus of AUTOMATIC1111's web UI 1.10 and of ComfyUI, as their users see them.
AUTOMATIC1111 = {
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC",
    "LCM",
}  # fmt: skip
COMFYUI = set(
    "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 "  # noqa: SIM905
    "dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu "
    "dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde "
    "dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral "
    "res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver "
    "sa_solver_pece ddim uni_pc uni_pc_bh2".split()
)
REFUSED = {
    "DPM adaptive", "dpm_adaptive", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation_cfg_pp",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(AUTOMATIC1111) + sorted(COMFYUI))
def test_every_sampler_of_the_menus_is_built_or_refused(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(SchedulerError, match=r"number of model calls|another column in every engine") as caught:
            from_web_ui(name)
        assert "use '" in str(caught.value)
        return
    kinds = AUTOMATIC1111_TYPES if name in AUTOMATIC1111 else COMFYUI_TYPES
    for kind in (None, *kinds):
        scheduler = from_web_ui(name, kind)
        assert len(Plan.from_config(resolve(scheduler, CHECKPOINT), 12)) >= 9
        assert from_web_ui(name.upper(), kind) == scheduler


def test_automatic_is_another_schedule_for_each_sampler() -> None:
    karras = {"DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"}
    exponential = {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"}
    for name in AUTOMATIC1111 - REFUSED - {"DDIM", "DDIM CFG++", "PLMS", "LCM", "DPM fast"}:
        expected = "karras" if name in karras else "exponential" if name in exponential else "normal"
        assert from_web_ui(name)["schedule_type"] == expected
        drops = from_web_ui(name).get("discard_next_to_last", False)
        assert drops == (name in ("DPM2", "DPM2 a", "DPM++ 3M SDE"))
    assert "discard_next_to_last" not in from_web_ui("dpmpp_3m_sde")
    assert from_web_ui("uni_pc")["discard_next_to_last"]


def test_old_names_have_their_schedule_type_at_the_end() -> None:
    assert from_web_ui("DPM++ 2M Karras") == {"name": "dpm++_2m", "schedule_type": "karras"}
    assert from_web_ui("dpm++ 2m sde exponential") == {"name": "dpm++_2m_sde", "schedule_type": "exponential"}
    assert resolve("DPM++ 2M Karras", CHECKPOINT) == resolve(from_web_ui("DPM++ 2M", "Karras"), CHECKPOINT)
    assert resolve("dpmpp_2m", CHECKPOINT)["schedule_type"] == "karras"
    assert resolve("euler", CHECKPOINT) == {**CHECKPOINT, "_class_name": "EulerDiscreteScheduler"}  # ours comes first


def test_our_names_are_told_as_web_uis_have_them() -> None:
    for known in WEB_UI_SAMPLERS:
        if known.ours is None or known.comfyui == "ddim":
            continue
        label = known.automatic1111 or known.comfyui
        assert to_web_ui(known.ours["name"]) in ((label, None), ("UniPC", None))
    for label, ours in AUTOMATIC1111_TYPES.items():
        if ours is not None and label != "Uniform":
            told = to_web_ui(f"euler_{ours}")
            assert told is not None
            assert from_web_ui(*told)["schedule_type"] == ours
    unknown = {name for name in short_names() if to_web_ui(name) is None}
    assert unknown == {"dpm++_3m", "dpm++_2s", "dpm++_3s", "pndm", "tcd", "flow_euler"}


def test_the_docs_have_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "schedulers.md").read_text()
    assert names_table() in text
