"""Reads the text that AUTOMATIC1111's web UI, its forks and many tools write into pictures, as options of a call."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.runtime.scheduler.web_ui_names import from_web_ui

from .guidance import PLUS_PLUS
from .options import UPSCALERS_OF_WEB_UIS

logger = logging.getLogger("latentrt")

_SETTING = re.compile(r'\s*([A-Za-z][\w \-/]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
_SCHEDULE = {
    "Schedule max sigma": "sigma_max",
    "Schedule min sigma": "sigma_min",
    "Schedule rho": "schedule_rho",
    "Beta schedule alpha": "schedule_alpha",
    "Beta schedule beta": "schedule_beta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
}
# About the picture's origin, without effect on it.
_SILENT = frozenset(
    {"Model", "Model hash", "Version", "VAE", "VAE hash", "Lora hashes", "TI hashes", "Hashes", "Size", "Steps"}
)


def is_web_ui_text(text: object) -> bool:
    """Whether a picture's text `parameters` has a line of settings."""
    return isinstance(text, str) and len(text) < 10**6 and len(_settings(text.strip().split("\n")[-1])) >= 3


def settings_of_web_ui(text: str) -> dict[str, str]:
    """Prompts and settings of a picture's text `parameters`, by their labels there; nothing is interpreted."""
    if not is_web_ui_text(text):
        return {}
    *lines, last = text.strip().split("\n")
    prompt, negative = _prompts(lines)
    return {"Prompt": prompt, "Negative prompt": negative, **_settings(last)}


def options_of_web_ui(text: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], str, str]:
    """Options of `Pipeline.__call__`, the prompt included, the model's name, and the beginning of its hash.

    The noise is that of a GPU unless the text says otherwise, brackets are weights, and long prompts are drawn in
    chunks, as there. What has an effect there and none here is named in a warning; LoRAs of the prompt are taken out.

    Args:
        changes: options that replace those of the text.

    Raises: InputError: a setting cannot be read.
    """
    *lines, last = text.strip().split("\n")
    settings = _settings(last)
    prompt, negative = _prompts(lines)
    options: dict[str, Any] = {"prompt": prompt, "prompt_syntax": "web-ui", "long_prompt": "chunk"}
    if negative:
        options["negative_prompt"] = negative
    read = dict.fromkeys(_SILENT | {*_SCHEDULE})
    try:
        for label, (name, kind) in _OPTIONS.items():
            read[label] = None
            if label in settings:
                options[name] = kind(settings[label])
        if "Size" in settings:
            options["width"], options["height"] = map(int, settings["Size"].split("x"))
        second = _set_second_pass(options, settings)
    except ValueError as error:
        raise InputError(f"the settings {last[:200]!r} cannot be read: {error}") from error
    options["rng"] = "cpu" if settings.get("RNG") == "CPU" else "cuda"
    if settings.get("Emphasis") == "None":
        options["prompt_syntax"] = "plain"
    if "Sampler" in settings:
        options["scheduler"] = _scheduler(settings)
        if options["scheduler"]["name"].endswith("_cfg_pp") and "guidance_scale" in options:
            options["guidance_scale"] /= PLUS_PLUS
    read |= dict.fromkeys(second)
    read |= dict.fromkeys(("RNG", "Emphasis", "Sampler", "Schedule type", "Discard penultimate sigma"))
    if "strength" in options and changes.get("image") is None:
        del options["strength"]  # of a picture that the text does not name, or of a second pass
        read.pop("Denoising strength")
    options.update({name: _without_loras(options[name]) for name in ("prompt", "negative_prompt") if name in options})
    if unread := [label for label in settings if label not in read]:
        logger.warning("without effect here: %s", ", ".join(unread)[:500])
    return {**options, **changes}, settings.get("Model", "")[:200], settings.get("Model hash", "")[:64]


def _set_second_pass(options: dict[str, Any], settings: Mapping[str, str]) -> tuple[str, ...]:
    """The options of a second pass; returns the labels that were read, none where it cannot be drawn here."""
    upscaler = UPSCALERS.get(settings.get("Hires upscaler", "Latent"))
    if "Hires upscale" not in settings or upscaler is None:
        return ()
    options["hires_scale"], options["hires_upscaler"] = float(settings["Hires upscale"]), upscaler
    if "strength" in options:
        options["hires_strength"] = options.pop("strength")
    # Web UIs make all of them, whatever the strength.
    steps = settings.get("Hires steps") or settings.get("Steps")
    if steps is not None:
        options["hires_steps"] = int(steps)
    return ("Hires upscale", "Hires upscaler", "Hires steps", "Denoising strength")


# Antialiasing changes nothing where latents grow, and "None" leaves pictures to Lanczos.
UPSCALERS = {theirs: ours for ours, theirs in UPSCALERS_OF_WEB_UIS.items()} | {
    "Latent (antialiased)": "latent",
    "None": "lanczos",
}
_OPTIONS: Mapping[str, tuple[str, Any]] = {
    "Steps": ("num_inference_steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", lambda text: int(text) - 1),
    "Eta": ("eta", float),
    "Eta DDIM": ("eta", float),
    "ENSD": ("noise_seed_delta", int),
    "Denoising strength": ("strength", float),
}


def _settings(line: str) -> dict[str, str]:
    found = {}
    for label, value in _SETTING.findall(line):
        found[label.strip()] = value.strip().strip('"').replace('\\"', '"')
    return found


def _prompts(lines: list[str]) -> tuple[str, str]:
    """The prompt and the negative prompt, which may have several lines each."""
    marks = [i for i, line in enumerate(lines) if line.startswith("Negative prompt:")]
    if not marks:
        return "\n".join(lines).strip(), ""
    negative = [lines[marks[0]].removeprefix("Negative prompt:"), *lines[marks[0] + 1 :]]
    return "\n".join(lines[: marks[0]]).strip(), "\n".join(negative).strip()


def _scheduler(settings: Mapping[str, str]) -> dict[str, Any]:
    try:
        scheduler = from_web_ui(settings["Sampler"], settings.get("Schedule type"))
        for label, key in _SCHEDULE.items():
            if label in settings:
                scheduler[key] = float(settings[label])
    except (SchedulerError, ValueError) as error:
        raise InputError(f"its sampler cannot be used: {error}") from error
    if settings.get("Discard penultimate sigma") == "True":
        scheduler["discard_next_to_last"] = True
    return scheduler


def _without_loras(prompt: str) -> str:
    for found in _LORA.findall(prompt):
        logger.warning("%s in the prompt is a file of the web UI: pass it with --lora FILE:WEIGHT", found[:100])
    return _LORA.sub("", prompt).strip()
