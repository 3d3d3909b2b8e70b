"""What AUTOMATIC1111's web UI (1.10) and ComfyUI call samplers and schedule types, and what they are here.

One table, used to read these names, to write them, and for the docs. Data and look-ups only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from latentrt.runtime.errors import SchedulerError, unknown

_REMEMBERS = (
    "is CFG++ of a sampler of second order, which needs the unguided prediction as another column in every engine: "
    "use {!r}, which is of first order"
)
_ADAPTIVE = "chooses its steps by the picture, so its number of model calls is not known before: use 'dpm_fast'"
_VIDEO = "draws video in blocks, with a model that Stable Diffusion is not"


@dataclass(frozen=True, slots=True)
class Known:
    """A sampler of web UIs.

    Attributes:
        automatic1111, comfyui: its names there; a name ending in `_gpu` is the same with noise from the GPU.
        ours: name and options, for `resolve`.
        refused: why there is none.
        automatic: the schedule type that "Automatic" selects in AUTOMATIC1111's web UI.
        drops: whose web UI leaves out the last sigma but one: "a1111", "comfyui", "both".
    """

    automatic1111: str | None
    comfyui: str | None
    ours: Mapping[str, Any] | None = None
    refused: str = ""
    automatic: str = "normal"
    drops: str = ""


def _row(a1111: str | None, comfyui: str | None, name: str, **options: Any) -> Known:
    automatic, drops = options.pop("automatic", "normal"), options.pop("drops", "")
    return Known(a1111, comfyui, {"name": name, **options}, automatic=automatic, drops=drops)


_TIMESTEPS = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}

WEB_UI_SAMPLERS: tuple[Known, ...] = (
    _row("DPM++ 2M", "dpmpp_2m", "dpm++_2m", automatic="karras"),
    _row("DPM++ SDE", "dpmpp_sde", "dpm++_sde", automatic="karras"),
    _row("DPM++ 2M SDE", "dpmpp_2m_sde", "dpm++_2m_sde", automatic="exponential"),
    _row("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", "dpm++_2m_sde_heun", automatic="exponential"),
    _row("DPM++ 2S a", "dpmpp_2s_ancestral", "dpm++_2s_a", automatic="karras"),
    _row("DPM++ 3M SDE", "dpmpp_3m_sde", "dpm++_3m_sde", automatic="exponential", drops="a1111"),
    _row("Euler a", "euler_ancestral", "euler_a"),
    _row("Euler", "euler", "euler"),
    _row("LMS", "lms", "lms"),
    _row("Heun", "heun", "heun"),
    _row("DPM2", "dpm_2", "dpm2", automatic="karras", drops="both"),
    _row("DPM2 a", "dpm_2_ancestral", "dpm2_a", automatic="karras", drops="both"),
    _row("DPM fast", "dpm_fast", "dpm_fast"),
    Known("DPM adaptive", "dpm_adaptive", refused=_ADAPTIVE),
    _row("Restart", None, "restart", automatic="karras"),
    _row("DDIM", None, "ddim", **_TIMESTEPS),
    _row("DDIM CFG++", None, "ddim_cfg_pp", **_TIMESTEPS),
    _row("PLMS", None, "plms", **_TIMESTEPS),
    _row("UniPC", "uni_pc", "unipc_bh1", solver_order=3, drops="comfyui"),
    _row("LCM", "lcm", "lcm"),
    _row(None, "ddim", "euler"),  # ComfyUI's is Euler's method, which is DDIM in sigma
    _row(None, "ddpm", "ddpm"),
    _row(None, "deis", "deis", solver_order=3),
    _row(None, "er_sde", "er_sde"),
    _row(None, "euler_cfg_pp", "euler_cfg_pp"),
    _row(None, "euler_ancestral_cfg_pp", "euler_a_cfg_pp"),
    _row(None, "exp_heun_2_x0", "exp_heun_2_x0"),
    _row(None, "exp_heun_2_x0_sde", "exp_heun_2_x0_sde"),
    _row(None, "gradient_estimation", "gradient_estimation"),
    _row(None, "heunpp2", "heunpp2"),
    _row(None, "ipndm", "ipndm"),
    _row(None, "ipndm_v", "ipndm_v"),
    _row(None, "res_multistep", "res_multistep"),
    _row(None, "res_multistep_ancestral", "res_multistep_a"),
    _row(None, "sa_solver", "sa_solver", predictor_order=3, corrector_order=4),
    _row(None, "sa_solver_pece", "sa_solver_pece"),
    _row(None, "seeds_2", "seeds_2"),
    _row(None, "seeds_3", "seeds_3"),
    _row(None, "uni_pc_bh2", "unipc_bh2", solver_order=3, drops="comfyui"),
    Known(None, "dpmpp_2m_cfg_pp", refused=_REMEMBERS.format("euler_cfg_pp")),
    Known(None, "dpmpp_2s_ancestral_cfg_pp", refused=_REMEMBERS.format("euler_a_cfg_pp")),
    Known(None, "gradient_estimation_cfg_pp", refused=_REMEMBERS.format("euler_cfg_pp")),
    Known(None, "res_multistep_cfg_pp", refused=_REMEMBERS.format("euler_cfg_pp")),
    Known(None, "res_multistep_ancestral_cfg_pp", refused=_REMEMBERS.format("euler_a_cfg_pp")),
    Known(None, "ar_video", refused=_VIDEO),
)
# Their schedule types -> ours. ComfyUI's `beta` is another than AUTOMATIC1111's.
AUTOMATIC1111_TYPES: Mapping[str, str | None] = MappingProxyType(
    {
        "Automatic": None,
        "Uniform": "normal",
        "Karras": "karras",
        "Exponential": "exponential",
        "Polyexponential": "polyexponential",
        "SGM Uniform": "sgm_uniform",
        "KL Optimal": "kl_optimal",
        "Align Your Steps": "align_your_steps",
        "Simple": "simple",
        "Normal": "normal",
        "DDIM": "ddim_uniform",
        "Beta": "beta",
    }
)
COMFYUI_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "simple": "simple",
        "sgm_uniform": "sgm_uniform",
        "karras": "karras",
        "exponential": "exponential",
        "ddim_uniform": "ddim_uniform",
        "beta": "beta_timesteps",
        "normal": "normal",
        "linear_quadratic": "linear_quadratic",
        "kl_optimal": "kl_optimal",
    }
)
# Samplers that have steps of their own there, whatever the schedule type.
_OWN_STEPS = frozenset({"ddim", "ddim_cfg_pp", "plms", "ddpm", "lcm", "dpm_fast"})


def _labels(known: Known) -> Iterator[str]:
    if known.automatic1111 is not None:
        yield known.automatic1111.lower()
    if known.comfyui is not None:
        yield known.comfyui
        yield f"{known.comfyui}_gpu"


_BY_LABEL: Mapping[str, Known] = {label: known for known in reversed(WEB_UI_SAMPLERS) for label in _labels(known)}
_TYPES: Mapping[str, str | None] = {label.lower(): ours for label, ours in AUTOMATIC1111_TYPES.items()}


def web_ui_labels() -> Iterator[str]:
    """What `from_web_ui` knows without a separate schedule type, in lower case: samplers, and those with a type."""
    for label, known in _BY_LABEL.items():
        if known.ours is not None:
            yield from (label, *(f"{label} {end}" for end in _TYPES))


def is_web_ui_name(name: str) -> bool:
    """Whether `from_web_ui` knows the sampler, maybe with a schedule type after it."""
    label = name.strip().lower()
    return label in _BY_LABEL or any(label.removesuffix(f" {end}") in _BY_LABEL for end in _TYPES)


def from_web_ui(sampler: str, schedule_type: str | None = None) -> dict[str, Any]:
    """A scheduler for `resolve` from the names of a web UI.

    Args:
        sampler: such as "DPM++ 2M", "dpmpp_2m", or with the schedule type as before 1.9, "DPM++ 2M Karras". Case does
            not matter. Where both web UIs have a sampler of one name, it is AUTOMATIC1111's.
        schedule_type: such as "SGM Uniform" or "sgm_uniform"; None and "Automatic" are the sampler's own.

    Raises: SchedulerError: an unknown name; the message has the nearest. Or a sampler that no plan can express.
    """
    label, kind = sampler.strip().lower(), (schedule_type or "automatic").strip().lower()
    known = _BY_LABEL.get(label)
    if known is None:
        ends = next((end for end in _TYPES if label.endswith(f" {end}")), None)
        if ends is not None and schedule_type is None:
            label, kind = label.removesuffix(f" {ends}"), ends
            known = _BY_LABEL.get(label)
    if known is None:
        every = [name for row in WEB_UI_SAMPLERS for name in (row.automatic1111, row.comfyui) if name]
        raise SchedulerError(unknown("sampler", sampler, every))
    if known.ours is None:
        raise SchedulerError(f"{sampler} {known.refused}")
    comfyui = label != (known.automatic1111 or "").lower()
    types: Mapping[str, str | None] = {**_TYPES, **COMFYUI_TYPES} if comfyui else {**COMFYUI_TYPES, **_TYPES}
    if kind not in types:
        raise SchedulerError(unknown("schedule type", schedule_type, (*AUTOMATIC1111_TYPES, *COMFYUI_TYPES)))
    if known.ours["name"] in _OWN_STEPS:
        return dict(known.ours)
    chosen = types[kind] or known.automatic
    drops = {"discard_next_to_last": True} if known.drops in ("both", "comfyui" if comfyui else "a1111") else {}
    return {**known.ours, "schedule_type": chosen, **drops}


def to_web_ui(name: str) -> tuple[str, str | None] | None:
    """Sampler and schedule type as web UIs write them, for one of our names; None for one that they do not have."""
    base, kind = name, None
    labels = {str(known.ours["name"]): known for known in reversed(WEB_UI_SAMPLERS) if known.ours is not None}
    labels["unipc"] = labels["unipc_bh2"] = labels["unipc_bh1"]
    types = {ours: label for label, ours in reversed(tuple(AUTOMATIC1111_TYPES.items())) if ours is not None}
    types |= {ours: label for label, ours in COMFYUI_TYPES.items() if ours not in types}
    if base not in labels:
        kind = next((t for t in sorted(types, key=len, reverse=True) if name.endswith(f"_{t}")), None)
        base = name.removesuffix(f"_{kind}")
    if base not in labels:
        return None
    known = labels[base]
    return known.automatic1111 or str(known.comfyui), None if kind is None else types[kind]


def names_table() -> str:
    """The table of names for the docs."""
    lines = ["| AUTOMATIC1111 | ComfyUI | latentrt |", "|---|---|---|"]
    for known in WEB_UI_SAMPLERS:
        ours = known.refused
        if known.ours is not None:
            options = ",".join(f"{k}={str(v).lower()}" for k, v in known.ours.items() if k != "name")
            ours = f"`{known.ours['name']}{':' if options else ''}{options}`"
        comfyui = "" if known.comfyui is None else f"`{known.comfyui}`"
        lines.append(f"| {known.automatic1111 or ''} | {comfyui} | {ours} |")
    return "\n".join(lines) + "\n"
