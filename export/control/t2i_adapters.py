"""T2I-Adapters: features of a picture, which are computed once and added in every call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentrt.export.graphs.onnx_export import TensorInput, onnx_from_module
from latentrt.runtime.bundle.manifest import PORTS

from .models import Arrays, Exported
from .source import ControlCheckpoint


class AdapterGraph(torch.nn.Module):
    """`hint` (B, H, W, C) float32 in [0, 1] -> a feature for each level, in the adapter's dtype (arXiv:2302.08453)."""

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, hint: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class's docstring."""
        return tuple(self.adapter(hint.permute(0, 3, 1, 2).to(self.adapter.dtype)))


@dataclass(frozen=True, slots=True)
class T2IAdapter:
    """A T2I-Adapter: full, full for SDXL, or light."""

    checkpoint: ControlCheckpoint
    dtype: torch.dtype

    @property
    def _is_xl(self) -> bool:
        return bool(self.checkpoint.config["adapter_type"] == "full_adapter_xl")

    @property
    def _factor(self) -> int:
        """Pixels of a latent pixel; adapters for SDXL begin at half of the latents' size."""
        return int(self.checkpoint.config["downscale_factor"]) // (2 if self._is_xl else 1)

    @property
    def facts(self) -> dict[str, Any]:
        """See `Model.facts`."""
        side = 1024 if self._is_xl else 512
        return {"height": side, "width": side, "vae_scale_factor": self._factor}

    def graphs(self, opset: int) -> Exported:
        """See `Model.graphs`."""
        config, factor = self.checkpoint.config, self._factor
        module = AdapterGraph(self.checkpoint.load(self.dtype))
        example = torch.zeros(2, 6 * factor, 10 * factor, config["in_channels"])
        hint = TensorInput("hint", example, {0: "B", 1: f"{factor}*h", 2: f"{factor}*w"})
        shapes = self._shapes()
        model = onnx_from_module(module, [hint], list(shapes), opset=opset)
        sides = [f"{factor}*{side}" if factor > 1 else side for side in "hw"]
        return {"adapter": (model, {**shapes, "hint": ["B", *sides, config["in_channels"]]})}

    def _shapes(self) -> dict[str, Sequence[int | str]]:
        """Name -> shape of each feature, from the first level down."""
        divisors = (
            (2, 2, 4, 4) if self._is_xl else [2**level for level in range(len(self.checkpoint.config["channels"]))]
        )
        return {
            f"{PORTS['t2i']}{i:02d}": ["B", count, *("hw" if by == 1 else (f"h/{by}", f"w/{by}"))]
            for i, (count, by) in enumerate(zip(self.checkpoint.config["channels"], divisors, strict=False))
        }

    def references(self, random: np.random.Generator) -> list[tuple[Arrays, Arrays]]:
        """See `Model.references`."""
        adapter, channels = self.checkpoint.load(self.dtype).float(), self.checkpoint.config["in_channels"]
        found = []
        for batch, height, width in ((1, 6, 8), (3, 8, 4)):
            shape = (batch, height * self._factor, width * self._factor, channels)
            hint = random.uniform(0, 1, shape).astype(np.float32)
            with torch.inference_mode():
                features = adapter(torch.from_numpy(hint).permute(0, 3, 1, 2))
            found.append(({"hint": hint}, dict(zip(self._shapes(), (f.numpy() for f in features), strict=True))))
        return found
