"""ControlNets for export: the part of a picture alone, and the net, which reads the loop's state and gives residuals.

Follows diffusers' `ControlNetModel.forward` (arXiv:2302.05543) and `ControlNetUnionModel.forward` for one condition.
"""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from latentrt.export.checkpoint.families import time_inputs
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.scheduler import REGISTERS

from .cut import Cut
from .fuse import F32, Ops, repeated, tensor
from .onnx_export import TensorInput, TupleInput


class HintGraph(torch.nn.Module):
    """`hint` (B, H, W, C) float32, RGB in [0, 1] -> `hint_features` (B, C0, h, w) in the net's dtype.

    Pixels below 0 are passed on: inpainting ControlNets are trained with -1 where the picture is drawn anew.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.embedding, self.dtype = net.controlnet_cond_embedding, net.dtype
        self.is_bgr = net.config.controlnet_conditioning_channel_order == "bgr"

    def forward(self, hint: torch.Tensor) -> torch.Tensor:
        """See the class's docstring."""
        pixels = hint.permute(0, 3, 1, 2)
        features: torch.Tensor = self.embedding((pixels.flip(1) if self.is_bgr else pixels).to(self.dtype))
        return features


class ControlGraph(torch.nn.Module):
    """One run of a ControlNet on embedded hints -> residuals, for the skip connections and for the middle.

    Takes `sample` (n, C, h, w), `timesteps` (n,), `hidden_states` (n, S, D), `hint_features` (n, C0, h, w), `weights`
    (n, J) float32, `previous`, J residuals that are added to its own, and what `time_inputs` of the net has. A Union
    also takes `control_type` (n, K), ones at the kinds of the hint, and `task` (n,) int64, the kind that it is.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.pools = net, bool(net.config.global_pool_conditions)
        self.is_union = hasattr(net, "task_embedding")
        net.controlnet_cond_embedding = torch.nn.Identity()
        # The order of channels is the hint's concern, which is embedded already.
        net.register_to_config(controlnet_conditioning_channel_order="rgb", global_pool_conditions=False)

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        hidden_states: torch.Tensor,
        hint_features: torch.Tensor,
        weights: torch.Tensor,
        previous: Sequence[torch.Tensor],
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        control_type: torch.Tensor | None = None,
        task: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """See the class's docstring."""
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        hint: Any = {"controlnet_cond": hint_features, "conditioning_scale": 1.0}
        if self.is_union:
            hint = {"controlnet_cond": [hint_features], "conditioning_scale": [1.0]}
            hint |= {"control_type": control_type, "control_type_idx": [task]}
        text = hidden_states.to(self.net.dtype)
        down, middle = self.net(
            sample, timesteps, encoder_hidden_states=text, **hint, added_cond_kwargs=added, return_dict=False
        )
        return tuple(
            before + self._pooled(residual) * weights[:, j, None, None, None].to(residual.dtype)
            for j, (residual, before) in enumerate(zip([*down, middle], previous, strict=True))
        )

    def _pooled(self, residual: torch.Tensor) -> torch.Tensor:
        return residual.mean((2, 3), keepdim=True) if self.pools else residual


def control_inputs(
    net: Any, config: dict[str, Any], max_length: int, shapes: dict[str, list[Any]]
) -> list[TensorInput | TupleInput]:
    """Example inputs of a `ControlGraph`; `shapes` are those of the residuals, as `residual_shapes` gives them."""
    height, width = _example_size(config)
    rows, dtype, pixels = 2, net.dtype, {0: "n", 2: "h", 3: "w"}
    previous = []
    for name, (_, channels, *sides) in shapes.items():
        size = [_divided(side, whole) for side, whole in zip(sides, (height, width), strict=True)]
        part = name.replace(PORTS["control"], "previous_")
        axes = {0: "n", 2: f"{part}_h", 3: f"{part}_w"}
        previous.append(TensorInput(part, torch.zeros(rows, channels, *size, dtype=dtype), axes))
    features = torch.zeros(rows, config["block_out_channels"][0], height, width, dtype=dtype)
    types = config.get("num_control_type", 0) if hasattr(net, "task_embedding") else 0
    return [
        TensorInput("sample", torch.zeros(rows, config["in_channels"], height, width, dtype=dtype), pixels),
        TensorInput("timesteps", torch.tensor([1.0, 500.0]), {0: "n"}),
        TensorInput("hidden_states", torch.zeros(rows, max_length, config["cross_attention_dim"]), {0: "n", 1: "S"}),
        TensorInput("hint_features", features, pixels),
        TensorInput("weights", torch.ones(rows, len(previous)), {0: "n"}),
        TupleInput("previous", tuple(previous)),
        *(TensorInput(more.name, torch.zeros(rows, *more.shape), {0: "n"}) for more in time_inputs(config)),
        *([TensorInput("control_type", torch.zeros(rows, types), {0: "n"})] if types else []),
        *([TensorInput("task", torch.tensor([0, 1]), {0: "n"})] if types else []),
    ]


def residual_shapes(config: dict[str, Any]) -> dict[str, list[Any]]:
    """Name -> shape of each residual, as the manifest has it: skip connections from the top down, then the middle."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    found = [(channels[0], 1)]
    for level, count in enumerate(channels):
        found += [(count, 2**level)] * layers
        if level < len(channels) - 1:
            found.append((count, 2 ** (level + 1)))
    found.append((channels[-1], 2 ** (len(channels) - 1)))
    sides = [["h", "w"] if by == 1 else [f"h/{by}", f"w/{by}"] for _, by in found]
    prefix = PORTS["control"]
    return {f"{prefix}{i:02d}": ["B*G", count, *sides[i]] for i, (count, _) in enumerate(found)}


def hint_input(config: dict[str, Any]) -> TensorInput:
    """Example input of a `HintGraph`."""
    factor, (height, width) = hint_factor(config), _example_size(config)
    example = torch.zeros(2, factor * height, factor * width, config["conditioning_channels"])
    return TensorInput("hint", example, {0: "B", 1: f"{factor}*h", 2: f"{factor}*w"})


def hint_factor(config: dict[str, Any]) -> int:
    """Pixels of a hint along a side of a latent pixel."""
    return int(2 ** (len(config["conditioning_embedding_out_channels"]) - 1))


def fuse_control(cut: Cut, *, channels: int) -> ir.Model:
    """Let the net read the loop's state, and repeat hints for each guidance group, in place.

    Inputs: `state` (B, R, C, h, w) float32, of which it reads row 0, `hint_features` (B, C0, h, w), for a Union `task`
    (B,) int64, then `weights`, `previous_*`, `time_features`, `key_*` and `value_*`, all with B*G rows.
    """
    graph = cut.loop.graph
    by_name = {value.name: value for value in graph.inputs}
    ops = Ops()
    state = tensor("state", F32, ["B", REGISTERS, channels, "h", "w"])
    x = ops.op("Gather", [state, ops.const(0)], {"axis": 1})
    groups = ops.op("Div", [ops.dims(by_name["weights"], 0, 1), ops.dims(state, 0, 1)])
    ir.convenience.replace_all_uses_with(by_name["sample"], repeated(ops, x, groups, like=by_name["sample"]))
    of_images = [state]
    for old in (by_name[name] for name in ("hint_features", "task") if name in by_name):
        assert old.shape is not None
        assert old.dtype is not None
        new = tensor(str(old.name), old.dtype, ["B", *list(old.shape)[1:]])  # type: ignore[list-item]
        ir.convenience.replace_all_uses_with(old, repeated(ops, new, groups, like=old))
        of_images.append(new)
    replaced = {"sample", *(value.name for value in of_images)}
    rest = [value for value in graph.inputs if value.name not in replaced]
    for value in rest:
        assert value.shape is not None
        value.shape = ir.Shape(["B*G", *list(value.shape)[1:]])
    graph.inputs[:] = [*of_images, *rest]
    graph.insert_before(graph[0], ops.nodes)
    for value in ops.initializers:
        graph.register_initializer(value)
    graph.sort()
    return cut.loop


def _example_size(config: dict[str, Any]) -> tuple[int, int]:
    """Not multiples of the net's total stride, so that sides are rounded up where they are halved."""
    stride = 2 ** (len(config["block_out_channels"]) - 1)
    return 2 * stride + 1, 3 * stride + 1


def _divided(side: str, whole: int) -> int:
    return -(-whole // int(side.partition("/")[2] or 1))
