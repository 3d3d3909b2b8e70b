"""What ControlNets do in a call: which pictures steer it, how much, and in which calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import ControlManifest
from latentrt.runtime.control.weights import control_weights
from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.latents import size_of_steering, steering_pictures

from .extent import Extent

NETS = ("controlnet", "controlnet-union")
# Options of control bundles, and those that may have a value for each net, by its name.
OF_CONTROLS = (
    *("control_image", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
    *("control_mode", "guess_mode", "t2i_image", "adapter_conditioning_scale", "adapter_conditioning_factor"),
    *("ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_scale"),
)
PER_NET = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "control_mode")


@dataclass(frozen=True, slots=True, eq=False)
class NetUse:
    """A ControlNet in a call.

    Attributes:
        given: the pictures as they were given.
        hints: (pictures, H, W, channels) float32 in [0, 1].
        rows: (images,), the picture of each image.
        weights: (M, G, J) float32, see `control_weights`.
        task: of a ControlNet-Union, the kind of the pictures.
    """

    net: str
    given: Any
    hints: Float32
    rows: NDArray[np.int64]
    weights: Float32
    task: int


def nets_of_call(
    values: Mapping[str, Any], controls: Mapping[str, ControlManifest], extent: Extent
) -> tuple[NetUse, ...]:
    """The nets that steer a call; raises `InputError`.

    Args:
        values: checked options.
        controls: manifests of what was loaded beside the checkpoint, by name.
    """
    nets = {name: control for name, control in controls.items() if control.kind in NETS}
    pictures = by_net("control_image", values["control_image"], nets)
    _require_pictures(values, pictures, nets)
    found = []
    for name in (name for name in nets if name in pictures):
        manifest = nets[name]
        hint = next(spec for spec in manifest.graphs["hint"].inputs if spec.name == "hint")
        hints, rows = steering_pictures(
            f"control_image of {name}",
            pictures[name],
            extent.size,
            int(hint.shape[3]),
            prompts=extent.prompts,
            per_prompt=extent.per_prompt,
        )
        own = {option: by_net(option, values[option], nets).get(name) for option in PER_NET}
        weights = _weights(name, own, manifest, extent, guess_mode=bool(values["guess_mode"]))
        found.append(NetUse(name, pictures[name], hints, rows, weights, _task(name, manifest, own["control_mode"])))
    return tuple(found)


def _weights(
    name: str, own: Mapping[str, Any], manifest: ControlManifest, extent: Extent, *, guess_mode: bool
) -> Float32:
    given = (own["controlnet_conditioning_scale"], own["control_guidance_start"], own["control_guidance_end"])
    scale, start, end = (usual if value is None else value for value, usual in zip(given, (1.0, 0.0, 1.0), strict=True))
    if start >= end:
        raise InputError(f"control_guidance_start={start:g} of {name}: expected less than control_guidance_end={end:g}")
    return control_weights(
        extent.calls,
        extent.groups,
        len(manifest.graphs["control"].outputs),
        scale=scale,
        start=start,
        end=end,
        guess_mode=guess_mode or manifest.guess_mode,
        pools=manifest.guess_mode,
    )


def size_of_hints(values: Mapping[str, Any], controls: Mapping[str, ControlManifest]) -> tuple[int, int] | None:
    """Height and width of the first picture in `control_image` or `t2i_image`; None without one, or if both are set."""
    if values["height"] and values["width"]:
        return None
    if values["control_image"] is not None:
        nets = {name: control for name, control in controls.items() if control.kind in NETS}
        name, picture = next(iter(by_net("control_image", values["control_image"], nets).items()))
        return size_of_steering(f"control_image of {name}", picture, nets[name].vae_scale_factor)
    adapter = next((control for control in controls.values() if control.kind == "t2i-adapter"), None)
    if values["t2i_image"] is None or adapter is None:
        return None
    return size_of_steering("t2i_image", values["t2i_image"], adapter.vae_scale_factor)


def by_net(option: str, value: Any, nets: Mapping[str, ControlManifest]) -> dict[str, Any]:
    """Net -> its value. A value without a name is for all nets; a picture, for the only one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if option != "control_image":
            return dict.fromkeys(nets, value)
        if len(nets) != 1:
            loaded = f"pass {{name: picture}}, with names of {', '.join(nets)}" if nets else "load one with controls="
            raise InputError(f"{option} needs a ControlNet: {loaded}")
        return {next(iter(nets)): value}
    for name in value:
        if name not in nets:
            raise InputError(
                f"{option}: {unknown('ControlNet', name, nets)}"
                if nets
                else f"{option} needs a ControlNet: load it with controls="
            )
    return dict(value)


def _require_pictures(
    values: Mapping[str, Any], pictures: Mapping[str, Any], nets: Mapping[str, ControlManifest]
) -> None:
    """Options of nets without a picture would be ignored without a word."""
    for option in (*PER_NET, "guess_mode"):
        value = values[option]
        if value and not pictures:
            raise InputError(f"{option}={value!r} is about a ControlNet: pass control_image, or leave it out")
        idle: Sequence[str] = [name for name in value if name not in pictures] if isinstance(value, Mapping) else []
        if idle:
            by_net(option, value, nets)
            raise InputError(f"{option} names {idle[0]!r}, which has no picture in control_image")


def _task(name: str, manifest: ControlManifest, mode: int | None) -> int:
    if not manifest.control_types:
        if mode is not None:
            raise InputError(f"control_mode={mode} is for ControlNet-Union, and {name} is for one kind of picture")
        return 0
    if mode is None or not 0 <= mode < manifest.control_types:
        raise InputError(
            f"{name} is a ControlNet-Union: pass control_mode, an integer from 0 to {manifest.control_types - 1}, the "
            f"kind of its picture; got {mode}"
        )
    return mode
