"""IP-Adapters, and the image encoder beside them: what is computed of a picture once, before the loop."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentrt.export.graphs.onnx_export import TensorInput, onnx_from_module
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.latents.clip_pixels import MEAN, STD

from .models import Arrays, Exported
from .source import ControlCheckpoint

Tensors = Mapping[str, torch.Tensor]
CLIP_PATCHES = 257  # rows of hidden states of CLIP ViT at 224 pixels, and one for the class
_PROJECTION, _ATTENTION = "image_proj.", "ip_adapter."


class ImageContextGraph(torch.nn.Module):
    """Embedding of a picture -> keys and values of its tokens for each cross-attention (arXiv:2308.06721)."""

    def __init__(self, projection: Any, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        """`projection` is diffusers', of the adapter's kind; weights are (channels, D) for each layer."""
        super().__init__()
        self.projection = projection
        self.keys, self.values = (
            torch.nn.ParameterList([torch.nn.Parameter(one, requires_grad=False) for one in weights])
            for weights in (keys, values)
        )

    def forward(self, embedding: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`embedding` is (n, E), or (n, patches, E) float32; results are (n, T, channels), keys first."""
        tokens = self.projection(embedding.to(self.keys[0].dtype))
        return tuple(torch.nn.functional.linear(tokens, weight) for weight in (*self.keys, *self.values))


def image_context(name: str, tensors: Tensors) -> ImageContextGraph:
    """The module of an adapter's file, in float32; raises `CheckpointError` for kinds that are not supported."""
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin as Loaders

    projection = {key.removeprefix(_PROJECTION): t.float() for key, t in tensors.items() if key.startswith(_PROJECTION)}
    if "perceiver_resampler.proj_in.weight" in projection:
        raise CheckpointError(
            f"{name} is an IP-Adapter FaceID Plus, which reads two embeddings; use FaceID or plus-face"
        )
    found: dict[str, dict[int, torch.Tensor]] = {"k": {}, "v": {}}
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight", key):
            found[match[2]][int(match[1])] = tensor.float()
        elif key.startswith(_ATTENTION):
            raise CheckpointError(
                f"{name} has {key}, which changes the UNet's own layers: use an IP-Adapter without LoRA"
            )
    try:
        module = Loaders._convert_ip_adapter_image_proj_to_diffusers(None, projection, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name} has no projection that diffusers knows: {str(error)[:200]}") from error
    keys, values = ([weights[number] for number in sorted(weights)] for weights in found.values())
    if not keys or len(keys) != len(values):
        raise CheckpointError(
            f"{name} has {len(keys)} keys and {len(values)} values: expected one of each for each layer"
        )
    return ImageContextGraph(module, keys, values).eval()


@dataclass(frozen=True, slots=True)
class IPAdapter:
    """An IP-Adapter: plain, plus, full face or FaceID."""

    checkpoint: ControlCheckpoint
    dtype: torch.dtype

    @property
    def facts(self) -> dict[str, Any]:
        """See `Model.facts`."""
        module, shape = self._module(), self._shape(1)
        with torch.inference_mode():
            tokens = module(torch.zeros(shape))[0].shape[1]
        return {"height": 512, "width": 512, "vae_scale_factor": 8, "image_tokens": int(tokens)}

    def _module(self) -> ImageContextGraph:
        """In float32, with weights rounded to the precision."""
        module: ImageContextGraph = image_context(self.checkpoint.name, self.checkpoint.tensors)
        return module.to(self.dtype).float()

    def _shape(self, rows: int) -> tuple[int, ...]:
        """Of the embedding: one for the picture, or one for each of its patches."""
        weights = self.checkpoint.tensors
        if "image_proj.latents" in weights:  # plus
            return rows, CLIP_PATCHES, int(weights["image_proj.proj_in.weight"].shape[1])
        if "image_proj.proj.3.weight" in weights:  # full face
            return rows, CLIP_PATCHES, int(weights["image_proj.proj.0.weight"].shape[1])
        first = "image_proj.proj.weight" if "image_proj.proj.weight" in weights else "image_proj.proj.0.weight"
        return rows, int(weights[first].shape[1])

    def graphs(self, opset: int) -> Exported:
        """See `Model.graphs`."""
        module = self._module().to(self.dtype)
        given = TensorInput("embedding", torch.zeros(self._shape(2)), {0: "n"})
        names = self._outputs(len(module.keys))
        return {"image_context": (onnx_from_module(module, [given], names, opset=opset), {})}

    def _outputs(self, layers: int) -> list[str]:
        return [f"image_{kind}_{i:02d}" for kind in ("key", "value") for i in range(layers)]

    def references(self, random: np.random.Generator) -> list[tuple[Arrays, Arrays]]:
        """See `Model.references`."""
        module, found = self._module(), []
        for rows in (1, 3):
            embedding = random.standard_normal(self._shape(rows), np.float32)
            with torch.inference_mode():
                outputs = module(torch.from_numpy(embedding))
            names = self._outputs(len(module.keys))
            found.append(({"embedding": embedding}, dict(zip(names, (o.numpy() for o in outputs), strict=True))))
        return found


class ImageEncoderGraph(torch.nn.Module):
    """`pixels` (n, S, S, 3) float32, RGB in [0, 1] -> `image_embeds` (n, P), `hidden_states` (n, patches, E), float32.

    The hidden states are those before the last layer, as in diffusers' `encode_image`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        normal = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)
        output = self.encoder(normal.to(self.encoder.dtype), output_hidden_states=True)
        return output.image_embeds.float(), output.hidden_states[-2].float()


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """CLIP's image side, with its projection."""

    checkpoint: ControlCheckpoint
    dtype: torch.dtype

    @property
    def facts(self) -> dict[str, Any]:
        """See `Model.facts`."""
        side = int(self.checkpoint.config["image_size"])
        return {"height": side, "width": side, "vae_scale_factor": 1}

    def graphs(self, opset: int) -> Exported:
        """See `Model.graphs`."""
        module = ImageEncoderGraph(self.checkpoint.load(self.dtype))
        side = self.checkpoint.config["image_size"]
        given = TensorInput("pixels", torch.zeros(2, side, side, 3), {0: "n"})
        return {
            "image_encoder": (onnx_from_module(module, [given], ["image_embeds", "hidden_states"], opset=opset), {})
        }

    def references(self, random: np.random.Generator) -> list[tuple[Arrays, Arrays]]:
        """See `Model.references`."""
        encoder, side, found = self.checkpoint.load(self.dtype).float(), self.checkpoint.config["image_size"], []
        for rows in (1, 2):
            pixels = random.uniform(0, 1, (rows, side, side, 3)).astype(np.float32)
            with torch.inference_mode():
                normal = (torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)
                output = encoder(normal.permute(0, 3, 1, 2).float(), output_hidden_states=True)
            expected = {"image_embeds": output.image_embeds.numpy(), "hidden_states": output.hidden_states[-2].numpy()}
            found.append(({"pixels": pixels}, expected))
        return found
