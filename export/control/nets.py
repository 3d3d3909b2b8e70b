"""ControlNets, also those for several kinds of pictures (Union)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentrt.export.checkpoint.families import time_inputs
from latentrt.export.graphs import control
from latentrt.export.graphs.cut import cut_denoiser
from latentrt.export.graphs.onnx_export import onnx_from_module
from latentrt.export.graphs.precision import keep_unet_islands
from latentrt.runtime.bundle.control_manifest import CLIP_TOKENS
from latentrt.runtime.scheduler import REGISTERS

from .models import Arrays, Exported
from .source import ControlCheckpoint


@dataclass(frozen=True, slots=True)
class Net:
    """A ControlNet, also for several kinds of pictures (Union)."""

    checkpoint: ControlCheckpoint
    dtype: torch.dtype

    @property
    def facts(self) -> dict[str, Any]:
        """See `Model.facts`."""
        config = self.checkpoint.config
        side = 1024 if config.get("addition_embed_type") else 512
        return {
            "height": side,
            "width": side,
            "vae_scale_factor": control.hint_factor(config),
            "guess_mode": bool(config["global_pool_conditions"]),
            "control_types": self._types,
        }

    @property
    def _types(self) -> int:
        return int(self.checkpoint.config["num_control_type"]) if self.checkpoint.kind.endswith("union") else 0

    def graphs(self, opset: int) -> Exported:
        """See `Model.graphs`."""
        config, net = self.checkpoint.config, self.checkpoint.load(self.dtype)
        keep_unet_islands(net)
        shapes = control.residual_shapes(config)
        hint = onnx_from_module(control.HintGraph(net), [control.hint_input(config)], ["hint_features"], opset=opset)
        module = control.ControlGraph(net)
        inputs = control.control_inputs(net, config, CLIP_TOKENS, shapes)
        model = onnx_from_module(module, inputs, list(shapes), opset=opset)
        of_time = {"timesteps", *(more.name for more in time_inputs(config)), *(["control_type"] * bool(self._types))}
        cut = cut_denoiser(model, time_inputs=of_time, context_inputs={"hidden_states"})
        loop = control.fuse_control(cut, channels=config["in_channels"])
        previous = {name.replace("residual", "previous"): shape for name, shape in shapes.items()}
        features = ["B", config["block_out_channels"][0], "h", "w"]
        return {
            "hint": (hint, {"hint_features": features}),
            "control_time": (cut.time, {}),
            "control_context": (cut.context, {}),
            "control": (loop, {**shapes, **previous, "hint_features": features}),
        }

    def references(self, random: np.random.Generator) -> list[tuple[Arrays, Arrays]]:
        """See `Model.references`."""
        net = self.checkpoint.load(self.dtype).float()
        stride = 2 ** (len(self.checkpoint.config["block_out_channels"]) - 1)
        sizes = ((1, 2, 2 * stride, stride, CLIP_TOKENS), (3, 1, stride + 1, 2 * stride, 2 * CLIP_TOKENS))
        inputs = [self._example(random, *some) for some in sizes]
        return [(one, self._expected(net, one)) for one in inputs]

    def _example(
        self, random: np.random.Generator, batch: int, groups: int, height: int, width: int, tokens: int
    ) -> Arrays:
        config, factor = self.checkpoint.config, control.hint_factor(self.checkpoint.config)
        rows, count = batch * groups, len(control.residual_shapes(config))

        def normal(*shape: int) -> NDArray[np.float32]:
            return random.standard_normal(shape, np.float32)

        hint = random.uniform(0, 1, (batch, factor * height, factor * width, config["conditioning_channels"]))
        inputs: Arrays = {
            "hint": hint.astype(np.float32),
            "state": normal(batch, REGISTERS, config["in_channels"], height, width),
            "timesteps": np.repeat(random.uniform(0, 999, batch), groups).astype(np.float32),
            "hidden_states": normal(rows, tokens, config["cross_attention_dim"]),
            "weights": random.uniform(0.2, 1, (rows, count)).astype(np.float32),
        }
        inputs |= {more.name: normal(rows, *more.shape) for more in time_inputs(config)}
        if "time_ids" in inputs:
            inputs["time_ids"] = random.integers(0, 1024, inputs["time_ids"].shape).astype(np.float32)
        if self._types:
            inputs["task"] = random.integers(0, self._types, batch)
            inputs["control_type"] = np.eye(self._types, dtype=np.float32)[np.repeat(inputs["task"], groups)]
        return inputs

    def _expected(self, net: Any, inputs: Arrays) -> Arrays:
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        groups = len(given["weights"]) // len(given["state"])
        sample = given["state"][:, 0].repeat_interleave(groups, 0)
        pixels = given["hint"].permute(0, 3, 1, 2).repeat_interleave(groups, 0)
        hint: Any = {"controlnet_cond": pixels}
        if self._types:
            task = given["task"].repeat_interleave(groups, 0)
            hint = {"controlnet_cond": [pixels], "control_type": given["control_type"], "control_type_idx": [task]}
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if "pooled" in given else None
        with torch.inference_mode():
            down, middle = net(
                sample, given["timesteps"], given["hidden_states"], **hint, added_cond_kwargs=added, return_dict=False
            )
        weights = given["weights"][:, :, None, None, None]
        return {f"residual_{j:02d}": (r * weights[:, j]).numpy() for j, r in enumerate([*down, middle])}
