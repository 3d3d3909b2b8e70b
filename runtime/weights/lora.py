"""LoRA (arXiv:2106.09685) and its relatives: files of every trainer, as changes of a bundle's weights.

Changed weights are always computed from the checkpoint's own weights, in float32 and rounded once, so that removing a
LoRA restores them exactly. Each file's change is that of the checkpoint's weight alone, times its factor, and the
changes add up. So their order does not matter, also for methods such as DoRA whose change depends on the weight.
"""

import logging
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32, NewWeights
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import InputError

from .lora_methods import MisfitError, Parts, Scaling, methods_of, weight_change
from .lora_names import LoraNames, split_name
from .lora_paths import lora_paths
from .peft_config import PeftSettings, read_config, settings_in_metadata
from .stored import from_float32, stored_weight, to_float32
from .tensor_file import read_safetensors

logger = logging.getLogger(__name__)
# Marks in tensor names of methods that are not read.
_OTHER_METHODS = {"oft_": "an OFT", "boft_": "a BOFT", "vera_lambda_": "a VeRA", "ia3_l": "an (IA)^3 of PEFT"}
_EMBEDDING = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|clip_l|clip_g)")


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """The change of one parameter by one file, and its factor."""

    path: Path
    parts: Parts
    scaling: Scaling
    factor: float = 1.0

    def delta(self, parameter: str, base: Float32) -> Float32:
        """The change of a parameter in the checkpoint's shape, times the factor. Raises `InputError`."""
        try:
            with np.errstate(all="ignore"):
                change = weight_change(self.parts, base, self.scaling) * np.float32(self.factor)
        except MisfitError as error:
            raise InputError(
                f"{self.path} does not fit {parameter} of shape {base.shape} ({error}). "
                "Was it trained for another model family?"
            ) from error
        except ValueError as error:
            raise InputError(f"{self.path}: the tensors for {parameter} are wrong: {error}") from error
        if not np.isfinite(change).all():
            raise InputError(f"{self.path} changes {parameter} by infinity: its tensors or its weight are too large")
        return change


def read_lora(path: Path, parameters: Iterable[str]) -> dict[str, Change]:
    """Parameter of the checkpoint -> its change. Raises `InputError` if any tensor is not understood."""
    files = lora_paths(path)
    tensors, metadata = read_safetensors(files.tensors)
    config = None if files.config is None else read_config(files.config)
    settings = settings_in_metadata(path, metadata)
    known = set(parameters)
    names = LoraNames(known)
    modules: dict[str, dict[str, tuple[str, NDArray[Any]]]] = {}
    unknown = []
    for name, tensor in _without_embeddings(path, tensors):
        module, part = _place(name, names, tensors, config)
        if module is None or not part:
            unknown.append(name)
            continue
        before = modules.setdefault(module, {}).setdefault(part, (name, tensor))
        if before[1] is not tensor and not np.array_equal(before[1], tensor):
            raise InputError(f"{path}: {before[0]} and {name} are two values of the same tensor")
    if unknown or not modules:
        raise InputError(_no_match(path, unknown, len(tensors), bool(modules), names))
    _warn_without_config(path, tensors, config, modules)
    changes: dict[str, Change] = {}
    for module, named in modules.items():
        component, _, rest = module.partition(".")
        changes |= _changes(path, module, named, config or settings.get(component) or PeftSettings(), rest)
    if absent := [parameter for parameter in changes if parameter not in known]:
        raise InputError(f"{path} changes {absent[0]}, which this model does not have")
    return changes


def read_loras(loras: Iterable[tuple[Path, float]], parameters: Iterable[str]) -> dict[str, list[Change]]:
    """Parameter of the checkpoint -> its changes by these files, each with its factor."""
    parameters = list(parameters)
    changes: dict[str, list[Change]] = {}
    for path, factor in loras:
        for parameter, change in read_lora(path, parameters).items():
            changes.setdefault(parameter, []).append(Change(path, change.parts, change.scaling, factor))
    return changes


def with_changes(parameter: str, base: Float32, changes: Iterable[Change]) -> Float32:
    """A weight in the checkpoint's shape, plus the sum of its changes. Raises `InputError` if one does not fit."""
    total = np.zeros(base.shape, np.float32)
    for change in changes:
        total += change.delta(parameter, base)
    return base + total


def changed_weights(bundle: Bundle, loras: Mapping[Path, float]) -> NewWeights:
    """Graph -> initializer -> the checkpoint's weight plus all changes times their factors, in the stored dtype."""
    if loras and (quantized := bundle.manifest.recipe.quantization) is not None:
        raise InputError(
            f"{bundle.path} is {quantized.to}: its weights are rounded to 8 bits, and a LoRA's change would be lost in "
            "that. Merge it before: latentrt quantize BUNDLE OUT --lora FILE:WEIGHT"
        )
    weights = bundle.manifest.weights
    changed: dict[str, dict[str, NDArray[np.generic]]] = {}
    for parameter, changes in read_loras(loras.items(), [*weights, *_unused(bundle)]).items():
        for use in weights.get(parameter, ()):
            if use.offset is None:
                raise InputError(
                    f"{changes[0].path} changes {parameter}, which is too small to be stored apart from the graph "
                    f"{use.graph}: merge it for good, with latentrt export CHECKPOINT --lora {changes[0].path}"
                )
            base = to_float32(stored_weight(bundle, use), use.stored_dtype)
            whole = with_changes(parameter, base.T if use.transposed else base, changes)
            whole = np.ascontiguousarray(whole.T if use.transposed else whole)  # as backends take them
            try:
                with np.errstate(over="raise"):
                    rounded = from_float32(whole, use.stored_dtype)
            except FloatingPointError as error:
                raise InputError(
                    f"with {' and '.join(str(change.path) for change in changes)}, {parameter} is too large for "
                    f"{use.stored_dtype}: lower the weights, or export with --precision fp32"
                ) from error
            changed.setdefault(use.graph, {})[use.initializer] = rounded
    return changed


def file_and_weight(text: str) -> tuple[str, float]:
    """Split "style.safetensors:0.8" into path and weight; the default weight is 1."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a path with a colon


def _unused(bundle: Bundle) -> set[str]:
    """Parameters that the checkpoint has, but no graph: the last layer of a text encoder whose output is not used.

    Trainers of Stable Diffusion XL write tensors for it all the same. They change nothing.
    """
    weights = bundle.manifest.weights
    found: set[str] = set()
    for encoder in bundle.manifest.model.text_encoders:
        last = f"{encoder.graph}.encoder.layers.{encoder.hidden_states}."
        if f"{encoder.graph}.final_layer_norm.weight" not in weights:
            before = f"{encoder.graph}.encoder.layers.{encoder.hidden_states - 1}."
            found |= {last + name.removeprefix(before) for name in weights if name.startswith(before)}
            found |= {f"{encoder.graph}.final_layer_norm.{kind}" for kind in ("weight", "bias")}
    return found - weights.keys()


def _without_embeddings(path: Path, tensors: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of a LoRA alone; warns of textual inversions that came along, and refuses other methods."""
    words = dict.fromkeys(match[1] for name in tensors if (match := _EMBEDDING.fullmatch(name)))
    for word in words:
        logger.warning(
            "%s also holds the textual inversion %r, which is not applied: save its vectors (bundle_emb.%s.…) as a "
            "file of their own, and add that at export with --embedding FILE:%s",
            *(path, word, word, word),
        )
    for name, tensor in tensors.items():
        method = next((method for mark, method in _OTHER_METHODS.items() if f".{mark}" in name), None)
        if method is not None:
            raise InputError(f"{path} is {method} ({name}), not a LoRA: merge it into the checkpoint, then export that")
        if not _EMBEDDING.fullmatch(name):
            yield name, tensor


def _place(name: str, names: LoraNames, tensors: Container[str], config: PeftSettings | None) -> tuple[str | None, str]:
    """Module and part of a tensor. Whole weights are part of PEFT's files alone; other files with them are models."""
    module, part = split_name(name)
    is_peft = config is not None or module.startswith("base_model.model.")
    if part in ("value", "value_b") and not is_peft:
        part = "ia3" if f"{module}.on_input" in tensors else ""
    found = names.module(module)
    if found is None and config is not None and config.component is not None:
        found = names.module(f"{config.component}.{module.removeprefix('base_model.model.')}")
    return found, part


def _changes(
    path: Path, module: str, named: Mapping[str, tuple[str, NDArray[Any]]], settings: PeftSettings, rest: str
) -> dict[str, Change]:
    """The changes of a module's weight and bias; `rest` is the module's name in its component."""
    parts = {part: tensor for part, (_, tensor) in named.items()}
    scaling = settings.scaling(rest)
    if "alpha" in parts:
        name, tensor = named["alpha"]
        if tensor.size != 1:
            raise InputError(f"{path}: {name} has shape {tensor.shape}; expected one number")
        scaling = Scaling(float(tensor.item()))
    changes = {}
    bias = {kind: parts.pop(f"{kind}_b") for kind in ("diff", "value") if f"{kind}_b" in parts}
    if "up_bias" in parts:
        bias["diff"] = parts.pop("up_bias") * scaling.of(max(1, parts["down"].shape[0] if "down" in parts else 1))
    if bias:
        changes[f"{module}.bias"] = Change(path, bias, scaling)
    if parts or not bias:
        try:
            methods_of(parts)
        except ValueError as error:
            raise InputError(f"{path} is not a whole LoRA: {next(iter(named.values()))[0]} is {error}") from error
        if settings.decomposed and "up" in parts and not {"magnitude", "dora_scale"} & set(parts):
            raise InputError(f"{path} is a DoRA (use_dora) without lora_magnitude_vector of {module}")
        changes[f"{module}.weight"] = Change(path, parts, scaling)
    return changes


def _warn_without_config(
    path: Path, tensors: Iterable[str], config: PeftSettings | None, modules: Mapping[str, Mapping[str, object]]
) -> None:
    peft = all(name.startswith("base_model.model.") for name in tensors)
    if peft and config is None and not any("alpha" in parts for parts in modules.values()):
        logger.warning(
            "%s was saved by PEFT, and there is no adapter_config.json beside adapter_model.safetensors: its "
            "lora_alpha is not known, so alpha / rank is taken as 1",
            path,
        )


def _no_match(path: Path, unknown: list[str], total: int, some: bool, names: LoraNames) -> str:
    if not unknown:
        return f"{path} is not a LoRA: it has no tensors of one"
    if whole := next((name for name in unknown if names.module(name.rpartition(".")[0])), None):
        return f"{path} is no LoRA: it has whole weights, such as {whole}. To draw with that model, export it"
    near = names.nearest(split_name(unknown[0])[0])
    hint = f" The nearest names are {' and '.join(near)}." if near else ""
    family = "The others fit, so it is refused only to leave nothing out" if some else ""
    return (
        f"{path}: {len(unknown)} of {total} tensors match nothing in this bundle, such as {unknown[0]}.{hint} "
        f"{family or 'Is it a LoRA for this model family?'}"
    )
