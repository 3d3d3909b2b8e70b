"""Scheduler configs: turn a scheduler name or a checkpoint's config into validated options of one class.

Follows `from_config` of diffusers 0.42: a missing key takes the default of the class that is *used*, not of the class
that wrote the file, and keys that only other classes have are ignored. Knows nothing about timesteps or coefficients.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError, shown, unknown
from latentrt.runtime.scheduler.samplers import SAMPLERS

from .diffusers_options import ALIASES, MAX_TRAIN_TIMESTEPS, OPTIONS, REFUSED, UNPLANNED
from .own_options import ALL_CHOICES, ALL_CLASS_CHOICES, ALL_OPTIONAL, ALL_OPTIONS, ALL_RANGES, KNOWN_KEYS
from .sigma_grids import GRIDS

logger = logging.getLogger("latentrt")
Config = Mapping[str, Any]

_RESPACING_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
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

    A schedule type at the end of a name, such as `_karras` or `_sgm_uniform`, selects its sigmas. `ddim`, `ddpm`,
    `heun`, `lcm` and `tcd` set `clip_sample` to false if the checkpoint does not set it: many Stable Diffusion
    checkpoints were saved with a class that lacks the option, and the class default would clip the latents. `pndm`
    likewise sets `skip_prk_steps` to true, as all Stable Diffusion checkpoints do. `dpm++_...` set the algorithm type
    and order.

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


def _named(name: object, carried: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config, changed to a class or a short name."""
    if isinstance(name, str) and (name in SAMPLERS or name in UNPLANNED):
        return carried | {"_class_name": name}
    known = short_names()
    kind = next((k for k in GRIDS if isinstance(name, str) and name.endswith(f"_{k}") and name not in known), None)
    base = str(name).removesuffix(f"_{kind}")
    if not isinstance(name, str) or base not in known:
        raise SchedulerError(unknown("scheduler", name, (*scheduler_names(), *_unlisted_names())))
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
    off: dict[str, Any] = {flag: False for flag in _RESPACING_OPTIONS if flag in options}
    if (flag := _FLAGS.get(kind)) is not None and flag in options:
        return off | {flag: True}
    if "schedule_type" not in options:
        takers = ", ".join(short for short, other in short_names().items() if "schedule_type" in ALL_OPTIONS[other])
        raise SchedulerError(f"{name!r}: {class_name} has its own steps and takes no schedule type; these do: {takers}")
    return off | {"schedule_type": kind}


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


def class_defaults(class_name: object) -> Config:
    """The constructor defaults of a diffusers class; empty for an unknown one."""
    return OPTIONS.get(class_name, {}) if isinstance(class_name, str) else {}


def options_taken_by(scheduler: str | Config) -> frozenset[str]:
    """Which of `eta`, `timesteps` and `sigmas` a scheduler takes; all of them for a config without a class."""
    sampler = SAMPLERS.get(str(resolve(scheduler, {}).get("_class_name")))
    return frozenset({"eta", "timesteps", "sigmas"}) if sampler is None else sampler.takes


def checked_options(config: Config) -> dict[str, Any]:
    """Options of the config's class, with defaults filled in and every value validated.

    Returns: `_class_name` and exactly the options of the class.

    Raises: SchedulerError: unknown class, unknown key, invalid value, or an option that a plan cannot express.
    """
    config = explicit_keys(config)
    class_name = config.get("_class_name")
    if class_name is None:
        raise SchedulerError(
            'the scheduler config has no "_class_name": pass a diffusers scheduler_config, or a name to resolve()'
        )
    if not isinstance(class_name, str):
        raise SchedulerError(f"_class_name={shown(class_name)} in the scheduler config: expected the name of a class")
    if class_name in UNPLANNED:
        reason, nearest = UNPLANNED[class_name]
        raise SchedulerError(f"{class_name} {reason}: use {nearest!r} instead")
    if class_name not in SAMPLERS:
        raise SchedulerError(unknown("scheduler class", class_name, tuple(SAMPLERS)))
    for key in config:
        if not key.startswith("_") and key not in KNOWN_KEYS:
            raise SchedulerError(unknown("scheduler config key", key, tuple(KNOWN_KEYS)))
    options = {key: _checked(class_name, key, default, config) for key, default in ALL_OPTIONS[class_name].items()}
    _check_combinations(class_name, options)
    return {"_class_name": class_name} | options


def explicit_keys(config: Config) -> dict[str, Any]:
    """A config without the keys that diffusers filled in: it drops them when the scheduler class changes."""
    config = plain(config)
    filled = config.pop("_use_default_values", None) or []
    if not isinstance(filled, list) or not all(isinstance(key, str) for key in filled):
        raise SchedulerError(f"_use_default_values={shown(filled)} in the scheduler config: expected a list of keys")
    return {key: value for key, value in config.items() if key not in filled}


def plain(config: Config) -> dict[str, Any]:
    """A config of what JSON can hold: numpy's types become Python's, infinity becomes text.

    Raises: SchedulerError: a value that JSON cannot hold.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise SchedulerError(f"a scheduler config is {shown(config)}: expected an object with text keys")
    return {str(key): _plain(key, value) for key, value in config.items()}


def _plain(key: str, value: Any, depth: int = 0) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple) and depth < 2 and len(value) <= MAX_TRAIN_TIMESTEPS:
        return [_plain(key, entry, depth + 1) for entry in value]
    if isinstance(value, dict) and depth < 2 and all(isinstance(name, str) for name in value):
        return {name: _plain(key, entry, depth + 1) for name, entry in value.items()}
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else str(float(value))
    if value is None or type(value) in (bool, int, str):
        return value
    raise SchedulerError(
        f"{key[:80]}={shown(value)} in the scheduler config: expected a number, text, true, false, null, or a list "
        f"of at most {MAX_TRAIN_TIMESTEPS:,} of them"
    )


def _checked(class_name: str, key: str, default: Any, config: Config) -> Any:
    """The value of one option; raises `SchedulerError` if it is invalid or a plan cannot express it."""
    value = config.get(key, default)
    if key == "trained_betas":
        return _checked_betas(value)
    if key == "disable_corrector":
        return _checked_indices(value)
    if key in ALL_RANGES:
        return _checked_number(key, value)
    value = ALIASES.get(class_name, {}).get(key, {}).get(value, value) if isinstance(value, str) else value
    if isinstance(default, bool):
        if not isinstance(value, bool | None):
            raise SchedulerError(f"{key}={shown(value)} in the scheduler config: expected true or false")
        value = bool(value)
    elif not isinstance(value, str | None):
        raise SchedulerError(f"{key}={shown(value)} in the scheduler config: expected text or null")
    choices = ALL_CLASS_CHOICES.get(class_name, {}).get(key) or ALL_CHOICES.get(key)
    if choices and value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise SchedulerError(f"{key}={shown(value)} in the scheduler config: {class_name} accepts {allowed}")
    if isinstance(value, str | bool) and (key, value) in REFUSED:
        unset = "" if key in config else f" (the default of {class_name}; not set in the config)"
        raise SchedulerError(f"{key}={value!r}{unset} {REFUSED[key, value]}")
    return value


def _checked_number(key: str, value: Any) -> int | float | None:
    """A number within its range; the texts "inf" and "-inf" are what JSON has instead of infinity."""
    if value is None and key in ALL_OPTIONAL:
        return None
    least, most = ALL_RANGES[key]
    whole = isinstance(least, int)
    if (value == "-inf" and least == -np.inf) or (value == "inf" and most == np.inf):
        return float(value)
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value <= most:
        kind = "an integer" if whole else "a number"
        or_null = ", or null" if key in ALL_OPTIONAL else ""
        raise SchedulerError(
            f"{key}={shown(value)} in the scheduler config: expected {kind} from {least:g} to {most:g}" + or_null
        )
    return value if whole else float(value)


def _checked_betas(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    listed = isinstance(value, list) and all(isinstance(b, int | float) and 0 < b <= 1 for b in value)
    if not listed or any(isinstance(beta, bool) for beta in value):
        raise SchedulerError("trained_betas in the scheduler config: expected numbers in (0, 1], one per timestep")
    return tuple(float(np.float32(beta)) for beta in value)


def _checked_indices(value: Any) -> tuple[int, ...]:
    """Indices of the steps that UniPC does not correct."""
    if not isinstance(value, list | tuple) or not all(type(i) is int and i >= 0 for i in value):
        raise SchedulerError(f"disable_corrector={shown(value)} in the scheduler config: expected step indices >= 0")
    return tuple(value)


def _check_combinations(class_name: str, options: Config) -> None:
    """Reject options that are valid alone but not together."""
    given = options.get("trained_betas")
    if options["num_train_timesteps"] < 2 or (given is not None and len(given) != options["num_train_timesteps"]):
        has = "" if given is None else f" and {len(given)} trained_betas"
        raise SchedulerError(
            f"num_train_timesteps={options['num_train_timesteps']}{has} in the scheduler config: "
            "expected at least 2 timesteps, and one beta per timestep"
        )
    chosen = [key for key in _RESPACING_OPTIONS if options.get(key)]
    if len(chosen) > 1:
        raise SchedulerError(f"{' and '.join(chosen)} are both set: choose one")
    kind = options.get("algorithm_type", "")
    to_zero = options.get("final_sigmas_type") == "zero"
    if class_name.startswith("DPMSolver") and not kind.endswith("++") and to_zero:
        raise SchedulerError(
            f"algorithm_type={kind!r} cannot end at sigma 0: "
            'set "final_sigmas_type": "sigma_min", or "algorithm_type": "dpmsolver++"'
        )
    if class_name == "UniPCMultistepScheduler" and to_zero and not options["predict_x0"]:
        raise SchedulerError(
            'predict_x0=False cannot end at sigma 0: set "final_sigmas_type": "sigma_min", or "predict_x0": true'
        )
    higher = options.get("solver_order", 1) > 1
    if class_name == "UniPCMultistepScheduler" and to_zero and higher and not options["lower_order_final"]:
        raise SchedulerError(
            'lower_order_final=False cannot end at sigma 0: set "final_sigmas_type": "sigma_min", or '
            '"lower_order_final": true'
        )
    right = class_name == "DPMSolverSinglestepScheduler" and options["solver_type"] == "midpoint"
    if kind.startswith("sde-") and options["solver_order"] == 3 and not right:
        raise SchedulerError(
            f"algorithm_type={kind!r} with solver_order=3 has no correct implementation in diffusers: "
            'set "solver_order": 2'
        )
