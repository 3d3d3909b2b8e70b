"""A body of txt2img or img2img as fields of a call of ours. Knows no routes."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError, shown
from latentrt.runtime.request import OPTIONS, kinds
from latentrt.serve.http.bodies import ALIASES
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.given_files import bytes_of_base64, picture
from latentrt.serve.served_model import ServedModel

from .control import control_of
from .control_maps import Frame
from .fields import FIELDS, HIRES_FIELDS, PICTURE_FIELDS, SETTINGS, read_fields, read_settings
from .names import guidance_of, scheduler_of, takes_eta
from .pictures import Inpainting, Prepared, PutBack, prepared, prepared_with_mask
from .prompts import refuse_loras, without_loras
from .second_pass import hires_options

if TYPE_CHECKING:
    from PIL import Image

_CHURN = {"s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}  # and their values that ask for nothing
_TITLE = re.compile(r" \[[0-9a-f]{10}\]$")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a body asks for.

    Attributes:
        model: that draws.
        call: fields for `CallReader.job`.
        words: what the client calls options, by their names in the table.
        prompt: as it was given, with the names of LoRAs.
        pictures: to begin from: the picture and its mask.
        put_back: for a part of a picture that is drawn alone.
        task: the client's id for the call.
        previews: whether progress shows unfinished pictures.
        text: whether PNG files hold what they were drawn from.
        send_images: whether the answer has the pictures.
        parameters: what the answer repeats.
    """

    model: ServedModel
    call: dict[str, Any]
    words: Mapping[str, str]
    prompt: str
    pictures: "tuple[Image.Image, Image.Image | None] | None"
    put_back: PutBack | None
    task: str | None
    previews: bool
    text: bool
    send_images: bool
    parameters: dict[str, Any]


def model_name(given: str) -> str:
    """The name of a model from its title, which has the beginning of its hash."""
    return _TITLE.sub("", given)


def translated(
    body: Mapping[str, Any], find: Callable[[str | None], ServedModel], *, pixels: int, begins: bool = False
) -> Asked:
    """The fields of a body as those of a call. Raises `InputError`, `SchedulerError`, `ApiError`.

    Args:
        find: the model of a name; of None, the one that the client has chosen.
        pixels: that a given picture may have.
        begins: whether the body is that of img2img, which begins from a picture.
    """
    override = body.get("override_settings") or {}
    named = override.get("sd_model_checkpoint") if isinstance(override, dict) else None
    model = find(body.get("model") or (model_name(named) if isinstance(named, str) else None))
    manifest = model.bundle.manifest
    fields = read_fields(body, manifest, pictures=begins)
    settings = read_settings(fields.get("override_settings", {}), manifest, where="override_settings: ")
    parameters = _repeated(body, fields, settings, fields.get("include_init_images", False))
    read = FIELDS.keys() | PICTURE_FIELDS.keys() | HIRES_FIELDS.keys()
    own = {name: fields.pop(name) for name in [*fields] if name in read}
    call = {**fields, "model": model.name, "prompt_syntax": fields.get("prompt_syntax", "web-ui")}
    call.setdefault("long_prompt", "chunk")
    words: dict[str, str] = {}
    _set_texts(call, own)
    _set_numbers(call, words, own)
    _set_scheduler(call, words, own)
    _set_settings(call, words, own, settings, model)
    _set_refiner(call, words, own, model)
    if own.get("enable_hr"):
        _set_hires(call, words, own, model)
    given = _prepared(call, words, own, model, pixels) if begins else None
    if own.get("alwayson_scripts"):
        _set_control(call, own, model, None if given is None else given.put_back, pixels)
    return Asked(
        model,
        call,
        words,
        own.get("prompt", ""),
        None if given is None else (given.image, given.mask),
        None if given is None else given.put_back,
        own.get("force_task_id"),
        settings.get("live_previews_enable", True),
        settings.get("enable_pnginfo", True),
        own.get("send_images", True),
        parameters,
    )


def _set_texts(call: dict[str, Any], own: Mapping[str, Any]) -> None:
    refuse_loras(own.get("negative_prompt", ""))
    call["prompt"], loras = without_loras(own.get("prompt", ""))
    if own.get("negative_prompt"):
        call["negative_prompt"] = own["negative_prompt"]
    if loras:
        if call.get("loras"):
            raise InputError("loras: the prompt names LoRAs, too: use one of them")
        call["loras"] = loras


def _set(call: dict[str, Any], words: dict[str, str], option: str, name: str, value: Any) -> None:
    """An option by the client's name for it; it may stand there by ours, too, with the same value."""
    if call.setdefault(option, value) != value:
        raise InputError(f"{name} and {option} differ: pass one of them")
    words[option] = name


def _set_numbers(call: dict[str, Any], words: dict[str, str], own: Mapping[str, Any]) -> None:
    if own.get("seed", -1) >= 0:
        call["seed"] = own["seed"]
    if "batch_size" in own or "n_iter" in own:
        _set(call, words, "num_images_per_prompt", "batch_size", own.get("batch_size", 1) * own.get("n_iter", 1))


def _set_scheduler(call: dict[str, Any], words: dict[str, str], own: Mapping[str, Any]) -> None:
    sampler, kind = own.get("sampler_name") or own.get("sampler_index"), own.get("scheduler")
    churn = {name: own[name] for name, nothing in _CHURN.items() if own.get(name, nothing) != nothing}
    scheduler = None
    if sampler:
        scheduler = scheduler_of(sampler, kind, churn)
        _set(call, words, "scheduler", "sampler_name", scheduler)
        if "eta" in call and not takes_eta(scheduler):
            del call["eta"]
    elif churn or (kind and kind.strip().lower() != "automatic"):
        name = "scheduler" if kind else min(churn)
        raise ApiError(400, f"{name} is of a sampler: pass sampler_name, too", "invalid_request", param=name)
    if "cfg_scale" in own:
        _set(call, words, "guidance_scale", "cfg_scale", guidance_of(own["cfg_scale"], scheduler))


def _set_settings(
    call: dict[str, Any],
    words: dict[str, str],
    own: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: ServedModel,
) -> None:
    layers = min(encoder.hidden_states for encoder in model.bundle.manifest.model.text_encoders)
    for name, given in (("clip_skip", own), ("CLIP_stop_at_last_layers", settings)):
        if name in given:
            kept = kinds.integer(1, layers).check(name, given[name], model.bundle.manifest)
            _set(call, words, "clip_skip", name, kept - 1)
    call.setdefault("rng", "cpu" if settings.get("randn_source") == "CPU" else "cuda")
    if settings.get("emphasis") == "None":
        call["prompt_syntax"] = "plain"
    if "samples_format" in settings:
        kind = settings["samples_format"]
        _set(call, words, "output_format", "samples_format", "jpeg" if kind == "jpg" else kind)
    for name, row in SETTINGS.items():
        if row.option and name in settings:
            _set(call, words, row.option, name, settings[name])


def _set_refiner(call: dict[str, Any], words: dict[str, str], own: Mapping[str, Any], model: ServedModel) -> None:
    """As in the web UI, there is no refiner unless a call names it; ours by its own name counts, too."""
    given = own.get("refiner_checkpoint") or "None"
    if given == "None":
        if model.refiner is not None:
            call.setdefault("refiner_start", 1)
        return
    refiner = None if model.refiner is None else model.refiner.bundle.manifest.checkpoint.name
    if model_name(given) != refiner:
        which = "has no refiner" if refiner is None else f"has the refiner {refiner}"
        text = f"refiner_checkpoint={shown(given)}: {model.name} {which} at this server; leave it out, or name that one"
        raise ApiError(400, text, "unsupported_value", param="refiner_checkpoint")
    if "refiner_switch_at" in own:
        _set(call, words, "refiner_start", "refiner_switch_at", own["refiner_switch_at"])


def _set_hires(call: dict[str, Any], words: dict[str, str], own: Mapping[str, Any], model: ServedModel) -> None:
    """The second pass, as large as it is asked for; limits are checked with the call."""
    steps = model.bundle.manifest.defaults.num_inference_steps
    steps, width, height = _given_or(call, model, {"num_inference_steps": steps, **_sides(model.default_size)})
    options = hires_options(own, steps, (width, height))
    theirs = ("hr_scale", "denoising_strength", "hr_second_pass_steps", "hr_upscaler")
    for (name, value), word in zip(options.items(), theirs, strict=True):
        _set(call, words, name, word, value)


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


def _given_or(call: Mapping[str, Any], model: ServedModel, defaults: Mapping[str, int]) -> list[int]:
    """Options of a call by any of their names, checked; those that are not given at these defaults."""
    given = {ALIASES.get(name, name): value for name, value in call.items()}
    manifest = model.bundle.manifest
    return [
        OPTIONS[name].kind.check(name, given[name], manifest) if name in given else default
        for name, default in defaults.items()
    ]


def _set_control(
    call: dict[str, Any], own: Mapping[str, Any], model: ServedModel, part: PutBack | None, pixels: int
) -> None:
    """Maps of the shape that is drawn: known by now, also where it is that of a given picture."""
    width, height = _given_or(call, model, _sides(model.default_size))
    frame = Frame((width, height), pixels)
    if part is not None:
        frame = Frame((width, height), pixels, part.whole, part.box)
    first = next(iter(own.get("init_images") or ()), None)
    call |= control_of(own["alwayson_scripts"], model, frame, first, own.get("resize_mode", 0))


def _prepared(
    call: dict[str, Any], words: dict[str, str], own: Mapping[str, Any], model: ServedModel, pixels: int
) -> Prepared:
    """The given picture and mask; sets the size that is drawn."""
    if "init_images" not in own:
        raise ApiError(400, "init_images: expected a list of one picture", "invalid_request", param="init_images")
    if "denoising_strength" in own:
        _set(call, words, "strength", "denoising_strength", own["denoising_strength"])
    file = bytes_of_base64("init_images", own["init_images"][0])
    image, fit = picture("init_images", file, pixels=pixels), own.get("resize_mode", 0)
    size = _size(call, model, image.size)
    if not own.get("mask"):
        return prepared(image, size, fit)
    words["mask_image"] = "mask"
    mask_file = bytes_of_base64("mask", own["mask"])

    def read() -> "tuple[Image.Image, Image.Image]":
        return picture("init_images", file, pixels=pixels), picture("mask", mask_file, pixels=pixels)

    mask = picture("mask", mask_file, pixels=pixels)
    return prepared_with_mask(image, mask, size, fit, _inpainting(own), read)


def _size(call: dict[str, Any], model: ServedModel, of_picture: tuple[int, int]) -> tuple[int, int]:
    """Width and height that are drawn; those that are not given are of the model's size that is most like a picture."""
    width, height = _given_or(call, model, _sides(model.nearest_size(of_picture)))
    size = width, height
    if size not in model.sizes:
        raise InputError(model.wrong_size(size))
    call |= _sides(size)
    return size


def _inpainting(own: Mapping[str, Any]) -> Inpainting:
    fill, all_anew = own.get("inpainting_fill", 0), own.get("denoising_strength") == 1
    if fill > 1 and not all_anew:
        text = f"inpainting_fill={fill}: a part cannot begin from noise: expected 0 or 1, or denoising_strength 1"
        raise ApiError(400, text, "unsupported_value", param="inpainting_fill")
    blur = own.get("mask_blur", 4)
    return Inpainting(
        inverted=own.get("inpainting_mask_invert", 0) == 1,
        fill=fill == 0 and not all_anew,
        part=own.get("inpaint_full_res", True),
        padding=own.get("inpaint_full_res_padding", 0),
        blur=(own.get("mask_blur_x", blur), own.get("mask_blur_y", blur)),
    )


def _repeated(
    body: Mapping[str, Any], read: Collection[str], settings: Mapping[str, Any], with_pictures: bool
) -> dict[str, Any]:
    """What was read of a body, as answers repeat it."""
    kept = {name: body[name] for name in body if name in read}
    if "override_settings" in kept:
        kept["override_settings"] = dict(settings)
    return kept if with_pictures else {name: None if name in ("init_images", "mask") else kept[name] for name in kept}
