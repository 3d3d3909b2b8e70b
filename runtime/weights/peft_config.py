"""PEFT's settings of a LoRA, from adapter_config.json or from a file's metadata. Knows no tensors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError

from .lora_methods import Scaling
from .tensor_file import require_regular_file

CONFIG = "adapter_config.json"
_MAX_BYTES = 1 << 24
_METHODS = ("LORA", "LOHA", "LOKR")
# Settings that do not change what the tensors mean, besides those that are read below.
_HARMLESS = {
    *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("auto_mapping", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_weights"),
    *("lora_dropout", "rank_dropout", "module_dropout", "rank_dropout_scale", "fan_in_fan_out", "bias", "lora_bias"),
    *("modules_to_save", "megatron_core", "megatron_config", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config", "ephemeral_gpu_offload", "qalora_group_size", "use_effective_conv2d"),
    *("decompose_both", "decompose_factor", "ensure_weight_tying", "trainable_token_indices"),
    *("r", "rank_pattern", "alpha", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"),
}
# Ways to begin a training that leave the checkpoint's own weights as they are.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_COMPONENTS = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """What PEFT's settings say about tensors.

    Attributes:
        component: "text_encoder" or "text_encoder_2" if the names in the file begin within it.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    stabilized: bool = False
    decomposed: bool = False
    component: str | None = None

    def scaling(self, module: str) -> Scaling:
        """The scaling of a module of the component, such as "conv_in"."""
        rank = _of_module(self.ranks, module, self.rank)
        return Scaling(
            _of_module(self.alphas, module, self.alpha), self.stabilized, None if rank is None else int(rank)
        )


def read_config(path: Path) -> PeftSettings:
    """The settings in an adapter_config.json. Raises `InputError` if it is malformed or not understood."""
    require_regular_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has more than {_MAX_BYTES} bytes; it is not PEFT's")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    settings = _object(str(path), content)
    if str(settings.get("peft_type")).upper() not in _METHODS:
        raise InputError(
            f"{path} is of PEFT's method {settings.get('peft_type')!r}; expected one of {', '.join(_METHODS)}. "
            "Others: merge_and_unload() with PEFT, then export the result"
        )
    return _settings(str(path), settings)


def settings_in_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Component -> its settings: newer files of diffusers have them in the metadata."""
    where = f"{path}: lora_adapter_metadata"
    parts: dict[str, dict[str, Any]] = {}
    for name, value in _object(where, metadata.get("lora_adapter_metadata", "{}")).items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    return {part: _settings(f"{where}: {part}", settings) for part, settings in parts.items()}


def _settings(where: str, settings: dict[str, Any]) -> PeftSettings:
    for name, value in settings.items():
        if name not in _HARMLESS and value not in (None, False, "", [], {}):
            raise InputError(f"{where} sets {name} to {str(value)[:60]}, which is not supported: merge it with PEFT")
    if (start := settings.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise InputError(
            f"{where}: init_lora_weights is {str(start)[:60]!r}, so the tensors do not belong to the checkpoint's own "
            "weights. Save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    component = settings.get("auto_mapping")
    base = component.get("base_model_class") if isinstance(component, dict) else None
    alpha = next((name for name in ("lora_alpha", "alpha") if settings.get(name) is not None), None)
    rank = _number(where, "r", settings["r"]) if settings.get("r") is not None else None
    if rank is not None and rank < 1:
        raise InputError(f"{where}: r is {rank:g}; expected at least 1")
    return PeftSettings(
        alpha=None if alpha is None else _number(where, alpha, settings[alpha]),
        alphas=_pattern(where, "alpha_pattern", settings),
        rank=None if rank is None else int(rank),
        ranks=_pattern(where, "rank_pattern", settings),
        stabilized=bool(settings.get("use_rslora")),
        decomposed=bool(settings.get("use_dora")),
        component=_COMPONENTS.get(base) if isinstance(base, str) else None,
    )


def _of_module(pattern: Mapping[str, float], module: str, default: float | None) -> float | None:
    """The value of the first name that a module ends with; "^" in front means all of its name."""
    for name, value in pattern.items():
        if module == name.removeprefix("^") or (not name.startswith("^") and module.endswith(f".{name}")):
            return value
    return default


def _pattern(where: str, name: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Names of modules -> numbers. PEFT reads the names as regular expressions; only plain ones are safe to use."""
    pattern = settings.get(name) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{where}: {name} is {str(pattern)[:60]!r}; expected names of modules with numbers")
    result = {}
    for key, value in pattern.items():
        plain = key.replace("\\.", ".").removesuffix("$").replace("text_model.", "")
        if not re.fullmatch(r"\^?[\w.]+", plain):
            raise InputError(f"{where}: {name} has the regular expression {key[:60]!r}; expected names of modules")
        result[plain] = _number(where, f"{name} of {key[:60]}", value)
    return result


def _number(where: str, name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        raise InputError(f"{where}: {name} is {str(value)[:60]!r}; expected a number")
    return float(value)


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(found).__name__}")
    return found
