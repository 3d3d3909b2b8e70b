"""What a T2I-Adapter and an IP-Adapter do in a call: which picture, how much, and in how many calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import ControlManifest
from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import clip_pictures, steering_pictures

from .extent import Extent


@dataclass(frozen=True, slots=True, eq=False)
class FeaturesUse:
    """A T2I-Adapter in a call.

    Attributes:
        hints: (pictures, H, W, channels) float32 in [0, 1].
        rows: (images,), the picture of each image.
        scale: factor of its features.
        calls: they are added in the first this many calls.
    """

    net: str
    given: Any
    hints: Float32
    rows: NDArray[np.int64]
    scale: float
    calls: int


@dataclass(frozen=True, slots=True, eq=False)
class ImagePromptUse:
    """An IP-Adapter in a call.

    Attributes:
        encoder: the image encoder's name; None where embeddings are given.
        pixels: (pictures, S, S, 3) float32 in [0, 1], for the encoder.
        embeds: (G, …) float32, [negative, positive] or the positive alone, instead of pixels.
        rows: (images,), the picture of each image.
        strength: (M, G, L) float32.
    """

    net: str
    given: Any
    encoder: str | None
    pixels: Float32 | None
    embeds: Float32 | None
    rows: NDArray[np.int64]
    strength: Float32


def features_of_call(
    values: Mapping[str, Any], controls: Mapping[str, ControlManifest], extent: Extent
) -> FeaturesUse | None:
    """The T2I-Adapter that steers a call; raises `InputError`."""
    given = values["t2i_image"]
    if given is None:
        _refuse_without("t2i_image", values, "adapter_conditioning_scale", "adapter_conditioning_factor")
        return None
    name = _only("t2i_image", "T2I-Adapter", "t2i-adapter", controls)
    graph = controls[name].graphs["adapter"]
    _check_size(controls[name], extent.size)
    spec = next(iter(graph.inputs))
    hints, rows = steering_pictures(
        "t2i_image", given, extent.size, int(spec.shape[3]), prompts=extent.prompts, per_prompt=extent.per_prompt
    )
    given_numbers = (values["adapter_conditioning_scale"], values["adapter_conditioning_factor"])
    scale, factor = (1.0 if value is None else value for value in given_numbers)
    return FeaturesUse(name, given, hints, rows, scale, int(extent.calls * factor))


def _check_size(manifest: ControlManifest, size: tuple[int, int]) -> None:
    """An adapter divides its picture into blocks of pixels; those for SDXL are larger than a latent pixel."""
    first = str(manifest.graphs["adapter"].outputs[0].shape[2])
    block = manifest.vae_scale_factor * int(first.partition("/")[2] or 1)
    if any(side % block for side in size):
        raise InputError(f"{size[1]}x{size[0]} pixels: the T2I-Adapter needs multiples of {block}")


def image_prompt_of_call(
    values: Mapping[str, Any], controls: Mapping[str, ControlManifest], extent: Extent
) -> ImagePromptUse | None:
    """The IP-Adapter that steers a call; raises `InputError`."""
    given, embeds = values["ip_adapter_image"], values["ip_adapter_image_embeds"]
    if given is None and embeds is None:
        _refuse_without("ip_adapter_image", values, "ip_adapter_scale")
        return None
    if given is not None and embeds is not None:
        raise InputError("ip_adapter_image and ip_adapter_image_embeds are the same picture: pass one of them")
    name = _only("ip_adapter_image", "IP-Adapter", "ip-adapter", controls)
    graph = controls[name].graphs["image_context"]
    strength = _strength(values["ip_adapter_scale"], len(graph.outputs) // 2, extent)
    if embeds is not None:
        checked = _embeds(embeds, graph.inputs[0].shape[1:], extent.groups)
        return ImagePromptUse(name, None, None, None, checked, np.zeros(extent.images, np.int64), strength)
    encoder = _only("ip_adapter_image", "image encoder", "image-encoder", controls)
    side = int(controls[encoder].graphs["image_encoder"].inputs[0].shape[1])
    pixels, rows = clip_pictures("ip_adapter_image", given, side, prompts=extent.prompts, per_prompt=extent.per_prompt)
    return ImagePromptUse(name, given, encoder, pixels, None, rows, strength)


def _only(option: str, what: str, kind: str, controls: Mapping[str, ControlManifest]) -> str:
    """The name of the only control bundle of a kind."""
    names = [name for name, control in controls.items() if control.kind == kind]
    if not names:
        raise InputError(f"{option} needs the {what}: load one with controls=")
    if len(names) > 1:
        raise InputError(f"{option}: {len(names)} of the kind {what} are loaded ({', '.join(names)}): load one")
    return names[0]


def _refuse_without(option: str, values: Mapping[str, Any], *others: str) -> None:
    """Options about a picture that is not there would be ignored without a word."""
    for other in others:
        if values[other] is not None:
            raise InputError(f"{other}={values[other]!r} is about {option}: pass it, or leave {other} out")


def _strength(scale: float | tuple[float, ...] | None, layers: int, extent: Extent) -> Float32:
    """(M, G, L), the same in all calls and groups."""
    if isinstance(scale, tuple) and len(scale) != layers:
        raise InputError(f"ip_adapter_scale has {len(scale)} numbers: expected one, or {layers}, one for each layer")
    of_layers = np.full(layers, 1.0 if scale is None else scale, np.float32)
    return np.ascontiguousarray(np.broadcast_to(of_layers, (extent.calls, extent.groups, layers)))


def _embeds(given: Float32, shape: tuple[int | str, ...], groups: int) -> Float32:
    """(G, …): a row for each guidance group; (2, 1, …), as diffusers has it, is the same."""
    array = given[:, 0] if given.ndim == len(shape) + 2 and given.shape[1] == 1 else given
    if array.shape[1:] != shape or len(array) not in (1, 2):
        text = ", ".join(map(str, shape))
        raise InputError(
            f"ip_adapter_image_embeds has the shape {given.shape}: expected (2, {text}), negative and positive"
        )
    if len(array) == 2:
        return array[2 - groups :]
    if groups == 2 and len(shape) > 1:
        raise InputError(
            "ip_adapter_image_embeds has one row: this adapter needs two, of the negative and the positive"
        )
    zeros: Float32 = np.zeros_like(array)
    return np.concatenate([zeros, array]) if groups == 2 else array
