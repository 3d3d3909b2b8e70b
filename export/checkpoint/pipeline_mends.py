"""What diffusers' pipelines mend in the configs of old checkpoints when they are made.

Follows `__init__` of the pipelines of Stable Diffusion 1 and 2 in diffusers 0.42. Those of SDXL and of latent
consistency models mend nothing. docs/diffusers.md lists everything that pipelines do around the modules and schedulers.
"""

import re
from collections.abc import Mapping
from typing import Any

from latentrt.runtime.scheduler import class_defaults

Config = dict[str, Any]

_MENDING = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
_FLAGS = (("clip_sample", False), ("skip_prk_steps", True))  # the second for inpainting
_DEFAULT_SAMPLE_SIZE = 64  # latent pixels


def scheduler_of(index: Mapping[str, Any], config: Mapping[str, Any]) -> Config:
    """The scheduler's config as the checkpoint's pipeline uses it.

    The class is the one in model_index.json, as in `DiffusionPipeline.from_pretrained`. The pipelines of Stable
    Diffusion set `steps_offset` to 1 and `clip_sample` to false, for inpainting `skip_prk_steps` to true instead.

    Returns: `config` itself, unchanged, if nothing is mended.
    """
    mended = {**config, **_class_of_index(index, config)}
    if index["_class_name"] in _MENDING:
        filled = set(_names(config.get("_use_default_values")))
        in_use = {**class_defaults(mended.get("_class_name")), **{k: v for k, v in config.items() if k not in filled}}
        changes: Config = {"steps_offset": 1} if in_use.get("steps_offset", 1) != 1 else {}
        flag, right = _FLAGS[index["_class_name"] == "StableDiffusionInpaintPipeline"]
        if in_use.get(flag) is (not right):
            changes[flag] = right
        mended |= changes
        if filled & set(changes):
            mended["_use_default_values"] = sorted(filled - set(changes))
    return dict(config) if mended == config else mended


def sample_size_of(index: Mapping[str, Any], unet: Mapping[str, Any]) -> int | list[int] | None:
    """The UNet's sample size in latent pixels; UNets saved before diffusers 0.9 with less than 64 mean 64."""
    size: int | list[int] | None = unet.get("sample_size")
    version = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    if index["_class_name"] in _MENDING and old and isinstance(size, int) and size < _DEFAULT_SAMPLE_SIZE:
        return _DEFAULT_SAMPLE_SIZE
    return size


def _class_of_index(index: Mapping[str, Any], config: Mapping[str, Any]) -> Config:
    """`_class_name`, where model_index.json names another class than the scheduler's own file."""
    entry = index.get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None
    return {"_class_name": name} if name is not None and name != config.get("_class_name") else {}


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
