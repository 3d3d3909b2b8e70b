"""The tables of the web UI's fields and settings: what is read, what is ignored and why, what is refused and why.

Data, and the JSON schema and checks that are made from it. Fields that are options of ours by another name, and every
other option, come from the runtime's table of options.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import unknown
from latentrt.runtime.limits import MAX_CHARACTERS, MAX_IMAGES, MAX_SIDE, MAX_STEPS
from latentrt.runtime.request import kinds
from latentrt.runtime.request.kinds import Kind
from latentrt.serve.http.bodies import ALIASES, call_properties
from latentrt.serve.http.errors import ApiError

MAX_PIXELS_OF_EDGES = 512  # of blur and padding


def _text(most: int) -> Kind:
    def check(name: str, value: Any, _: Manifest) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise kinds.refuse(name, value, f"a text of at most {most} characters")
        return value

    return Kind(check, {"type": "string", "maxLength": most})


def _any_text() -> Kind:
    def check(name: str, value: Any, _: Manifest) -> str:
        if not isinstance(value, str):
            raise kinds.refuse(name, value, "a text")
        return value

    return Kind(check, {"type": "string"})


def _mapping() -> Kind:
    def check(name: str, value: Any, _: Manifest) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise kinds.refuse(name, value, "an object, name -> value")
        return value

    return Kind(check, {"type": "object"})


def _pictures() -> Kind:
    def check(name: str, value: Any, _: Manifest) -> list[str]:
        if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):
            raise kinds.refuse(name, "…", "a list of one picture, base64 or a data URL")
        return value

    return Kind(check, {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1})


@dataclass(frozen=True, slots=True)
class Field:
    """A field or a setting that is read. `option`: of a setting that is a field of our calls by another name."""

    text: str
    kind: Kind
    option: str = ""


_SEED = kinds.integer(-(2**63), 2**63 - 1)
_COUNT = kinds.integer(1, MAX_IMAGES)
FIELDS: Mapping[str, Field] = {
    "prompt": Field("what to draw; <lora:NAME:WEIGHT> applies a LoRA", _any_text()),
    "negative_prompt": Field("what to move away from", _any_text()),
    "seed": Field("of the first picture, the others count up from it; below 0: random", _SEED),
    "sampler_name": Field('such as "DPM++ 2M", "DPM++ 2M Karras" or "dpmpp_2m"', _text(100)),
    "sampler_index": Field("an older name of sampler_name, which counts where both are given", _text(100)),
    "scheduler": Field("schedule type: a name or label of /sdapi/v1/schedulers", _text(100)),
    "batch_size": Field("pictures", _COUNT),
    "n_iter": Field("multiplies batch_size; all are drawn at once", _COUNT),
    "cfg_scale": Field("strength of the prompt", kinds.number(0, 1000)),
    "clip_skip": Field("last layer of the text encoder that is used, counted from its end: 1 is all", kinds.layers()),
    **{
        name: Field("of samplers with churn", kinds.number(0, 1e6))
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise")
    },
    "override_settings": Field("settings of this call alone", _mapping()),
    "alwayson_scripts": Field("of the extension ControlNet alone: controlnet, with args", _mapping()),
    "refiner_checkpoint": Field("the model's refiner, by name or title; empty leaves it out", _text(200)),
    "refiner_switch_at": Field("share of the denoising after which the refiner goes on", kinds.number(0, 1)),
    "force_task_id": Field("a name for progress, interrupt and skip", _text(128)),
    "send_images": Field("false: only the settings are answered", kinds.boolean()),
}
PICTURE_FIELDS: Mapping[str, Field] = {
    "init_images": Field("the picture to begin from", _pictures()),
    "mask": Field("base64 of a mask: light where it is drawn anew", _any_text()),
    "denoising_strength": Field("how much is drawn anew", kinds.number(0, 1)),
    "resize_mode": Field("of a picture of another shape: 0 stretches, 1 crops, 2 adds edges", kinds.integer(0, 2)),
    "inpainting_mask_invert": Field("1: the mask is dark where it is drawn anew", kinds.integer(0, 1)),
    "inpainting_fill": Field(
        "what the masked part begins from: 0 the colours around it, 1 the picture; without effect at "
        "denoising_strength 1",
        kinds.integer(0, 3),
    ),
    "inpaint_full_res": Field("the masked part alone is drawn, at the full size, and put back", kinds.boolean()),
    "inpaint_full_res_padding": Field(
        "pixels around the masked part that are drawn along", kinds.integer(0, MAX_PIXELS_OF_EDGES)
    ),
    **{
        name: Field("of the edges where the masked part is put back", kinds.integer(0, MAX_PIXELS_OF_EDGES))
        for name in ("mask_blur", "mask_blur_x", "mask_blur_y")
    },
    "include_init_images": Field("whether the answer repeats the given pictures", kinds.boolean()),
}

HIRES_FIELDS: Mapping[str, Field] = {
    "enable_hr": Field("draw a second time, enlarged; the larger size must be one of the model's", kinds.boolean()),
    "hr_scale": Field("how many times as large", kinds.number(1, 8)),
    "hr_resize_x": Field("the larger width, instead of hr_scale; 0: none", kinds.integer(0, MAX_SIDE)),
    "hr_resize_y": Field("the larger height", kinds.integer(0, MAX_SIDE)),
    "hr_upscaler": Field("a name of /sdapi/v1/upscalers or /sdapi/v1/latent-upscale-modes", _text(100)),
    "hr_second_pass_steps": Field("steps of the second pass; 0: as many as of the first", kinds.integer(0, MAX_STEPS)),
    "denoising_strength": Field("how much the second pass draws anew", kinds.number(0, 1, above=True)),
    **{
        name: Field("of the second pass; expected empty, or as of the first", _text(MAX_CHARACTERS))
        for name in ("hr_sampler_name", "hr_scheduler", "hr_checkpoint_name", "hr_prompt", "hr_negative_prompt")
    },
    "hr_cfg": Field("of the second pass; expected 0, or as of the first", kinds.number(0, 1000)),
    **{
        name: Field("expected 0: the first pass has the size width x height", kinds.integer(0, MAX_SIDE))
        for name in ("firstphase_width", "firstphase_height")
    },
}
_SECOND_PASS = "of the second pass, which enable_hr asks for"
_FILES = "the server keeps no pictures"
IGNORED: Mapping[str, str] = {
    **dict.fromkeys(("save_images", "do_not_save_samples", "do_not_save_grid"), _FILES),
    **dict.fromkeys(
        (
            *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
            *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules"),
            *("hr_cfg", "firstphase_width", "firstphase_height", "denoising_strength"),
        ),
        _SECOND_PASS,
    ),
    "subseed": "of variations, which subseed_strength asks for",
    "script_args": "of a script, which script_name asks for",
    "image_cfg_scale": "of models that edit by instruction, which are not served",
    "override_settings_restore_afterwards": "settings of a call never outlive it",
    "comments": "for the web UI's own page",
    "mask_round": "masks are always binary in latents",
    "url": "SillyTavern's own",
    "auth": "SillyTavern's own; who asks is in the header",
}
_OF_THE_WEB_UI = "that is a part of the web UI which is not here"
# Name -> why it is refused, and values besides "nothing" that ask for nothing.
REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "enable_hr": ("a second pass is drawn from a text: use txt2img", ()),
    "restore_faces": (_OF_THE_WEB_UI, ()),
    "tiling": ("seamless pictures are not drawn", ()),
    "styles": ("styles are not kept here: write them into the prompt", ()),
    "subseed_strength": ("variations of a seed are not drawn: choose another seed", ()),
    "seed_resize_from_h": ("noise of another size is not drawn", (-1,)),
    "seed_resize_from_w": ("noise of another size is not drawn", (-1,)),
    "script_name": (_OF_THE_WEB_UI, ("None",)),
    "s_min_uncond": ("guidance is computed in all calls, or see guidance_start and guidance_end", ()),
    "disable_extra_networks": ("take LoRAs out of the prompt", ()),
    "firstpass_image": ("there is no second pass: use img2img", ()),
    "infotext": ("pass its settings as fields", ()),
    "initial_noise_multiplier": ("noise has its own strength", (1,)),
    "latent_mask": ("pass mask", ()),
}

SETTINGS: Mapping[str, Field] = {
    "sd_model_checkpoint": Field("title or name of a model", _text(200)),
    "CLIP_stop_at_last_layers": FIELDS["clip_skip"],
    "eta_noise_seed_delta": Field("ENSD", kinds.integer(-(2**32), 2**32), "noise_seed_delta"),
    "randn_source": Field("whose noise a seed gives", kinds.choice("GPU", "NV", "CPU")),
    "emphasis": Field("whether brackets in prompts are weights", kinds.choice("Original", "None")),
    "samples_format": Field("of the pictures", kinds.choice("png", "jpg", "jpeg", "webp")),
    "jpeg_quality": Field("of JPEG and WebP", kinds.integer(0, 100), "output_compression"),
    "enable_pnginfo": Field("whether a PNG holds the text that it was drawn from", kinds.boolean()),
    "live_previews_enable": Field("whether progress has unfinished pictures", kinds.boolean()),
}
# What `/sdapi/v1/options` shows besides the model, and calls are drawn with.
DEFAULT_SETTINGS: Mapping[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "randn_source": "GPU",
    "emphasis": "Original",
    "samples_format": "png",
    "jpeg_quality": 90,
    "enable_pnginfo": True,
    "live_previews_enable": True,
    "sd_vae": "Automatic",
}
SETTINGS_IGNORED: Mapping[str, str] = {
    "sd_checkpoint_hash": "of sd_model_checkpoint, which says the same",
    **dict.fromkeys(("samples_save", "grid_save", "return_grid", "save_to_dirs", "save_images_add_number"), _FILES),
    **dict.fromkeys(("do_not_show_images", "show_progress_every_n_steps"), "of the web UI's own page"),
    **dict.fromkeys(("face_restoration_model", "code_former_weight"), "of restore_faces, which is not served"),
    **dict.fromkeys(("upcast_attn", "sd_checkpoint_cache"), "of how the web UI computes and loads models"),
    "filter_nsfw": "the operator's filter decides",
}
SETTINGS_REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "sd_vae": ("the VAE is in the model", ("Automatic", "None")),
    "sd_unet": ("the UNet is in the model", ("Automatic", "None")),
    "forge_additional_modules": ("models are whole", ()),
    "img2img_color_correction": ("colours stay as they are drawn", ()),
    "img2img_fix_steps": ("denoising_strength leaves out steps", ()),
    "sd_lora": ("name LoRAs in the prompt", ("None",)),
    "sd_hypernetwork": ("there are no hypernetworks", ("None",)),
    "eta_ancestral": ("pass eta", (1,)),
    "eta_ddim": ("pass eta", ()),
}
# Ours that would say the same as theirs, and pictures, which have fields of their own here.
_REPLACED = frozenset({"image", "mask_image", "scheduler", "clip_skip", "control_image"})


@cache
def properties(pictures: bool) -> dict[str, Any]:
    """JSON schema of a body's fields. `pictures`: of img2img."""
    ours = call_properties()
    own = {**FIELDS, **(PICTURE_FIELDS if pictures else HIRES_FIELDS)}
    left = {name: schema for name, schema in ours.items() if ALIASES.get(name, name) not in _REPLACED}
    ignored = {name: {"description": f"ignored: {why}"} for name, why in IGNORED.items()}
    refused = {name: {"description": f"expected empty: {why}"} for name, (why, _) in REFUSED.items()}
    read = {name: {"description": row.text, **row.kind.schema} for name, row in own.items()}
    read["override_settings"]["properties"] = {
        name: {"description": row.text, **row.kind.schema} for name, row in SETTINGS.items()
    }
    return {**left, **ignored, **refused, **read}


def body_schema(pictures: bool) -> dict[str, Any]:
    """JSON schema of the body of txt2img, or of img2img."""
    required = ["init_images"] if pictures else []
    return {
        "type": "object",
        "properties": properties(pictures),
        "required": required,
        "additionalProperties": False,
    }


def read_fields(given: Mapping[str, Any], manifest: Manifest, *, pictures: bool) -> dict[str, Any]:
    """The fields of a body that say something, checked. Raises `InputError`, `ApiError`."""
    second = not pictures and not asks_for_nothing(given.get("enable_hr"))
    own = {**FIELDS, **(PICTURE_FIELDS if pictures else HIRES_FIELDS if second else {})}
    known = properties(pictures)
    for name in given:
        if name not in known:
            raise ApiError(400, unknown("field", name, sorted(known)), "unknown_parameter", param=name[:80])
    refused = {name: row for name, row in REFUSED.items() if name not in own}
    _refuse("", given, refused)
    kept = {name: value for name, value in given.items() if value is not None and name not in refused}
    kept = {name: value for name, value in kept.items() if name in own or name not in IGNORED}
    return {
        name: own[name].kind.check(name, value, manifest) if name in own and name != "clip_skip" else value
        for name, value in kept.items()
    }


def read_settings(given: Mapping[str, Any], manifest: Manifest, *, where: str) -> dict[str, Any]:
    """The settings that say something, checked. Raises `InputError`, `ApiError`. `where`: before names in errors."""
    for name in given:
        if name not in SETTINGS and name not in SETTINGS_IGNORED and name not in SETTINGS_REFUSED:
            known = [*SETTINGS, *SETTINGS_IGNORED, *SETTINGS_REFUSED]
            raise ApiError(400, where + unknown("setting", name, known), "unknown_parameter", param=name[:80])
    _refuse(where, given, SETTINGS_REFUSED)
    return {
        name: row.kind.check(name, given[name], manifest) if name != "CLIP_stop_at_last_layers" else given[name]
        for name, row in SETTINGS.items()
        if given.get(name) is not None
    }


def _refuse(where: str, given: Mapping[str, Any], table: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    for name, (why, neutral) in table.items():
        value = given.get(name)
        if asks_for_nothing(value) or any(value == other and not isinstance(value, bool) for other in neutral):
            continue
        raise ApiError(400, f"{where}{name} is not served: {why}", "unsupported_value", param=name)


def asks_for_nothing(value: Any, depth: int = 3) -> bool:
    """Whether a value is empty or off, or, as of scripts, an object of such arguments. `depth`: of objects in it."""
    if isinstance(value, dict | list) and not depth:
        return not value
    if isinstance(value, dict):
        return all(asks_for_nothing(part, depth - 1) for part in value.values())
    if isinstance(value, list):
        return not value or value[0] is False or all(asks_for_nothing(part, depth - 1) for part in value)
    return value in (None, False, "", 0)
