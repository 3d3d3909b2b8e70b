"""The table of options: one row for each option of a call.

Flags, keys of jobs, checks, defaults, the text in PNG files, the JSON schema of requests and `docs/options.md` are made
from these rows. Adding an option takes a row here and the code that uses it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, cast

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.latents import UPSCALERS, Picture
from latentrt.runtime.limits import MAX_IMAGES, MAX_STEPS
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.text import SYNTAXES

from . import kinds
from .kinds import Kind
from .named import named


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        text: what it does, for --help, the docs and the JSON schema.
        kind: which values it takes.
        default: a value, or a function of the manifest. None where it depends on other options, or is off.
        flag: on the command line; "" is --its-name, None is none.
        json: whether jobs, request bodies and a PNG's text may hold it.
        web_ui: its label in the text that web UIs read, and its value there; None leaves it out.
        native: whether the library for C and C++ has it.
    """

    text: str
    kind: Kind
    default: Any = None
    flag: str | None = ""
    json: bool = True
    web_ui: tuple[str, Callable[[Any], str | None]] | None = None
    native: bool = True


def _of_bundle(name: str) -> Callable[[Manifest], Any]:
    return lambda manifest: getattr(manifest.defaults, name)


def _g(value: float) -> str:
    return f"{value:g}"


# Our names -> those of web UIs, whose further names for the same are in `web_ui_text.py`.
UPSCALERS_OF_WEB_UIS: Mapping[str, str] = {
    "latent": "Latent",
    "latent-bicubic": "Latent (bicubic)",
    "latent-nearest": "Latent (nearest)",
    "latent-nearest-exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
_OF_ORIGIN = "of the picture's origin, for SDXL"


class CallOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.__call__` and `Pipeline.stream`, named as in diffusers; None is the default."""

    num_inference_steps: Annotated[
        int | None,
        Option(
            "number of inference steps. Default: the bundle's",
            kinds.integer(1, MAX_STEPS, limit="MAX_STEPS"),
            flag="--steps",
            web_ui=("Steps", str),
        ),
    ]
    scheduler: Annotated[
        str | Mapping[str, Any] | Plan | None,
        Option(
            "such as euler_a, dpm++_2m_karras or euler:timestep_spacing=trailing; in Python and jobs also "
            '{"name": "euler", …} with options, a diffusers config, or a compiled plan. Default: the bundle\'s',
            kinds.scheduler(),
        ),
    ]
    guidance_scale: Annotated[
        float | None,
        Option(
            "strength of the prompt; at 1 and below the negative prompt is not computed",
            kinds.number(0, 1000),
            _of_bundle("guidance_scale"),
            web_ui=("CFG scale", _g),
        ),
    ]
    seed: Annotated[
        int | Sequence[int] | None,
        Option(
            "seed of the first image, the others count up from it; or a list with one for each image. Default: random",
            kinds.seeds(),
            web_ui=("Seed", str),
        ),
    ]
    rng: Annotated[
        str | None,
        Option(
            "whose noise a seed gives: that of PyTorch's generator on cpu or cuda",
            kinds.choice("cpu", "cuda"),
            "cpu",
            web_ui=("RNG", {"cpu": "CPU", "cuda": "NV"}.get),
        ),
    ]
    noise_seed_delta: Annotated[
        int | None,
        Option(
            "added to the seed for the noise between calls (ENSD in web UIs); 0: it continues the seed's",
            kinds.integer(-(2**32), 2**32),
            0,
            web_ui=("ENSD", lambda value: str(value) if value else None),
        ),
    ]
    negative_prompt: Annotated[
        str | Sequence[str] | None,
        Option(
            "what to move away from, one text or one for each prompt. Default: empty, or zeros for models that were "
            "trained so",
            kinds.text(),
        ),
    ]
    prompt_2: Annotated[
        str | Sequence[str] | None,
        Option("text for the second text encoder (SDXL). Default: the prompt", kinds.text()),
    ]
    negative_prompt_2: Annotated[
        str | Sequence[str] | None,
        Option("negative text for the second text encoder. Default: the negative prompt", kinds.text()),
    ]
    prompt_syntax: Annotated[
        str | None,
        Option(
            r"plain: brackets are text; web-ui: (word:1.2), ((word)), [word], \( and BREAK",
            kinds.choice(*SYNTAXES),
            "plain",
            # Web UIs call it so: brackets are weights, or they are text.
            web_ui=("Emphasis", {"web-ui": "Original", "plain": "None"}.get),
        ),
    ]
    long_prompt: Annotated[
        str | None,
        Option(
            "truncate: use the first 75 tokens, with a warning; chunk: use all, 75 at a time. Shorter prompts of the "
            "call are then padded with empty chunks",
            kinds.choice("truncate", "chunk"),
            "truncate",
        ),
    ]
    num_images_per_prompt: Annotated[
        int | None,
        Option(
            "images of each prompt, drawn in one batch",
            kinds.integer(1, MAX_IMAGES, limit="MAX_IMAGES"),
            1,
            "--num-images",
        ),
    ]
    height: Annotated[
        int | None,
        Option(
            "in pixels, a multiple of the VAE's factor (8). Default: the image's, else the bundle's",
            kinds.side(),
        ),
    ]
    width: Annotated[int | None, Option("like height", kinds.side())]
    eta: Annotated[
        float | None,
        Option(
            "noise of stochastic samplers, 0 to 1. Default: 0 for ddim and tcd, 1 for others",
            kinds.number(0, 1),
            web_ui=("Eta", _g),
        ),
    ]
    timesteps: Annotated[
        Sequence[float] | None,
        Option("custom timesteps, falling, where the scheduler takes them", kinds.numbers()),
    ]
    sigmas: Annotated[
        Sequence[float] | None,
        Option(
            "custom sigmas, falling, where the scheduler takes them; the last is where the steps end", kinds.numbers()
        ),
    ]
    clip_skip: Annotated[
        int | None,
        Option(
            "final layers of the text encoder to skip, for the prompt but not for the negative prompt",
            kinds.layers(),
            0,
            # Web UIs count from 1 and leave the usual value out.
            web_ui=("Clip skip", lambda value: str(value + 1) if value else None),
        ),
    ]
    guidance_rescale: Annotated[
        float | None,
        Option("0 to 1, pulls the guided contrast back to the unguided (arXiv 2305.08891)", kinds.number(0, 1), 0.0),
    ]
    guidance_start: Annotated[
        float | None,
        Option(
            "share of the calls after which guidance begins, 0 to below 1; before, the prompt alone counts "
            "(arXiv 2404.07724)",
            kinds.number(0, 0.999),
            0.0,
        ),
    ]
    guidance_end: Annotated[
        float | None,
        Option("share of the calls after which guidance ends, above 0 up to 1", kinds.number(0, 1, above=True), 1.0),
    ]
    image: Annotated[
        Picture,
        Option(
            "picture to start from, one for all prompts or one for each: a file; in Python also a PIL image, an array "
            "(H, W, 3) of uint8 or of floats from 0 to 1, or latents (images, C, h, w)",
            kinds.picture(),
        ),
    ]
    mask_image: Annotated[
        Picture,
        Option(
            "mask of the picture: light where it is drawn anew, dark where it is kept", kinds.picture(), flag="--mask"
        ),
    ]
    strength: Annotated[
        float | None,
        Option(
            "how much of the picture is drawn anew, above 0 up to 1",
            kinds.number(0, 1, above=True),
            web_ui=("Denoising strength", _g),
        ),
    ]
    control_image: Annotated[
        Picture | Mapping[str, Picture],
        Option(
            "finished map for a ControlNet, such as edges or a pose, one for all prompts or one for each; with several "
            "nets {name: picture}. Its size is the default size",
            named(kinds.picture()),
            native=False,
        ),
    ]
    controlnet_conditioning_scale: Annotated[
        float | Mapping[str, float] | None,
        Option("strength of ControlNets. Default: 1", named(kinds.number(-10, 10)), native=False),
    ]
    control_guidance_start: Annotated[
        float | Mapping[str, float] | None,
        Option(
            "share of the calls after which ControlNets begin, 0 to below 1. Default: 0",
            named(kinds.number(0, 0.999)),
            native=False,
        ),
    ]
    control_guidance_end: Annotated[
        float | Mapping[str, float] | None,
        Option(
            "share of the calls after which ControlNets end, above 0 up to 1. Default: 1",
            named(kinds.number(0, 1, above=True)),
            native=False,
        ),
    ]
    control_mode: Annotated[
        int | Mapping[str, int] | None,
        Option(
            "kind of the picture, for a ControlNet-Union: its number, from 0", named(kinds.integer(0, 63)), native=False
        ),
    ]
    guess_mode: Annotated[
        bool | None,
        Option(
            "let ControlNets recognize the picture by themselves, without the prompt. Default: off",
            kinds.boolean(),
            native=False,
        ),
    ]
    ip_adapter_image: Annotated[
        Picture,
        Option(
            "picture for an IP-Adapter, one for all prompts or one for each; its image encoder must be loaded",
            kinds.picture(),
            native=False,
        ),
    ]
    ip_adapter_image_embeds: Annotated[
        Float32 | None,
        Option(
            "embeddings of the picture instead, (2, E) or (2, patches, E): negative and positive",
            kinds.array(),
            flag=None,
            json=False,
            native=False,
        ),
    ]
    ip_adapter_scale: Annotated[
        float | Sequence[float] | None,
        Option(
            "strength of the IP-Adapter, or one for each layer of cross-attention. Default: 1",
            kinds.strengths(),
            native=False,
        ),
    ]
    t2i_image: Annotated[
        Picture,
        Option("finished map for a T2I-Adapter, one for all prompts or one for each", kinds.picture(), native=False),
    ]
    adapter_conditioning_scale: Annotated[
        float | None, Option("strength of the T2I-Adapter. Default: 1", kinds.number(-10, 10), native=False)
    ]
    adapter_conditioning_factor: Annotated[
        float | None,
        Option(
            "share of the calls in which the T2I-Adapter has a say, 0 to 1. Default: 1",
            kinds.number(0, 1),
            native=False,
        ),
    ]
    denoising_start: Annotated[
        float | None,
        Option(
            "share of the denoising that was done before, 0 to below 1: go on from the latents in image, which a call "
            "with denoising_end left",
            kinds.number(0, 0.999),
        ),
    ]
    denoising_end: Annotated[
        float | None,
        Option(
            "stop where this share of the denoising is done, above 0 up to 1, and leave the rest to another call",
            kinds.number(0, 1, above=True),
        ),
    ]
    latents: Annotated[
        "Float32 | str | None",
        Option("unit normal noise (images, C, h, w) to start from instead of the seed's", kinds.latents()),
    ]
    original_size: Annotated[tuple[int, int] | None, Option(f"size {_OF_ORIGIN}", kinds.pair())]
    crops_coords_top_left: Annotated[
        tuple[int, int] | None, Option(f"top left corner {_OF_ORIGIN}", kinds.pair("top", "left"))
    ]
    target_size: Annotated[tuple[int, int] | None, Option("size that SDXL is told to draw", kinds.pair())]
    negative_original_size: Annotated[
        tuple[int, int] | None, Option("like original_size, for the negative prompt", kinds.pair())
    ]
    negative_crops_coords_top_left: Annotated[
        tuple[int, int] | None, Option("like crops_coords_top_left, for the negative prompt", kinds.pair("top", "left"))
    ]
    negative_target_size: Annotated[
        tuple[int, int] | None, Option("like target_size, for the negative prompt", kinds.pair())
    ]
    aesthetic_score: Annotated[
        float | None,
        Option(
            "how beautiful SDXL's refiner is told that the picture is, 1 to 10. Default: 6",
            kinds.number(0, 100),
            native=False,
        ),
    ]
    negative_aesthetic_score: Annotated[
        float | None,
        Option("like aesthetic_score, for the negative prompt. Default: 2.5", kinds.number(0, 100), native=False),
    ]
    refiner_start: Annotated[
        float | None,
        Option(
            "share of the denoising after which the refiner goes on, above 0 up to 1; 1 leaves it out. Default: 0.8 "
            "with a refiner (Pipeline.load(refiner=), --refiner)",
            kinds.number(0, 1, above=True),
            web_ui=("Refiner switch at", _g),
            native=False,
        ),
    ]
    hires_scale: Annotated[
        float | None,
        Option(
            "draw a second time, this many times as large, 1 to 8: the first pass is enlarged and drawn anew by "
            "hires_strength",
            kinds.number(1, 8),
            web_ui=("Hires upscale", _g),
            native=False,
        ),
    ]
    hires_strength: Annotated[
        float | None,
        Option(
            "strength of the second pass, above 0 up to 1. Default: the bundle's for pictures",
            kinds.number(0, 1, above=True),
            web_ui=("Denoising strength", _g),
            native=False,
        ),
    ]
    hires_steps: Annotated[
        int | None,
        Option(
            "steps that the second pass makes. Default: the share hires_strength of num_inference_steps",
            kinds.integer(1, MAX_STEPS, limit="MAX_STEPS"),
            web_ui=("Hires steps", str),
            native=False,
        ),
    ]
    hires_upscaler: Annotated[
        str | None,
        Option(
            "what enlarges: latents without decoding them (latent: bilinear), or the picture (lanczos, nearest). "
            "Default: latent",
            kinds.choice(*UPSCALERS),
            web_ui=("Hires upscaler", UPSCALERS_OF_WEB_UIS.get),
            native=False,
        ),
    ]
    vae_tiling: Annotated[
        bool | None,
        Option("decode and encode large pictures in tiles, which needs less memory", kinds.boolean(), False),
    ]
    prompt_embeds: Annotated[
        Float32 | None,
        Option("hidden states (prompts, S, D) float32 instead of a prompt", kinds.array(), flag=None, json=False),
    ]
    negative_prompt_embeds: Annotated[
        Float32 | None,
        Option("the same instead of a negative prompt", kinds.array(), flag=None, json=False),
    ]
    pooled_prompt_embeds: Annotated[
        Float32 | None,
        Option(
            "pooled embeddings (prompts, P) float32, beside prompt_embeds (SDXL)", kinds.array(), flag=None, json=False
        ),
    ]
    negative_pooled_prompt_embeds: Annotated[
        Float32 | None,
        Option("the same beside negative_prompt_embeds", kinds.array(), flag=None, json=False),
    ]
    output_type: Annotated[
        str | None,
        Option(
            "pil: PIL images; np: (images, H, W, 3) uint8; latent: pictures are not decoded",
            kinds.choice("pil", "np", "latent"),
            "pil",
            flag=None,
            json=False,
        ),
    ]


OPTIONS: Mapping[str, Option] = {
    name: option for name, hint in CallOptions.__annotations__.items() for option in hint.__metadata__
}


def checked(given: Mapping[str, Any], manifest: Manifest) -> CallOptions:
    """All options in their normal form, those that are not given at their defaults; raises `InputError`."""
    for name in given:
        if name not in OPTIONS:
            raise InputError(unknown("argument", name, OPTIONS))
    result: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if (value := given.get(name)) is not None:
            result[name] = checked_value(name, option.kind, value, manifest)
        else:
            result[name] = option.default(manifest) if callable(option.default) else option.default
    return cast(CallOptions, result)


def checked_value(name: str, kind: Kind, value: Any, manifest: Manifest) -> Any:
    """A value of a kind in its normal form; raises `InputError`, also where the value's own methods fail."""
    with kinds.reading(name, value):
        return kind.check(name, value, manifest)


def json_options() -> Iterable[str]:
    """Names of the options that JSON can hold."""
    return (name for name, option in OPTIONS.items() if option.json)


def request_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a call: a prompt and options."""
    properties: dict[str, Any] = {"prompt": {"description": "what to draw", **kinds.text().schema}}
    for name in json_options():
        option = OPTIONS[name]
        fixed = option.default is not None and not callable(option.default)
        default = {"default": option.default} if fixed else {}
        properties[name] = {"description": option.text, **option.kind.schema, **default}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "additionalProperties": False,
    }


def options_table() -> str:
    """The table of `docs/options.md`."""
    lines = ["| option | flag | what it does | default |", "|---|---|---|---|"]
    for name, option in OPTIONS.items():
        flag = "" if option.flag is None else f"`{option.flag or flag_of(name)}`"
        default = (
            "the bundle's" if callable(option.default) else "" if option.default is None else f"`{option.default}`"
        )
        text = option.text.replace("|", "\\|")
        lines.append(f"| `{name}` | {flag} | {text} | {default} |")
    return "\n".join(lines) + "\n"


def flag_of(name: str) -> str:
    """The flag of an option of this name, unless its row says another."""
    return f"--{name.replace('_', '-')}"
