"""The parameters of a model's configuration: settings of the server as text, and where the bundle is.

They are written by `latentrt triton`, and read where Triton loads the model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError, unknown
from latentrt.serve.settings import Resolved, Settings, resolve, shown_value

BUNDLE = "bundle"  # a relative folder is of the version's folder
# Settings of the server that hold inside of Triton, too; `devices` are instance groups there.
FORWARDED = (
    *("backend", "engines", "trust_engines", "sizes", "loras"),
    *("max_images", "max_steps", "max_chunks", "prompt_bytes", "picture_pixels"),
    *("max_wait", "max_queue", "max_batch", "batch", "call_limit", "drain_seconds"),
    *("lazy", "deterministic", "filter", "log_prompts", "log_format"),
)


def forwarded(resolved: Resolved) -> dict[str, str]:
    """The settings that were given, as text; paths are absolute, as Triton has a working folder of its own."""
    given = {name: getattr(resolved.settings, name) for name in FORWARDED if resolved.sources[name] != "default"}
    return {
        name: str(value.absolute()) if isinstance(value, Path) else shown_value(name, value)
        for name, value in given.items()
    }


def settings_of(model: str, parameters: Mapping[str, str], folder: Path) -> Settings:
    """The settings of a model, which is the only one in them. Raises `InputError`.

    Args:
        parameters: of its configuration; Triton's own, which have capital letters, are left to it.
        folder: of its version.
    """
    values: dict[str, Any] = {name: text for name, text in parameters.items() if not name.isupper()}
    if not (bundle := values.pop(BUNDLE, None)):
        raise InputError(f"config.pbtxt: the parameter {BUNDLE} is missing: expected the folder of the model's bundle")
    for name in values:
        if name not in FORWARDED:
            raise InputError(f"config.pbtxt: {unknown('parameter', name, [BUNDLE, *FORWARDED])}")
    values["models"] = [f"{model}={folder / bundle}"]
    return resolve(values, {}).settings
