"""What this CPU's instructions mean for a bundle: in which form it would be faster here, and why it is not."""

from collections.abc import Iterator

from .bundle import Manifest
from .cpu import cpu_instructions, has_bf16, has_int8

FASTER = "makes large models about twice as fast"


def cpu_hints(manifest: Manifest) -> Iterator[str]:
    """Sentences for users who draw on this CPU; none where its instructions are not known."""
    if not cpu_instructions():
        return
    recipe = manifest.recipe
    if recipe.quantization is not None:
        if recipe.quantization.target == "tensorrt":
            yield "the bundle was quantized for TensorRT: a CPU draws the same pictures slowly"
        elif recipe.quantization.to != "int8-weights" and not has_int8():
            yield "this CPU has no instructions for int8: a quantized bundle is no faster here than its source"
    elif recipe.precision == "fp32":
        if has_bf16():
            yield f"this CPU has bf16: latentrt export --precision bf16 {FASTER}, on OpenVINO"
        if has_int8():
            yield f"this CPU has int8: latentrt quantize BUNDLE OUT --to int8 {FASTER}"
    if recipe.precision == "bf16" and not has_bf16():
        yield "this CPU has no instructions for bf16: the bundle runs in float32, no faster than one of fp32"
