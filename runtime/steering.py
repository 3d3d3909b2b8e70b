"""What steers the images of a call: pictures of ControlNets and adapters, computed once before the loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.bundle import ControlManifest, TensorSpec
from latentrt.runtime.latents import empty_pixels
from latentrt.runtime.request import ImagePromptUse, Request
from latentrt.runtime.weights import scaled

from .arrays import Float32
from .protocols import AdapterFeatures, Backend, Control, ImagePrompt

Nets = Mapping[str, Backend]
Manifests = Mapping[str, ControlManifest]


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """What steers one image; see `Trajectory`."""

    controls: tuple[Control, ...]
    image_prompt: ImagePrompt | None
    features: AdapterFeatures | None


def steered(
    request: Request, nets: Nets, manifests: Manifests, inputs: Sequence[Mapping[str, Float32]]
) -> list[Steering]:
    """For each image of a call, what steers it.

    Args:
        nets, manifests: of the control bundles, by name.
        inputs: of each image, the inputs of the graph `time` besides timesteps.
    """
    controls = _controls(request, nets, manifests, inputs)
    features, prompts = _features(request, nets, manifests), _image_prompts(request, nets)
    return [
        Steering(
            tuple(net[i] for net in controls),
            None if prompts is None else prompts[i],
            None if features is None else features[i],
        )
        for i in range(len(inputs))
    ]


def _controls(
    request: Request, nets: Nets, manifests: Manifests, inputs: Sequence[Mapping[str, Float32]]
) -> list[list[Control]]:
    """For each net of a call, what it does on each image; each picture is embedded once."""
    found = []
    for use in request.nets:
        net, manifest = nets[use.net], manifests[use.net]
        features = [net.engine("hint").run({"hint": hint[None]})["hint_features"][0] for hint in use.hints]
        own = {spec.name for spec in manifest.graphs["control_time"].inputs}
        kinds: dict[str, Float32] = {}
        if manifest.control_types:
            kind = np.eye(manifest.control_types, dtype=np.float32)[use.task]
            kinds["control_type"] = np.tile(kind, (use.weights.shape[1], 1))
        found.append(
            [
                Control(
                    use.net,
                    features[row],
                    use.weights,
                    {name: array for name, array in inputs[i].items() if name in own} | kinds,
                    use.task,
                )
                for i, row in enumerate(use.rows)
            ]
        )
    return found


def _features(request: Request, nets: Nets, manifests: Manifests) -> list[AdapterFeatures] | None:
    """What a T2I-Adapter makes of the picture of each image."""
    if (use := request.features) is None:
        return None
    net, specs = nets[use.net], manifests[use.net].graphs["adapter"].outputs
    made = []
    for hint in use.hints:
        found = net.engine("adapter").run({"hint": hint[None]})
        tensors = {spec.name: scaled(found[spec.name][0], use.scale, spec.dtype) for spec in specs}
        made.append(AdapterFeatures(tensors, use.calls))
    return [made[row] for row in use.rows]


def _image_prompts(request: Request, nets: Nets) -> list[ImagePrompt] | None:
    """What an IP-Adapter makes of the picture of each image; the negative group sees an empty one."""
    if (use := request.image_prompt) is None:
        return None
    context = nets[use.net].engine("image_context")
    embeddings = [use.embeds] if use.embeds is not None else _embedded(use, nets, context.spec.inputs[0])
    made = [ImagePrompt(context.run({"embedding": embedding}), use.strength) for embedding in embeddings]
    return [made[row] for row in use.rows]


def _embedded(use: ImagePromptUse, nets: Nets, wanted: TensorSpec) -> list[Float32]:
    """For each picture its embeddings, (G, …): those of the picture as a whole, or of its patches."""
    assert use.encoder is not None
    assert use.pixels is not None
    groups, encoder = use.strength.shape[1], nets[use.encoder].engine("image_encoder")
    name = "image_embeds" if len(wanted.shape) == 2 else "hidden_states"
    found: list[Float32] = [encoder.run({"pixels": one[None]})[name] for one in use.pixels]
    if groups == 1:
        return found
    if name == "image_embeds":
        return [np.concatenate([np.zeros_like(one), one]) for one in found]
    empty = encoder.run({"pixels": empty_pixels(use.pixels.shape[1])[None]})[name]
    return [np.concatenate([empty, one]) for one in found]
