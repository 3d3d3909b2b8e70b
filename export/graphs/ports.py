"""Ports: optional inputs of a UNet that are added to its features, and change nothing where they are zero.

`control` takes what ControlNets give, one tensor for each skip connection and one for the middle; `t2i` takes the
features of a T2I-Adapter, one for each level; shapes are those that diffusers' `UNet2DConditionModel` adds them to.
`ip-adapter` takes keys and values of a picture for each cross-attention, and the strength of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.bundle.sizes import IMAGE_TOKENS
from latentrt.runtime.errors import ExportError, unknown

from .image_attention import attend_to_images
from .onnx_export import TensorInput, TupleInput

# Port -> the parameter of `UNetGraph`, for those that are added to features.
_PARAMETERS = {"control": "residuals", "t2i": "features"}
_ADAPTER_LEVELS = 4  # of every T2I-Adapter; a UNet with fewer levels takes the last in its middle


def check_ports(ports: Sequence[str]) -> None:
    """Raise `ExportError` for a name that is no port, or twice."""
    for name in ports:
        if name not in PORTS:
            raise ExportError(unknown("port", name, PORTS))
    if len({*ports}) < len(ports):
        raise ExportError(f"a port is named twice: {', '.join(ports)}")


def port_inputs(
    unet: Any, ports: Sequence[str], call: Callable[..., object], inputs: Sequence[TensorInput]
) -> tuple[list[TensorInput | TupleInput], dict[str, list[Any]]]:
    """Example inputs of the ports, and the shapes of their tensors as the manifest has them.

    With `ip-adapter`, the UNet's cross-attention is changed, in place.

    Args:
        call: runs the UNet on the examples of `inputs`, by name.
    """
    skips, levels, middle = _features(unet, lambda: call(**{one.name: one.example for one in inputs}))
    at = {"control": [*skips, middle], "t2i": [*levels, middle][:_ADAPTER_LEVELS]}
    height, width = inputs[0].example.shape[2:]
    found: list[TensorInput | TupleInput] = []
    shapes: dict[str, list[Any]] = {}
    for name in (name for name in _PARAMETERS if name in ports):
        parts = []
        for number, feature in enumerate(at[name]):
            part = f"{PORTS[name]}{number:02d}"
            sizes = [_part("h", height, feature.shape[2]), _part("w", width, feature.shape[3])]
            shapes[part] = ["B*G", feature.shape[1], *sizes]
            axes = {0: "n", 2: f"{part}_h", 3: f"{part}_w"}
            parts.append(TensorInput(part, torch.zeros(feature.shape, dtype=feature.dtype), axes))
        found.append(TupleInput(_PARAMETERS[name], tuple(parts)))
    if "ip-adapter" in ports:
        found += (pictures := _pictures(unet, len(inputs[0].example)))
        shapes |= {part.name: ["B*G", "T", part.example.shape[2]] for one in pictures[:2] for part in one.parts}
    return found, shapes


def _pictures(unet: Any, rows: int) -> list[TensorInput | TupleInput]:
    widths = attend_to_images(unet)
    axes = {0: "n", 1: "T"}
    of_kind = [
        TupleInput(
            f"image_{kind}s",
            tuple(
                TensorInput(f"image_{kind}_{layer:02d}", torch.zeros(rows, IMAGE_TOKENS, width, dtype=unet.dtype), axes)
                for layer, width in enumerate(widths)
            ),
        )
        for kind in ("key", "value")
    ]
    return [*of_kind, TensorInput("image_strength", torch.ones(rows, len(widths)), {0: "n"})]


def _features(unet: Any, run: Callable[[], object]) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The skip connections, what an adapter is added to at each level, and the middle."""
    skips: list[torch.Tensor] = []
    levels: list[torch.Tensor] = []
    middle: list[torch.Tensor] = []

    def note_block(block: Any, _: Any, output: Any) -> None:
        sample, states = output
        skips.extend(states)
        levels.append(states[-2] if _halves_after(block) else sample)

    hooks = [block.register_forward_hook(note_block) for block in unet.down_blocks]
    hooks.append(unet.conv_in.register_forward_hook(lambda _, __, output: skips.append(output)))
    hooks.append(unet.mid_block.register_forward_hook(lambda _, __, output: middle.append(output)))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return skips, levels, middle[0]


def _halves_after(block: Any) -> bool:
    """Whether a block adds an adapter's features before it halves the size: one with attention does."""
    return getattr(block, "has_cross_attention", False) and block.downsamplers is not None


def fusable(unet: Any, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same features, in a form in which zeros change no bit on ONNX Runtime's CPU provider.

    It keeps what a convolution or a pooling gives in blocks of channels, and fuses a sum with a convolution only where
    both sides have that form. A feature that is added to the output of a whole block would take the form from it, and
    so from the sums of the next blocks. Such a feature passes a pooling of one pixel, which gives it the form. Only
    float32 has it; bfloat16 has no pooling in old opsets.
    """
    joined = [*(not _halves_after(block) for block in unet.down_blocks), True]  # the last: in the middle
    return [
        torch.nn.functional.max_pool2d(feature, 1) if is_joined and feature.dtype == torch.float32 else feature
        for feature, is_joined in zip(features, joined, strict=False)
    ]


def _part(symbol: str, whole: int, size: int) -> str:
    """How the manifest writes a side that was halved, rounding up, until it had this size."""
    divisor = next(2**times for times in range(8) if -(-whole // 2**times) == size)
    return symbol if divisor == 1 else f"{symbol}/{divisor}"
