"""Scheduler configs: turn a config into validated options of one class.

Follows `from_config` of diffusers 0.42: a missing key takes the default of the class that is *used*, not of the class
that wrote the file, and keys that only other classes have are ignored. Knows nothing about timesteps or coefficients.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError, shown, unknown
from latentrt.runtime.scheduler.samplers import SAMPLERS

from .diffusers_options import ALIASES, MAX_TRAIN_TIMESTEPS, OPTIONS, REFUSED, UNPLANNED
from .own_options import ALL_CHOICES, ALL_CLASS_CHOICES, ALL_OPTIONAL, ALL_OPTIONS, ALL_RANGES, KNOWN_KEYS

Config = Mapping[str, Any]

RESPACING_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def class_defaults(class_name: object) -> Config:
    """The constructor defaults of a diffusers class; empty for an unknown one."""
    return OPTIONS.get(class_name, {}) if isinstance(class_name, str) else {}


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
        return _checked_number(key, value, optional=default is None)
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


def _checked_number(key: str, value: Any, *, optional: bool) -> int | float | None:
    """A number within its range; the texts "inf" and "-inf" are what JSON has instead of infinity."""
    optional = optional and key in ALL_OPTIONAL
    if value is None and optional:
        return None
    least, most = ALL_RANGES[key]
    whole = isinstance(least, int)
    if (value == "-inf" and least == -np.inf) or (value == "inf" and most == np.inf):
        return float(value)
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    odd = isinstance(value, bool) or not isinstance(value, int if whole else int | float)
    if odd or not least <= value <= most or (isinstance(value, int) and value > 2**63):  # beyond floats
        kind = "an integer" if whole else "a number"
        or_null = ", or null" if optional else ""
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
    chosen = [key for key in RESPACING_OPTIONS if options.get(key)]
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
