"""Names of schedulers: turn a name, a name with options, or a change into the config to use with a checkpoint.

Knows nothing about timesteps or coefficients; `config` validates what comes out.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from latentrt.runtime.errors import SchedulerError, nearest_names, shown, unknown
from latentrt.runtime.scheduler.samplers import SAMPLERS, accepted

from .config import RESPACING_OPTIONS, Config, class_defaults, explicit_keys, plain
from .diffusers_options import UNPLANNED
from .own_options import ALL_OPTIONS
from .sigma_grids import GRIDS
from .web_ui_names import from_web_ui, is_web_ui_name

logger = logging.getLogger("latentrt")

# Suffixes of names that diffusers' classes have an option for; other schedule types are `schedule_type`.
_FLAGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
# Samplers of checkpoints with EDM preconditioning, which have classes of their own.
_EDM: Mapping[str, tuple[str, Config]] = {
    "euler": ("EDMEulerScheduler", {}),
    "dpm++_2m": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++_2m_sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpm++_3m": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
}


def short_names() -> dict[str, str]:
    """Short names of samplers, without a schedule type, and their classes."""
    return {name: class_name for class_name, sampler in SAMPLERS.items() for name in sampler.names}


def scheduler_names() -> tuple[str, ...]:
    """Names that `resolve` accepts: short names, those with the schedule types of diffusers, and class names.

    Short names with other schedule types, such as `euler_sgm_uniform`, are not listed.
    """
    short = [
        name + suffix
        for name, class_name in short_names().items()
        for suffix in ("", *(f"_{kind}" for kind, flag in _FLAGS.items() if flag in ALL_OPTIONS[class_name]))
    ]
    return (*short, *SAMPLERS)


def resolve(scheduler: str | Config | None, checkpoint_config: Config) -> dict[str, Any]:
    """The scheduler config to use with a checkpoint.

    Args:
        scheduler: a diffusers class name or a short name keeps the checkpoint's betas, prediction type and every other
            option that the class has, as diffusers' `from_config` does; options may follow it, as in
            `euler:timestep_spacing=trailing,s_churn=10`. A mapping with `name` is the same. One with `_class_name` is a
            complete config and is used unchanged; one with neither overrides keys of the checkpoint's config. None is
            the checkpoint's own scheduler.
        checkpoint_config: the checkpoint's `scheduler_config.json`.

    A name of AUTOMATIC1111's web UI or of ComfyUI, such as "DPM++ 2M Karras" or "dpmpp_2m", is looked up in
    `web_ui_names`; where it is also one of ours, it is ours. A schedule type at the end of a name, such as `_karras` or
    `_sgm_uniform`, selects its sigmas. `ddim`, `ddpm`, `heun`, `lcm` and `tcd` set `clip_sample` to false if the
    checkpoint does not set it: many Stable Diffusion checkpoints were saved with a class that lacks the option, and the
    class default would clip the latents. `pndm` likewise sets `skip_prk_steps` to true, as all Stable Diffusion
    checkpoints do. `dpm++_...` set the algorithm type and order.

    Returns: a new config with `_class_name`. `Plan.from_config` validates it.

    Raises: SchedulerError: unknown name; the message suggests known ones.
    """
    carried = explicit_keys(checkpoint_config)
    if scheduler is None:
        return carried
    if isinstance(scheduler, Mapping):
        if "name" in scheduler:
            given = plain(scheduler)
            return _named(given.pop("name"), carried) | given
        if "_class_name" not in scheduler:
            return carried | dict(scheduler)
        _warn_of_default_betas(scheduler)
        return dict(scheduler)
    if isinstance(scheduler, str) and ":" in scheduler:
        name, _, text = scheduler.partition(":")
        return _named(name, carried) | _options_in(scheduler, text)
    return _named(scheduler, carried)


def resolve_for_model(
    scheduler: str | Config | None, checkpoint_config: Config, *, text_encoders: int
) -> dict[str, Any]:
    """`resolve` for a model with one or two text encoders: Align Your Steps has other levels for SDXL."""
    config = resolve(scheduler, checkpoint_config)
    if config.get("schedule_type") == "align_your_steps" and text_encoders == 2:
        config["schedule_type"] = "align_your_steps_sdxl"
    return config


def _named(name: object, carried: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config, changed to a class or a short name."""
    if isinstance(name, str) and (name in SAMPLERS or name in UNPLANNED):
        return carried | {"_class_name": name}
    known = short_names()
    kind = next((k for k in GRIDS if isinstance(name, str) and name.endswith(f"_{k}") and name not in known), None)
    base = str(name).removesuffix(f"_{kind}")
    if isinstance(name, str) and base not in known and is_web_ui_name(name):
        options = from_web_ui(name)
        return _named(options.pop("name"), carried) | options
    if not isinstance(name, str) or base not in known:
        every = every_name()
        raise SchedulerError(
            unknown("scheduler", name, every if nearest_names(name, every) else (*known, *SAMPLERS))
            + " A schedule type may follow a name, as in euler_karras"
        )
    class_name, fixed = known[base], SAMPLERS[known[base]].names[base]
    if "sigma_data" in carried or str(carried.get("_class_name")).startswith("EDM"):
        if base not in _EDM or kind not in (None, "karras", "exponential"):
            raise SchedulerError(
                f"{name!r} does not work with a checkpoint of EDM preconditioning; expected one of {', '.join(_EDM)}"
            )
        class_name, fixed = _EDM[base]
        return carried | {"_class_name": class_name, **fixed} | ({"sigma_schedule": kind} if kind else {})
    config = carried | {"_class_name": class_name}
    for key, value in fixed.items():
        if not key.endswith("?") or key[:-1] not in config:
            config[key.removesuffix("?")] = value
    return config | ({} if kind is None else _schedule_type(name, class_name, kind))


def _schedule_type(name: str, class_name: str, kind: str) -> dict[str, Any]:
    options = ALL_OPTIONS[class_name]
    off: dict[str, Any] = {flag: False for flag in RESPACING_OPTIONS if flag in options}
    if (flag := _FLAGS.get(kind)) is not None and flag in options:
        return off | {flag: True}
    if "schedule_type" not in options:
        takers = ", ".join(short for short, other in short_names().items() if "schedule_type" in ALL_OPTIONS[other])
        raise SchedulerError(f"{name!r}: {class_name} has its own steps and takes no schedule type; these do: {takers}")
    return off | {"schedule_type": kind}


def every_name() -> tuple[str, ...]:
    """All names that `resolve` accepts as they stand: listed and unlisted ones, without those of web UIs."""
    return (*scheduler_names(), *_unlisted_names())


def _unlisted_names() -> tuple[str, ...]:
    return tuple(
        f"{name}_{kind}"
        for name, class_name in short_names().items()
        for kind in GRIDS
        if "schedule_type" in ALL_OPTIONS[class_name]
    )


def _options_in(whole: str, text: str) -> dict[str, Any]:
    """Options in a text such as `timestep_spacing=trailing,s_churn=10`; values are JSON, or else text."""
    options: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise SchedulerError(f"{shown(whole)}: expected NAME:OPTION=VALUE,OPTION=VALUE, got {shown(part)}")
        try:
            options[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            options[key.strip()] = value.strip()
    return plain(options)


def _warn_of_default_betas(config: Config) -> None:
    """A complete config without betas takes its class's, which no Stable Diffusion checkpoint was trained with."""
    defaults = class_defaults(config["_class_name"])
    if "beta_start" not in defaults or any(key in config for key in ("beta_start", "beta_end", "trained_betas")):
        return
    logger.warning(
        "the scheduler config has no betas, so those of %s are used: %s from %g to %g. For the checkpoint's, pass the "
        'name, {"name": "%s", …}; for others, set beta_start, beta_end and beta_schedule',
        config["_class_name"],
        config.get("beta_schedule", defaults["beta_schedule"]),
        defaults["beta_start"],
        defaults["beta_end"],
        config["_class_name"],
    )


def options_taken_by(scheduler: str | Config) -> frozenset[str]:
    """Which of `eta`, `timesteps` and `sigmas` a scheduler takes; all of them for a config without a class."""
    config = resolve(scheduler, {})
    known = config.get("_class_name") in SAMPLERS
    return (
        accepted({**ALL_OPTIONS[config["_class_name"]], **config})
        if known
        else frozenset({"eta", "timesteps", "sigmas"})
    )
