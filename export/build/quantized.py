"""What a quantized bundle asks of a TensorRT build: refused before anything is built, or said as a hint.

Knows manifests and options, and calls no library.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from latentrt.runtime.bundle import AnyBundle, Contents
from latentrt.runtime.bundle.manifest import Quantization
from latentrt.runtime.errors import InputError

from .trt_builder import TrtBuilder
from .trt_options import RTX_CAPABILITIES, BuildOptions

logger = logging.getLogger(__name__)

FP8_FROM = "8.9"  # compute capability: the RTX 40 series, Hopper, Blackwell


def quantization_of(manifest: Contents, graph: str) -> Quantization | None:
    """How a graph was quantized; None if it was not."""
    quantized = manifest.recipe.quantization
    return quantized if quantized is not None and graph in quantized.graphs else None


def options_for(bundle: AnyBundle, graphs: Sequence[str], options: BuildOptions, library: TrtBuilder) -> BuildOptions:
    """The options; of the default targets of TensorRT for RTX, only those that have FP8, if a graph is fp8.

    Args:
        graphs: names of graphs to build; empty is all.

    Raises `InputError` for a bundle that TensorRT does not read, and for options that a quantized one has not.
    """
    quantized = bundle.manifest.recipe.quantization
    if quantized is not None and options.refittable:
        raise InputError(
            f"--refittable is for LoRA, and {bundle.path} is {quantized.to}: its weights are rounded to 8 bits, and a "
            "LoRA's change would be lost in that. Build without --refittable; a LoRA is merged before, with latentrt "
            "quantize BUNDLE OUT --lora FILE:WEIGHT"
        )
    if (found := _quantization(bundle, graphs)) is None:
        return options
    if found.target != "tensorrt" and found.calibration is not None:
        raise InputError(
            f"{bundle.path} is {found.to} for {found.target}, with zero points, which TensorRT does not read. Make one "
            f"for it, from the bundle that this one was made from: latentrt quantize BUNDLE OUT --to {found.to} --for "
            f"tensorrt --calibrate {bundle.path / found.calibration}"
        )
    if options.strip_weights:
        raise InputError(
            f"--strip-weights: {bundle.path} is {found.to}, and whether TensorRT gives weights of 8 bits back to an "
            "engine that it loads has been checked on no GPU. Build without --strip-weights"
        )
    chosen = library.backend == "tensorrt" or library.device is not None or options.compute_capabilities
    if chosen or found.to != "fp8":
        return options
    return replace(options, compute_capabilities=tuple(filter(_has_fp8, RTX_CAPABILITIES)))


def check_targets(bundle: AnyBundle, graphs: Sequence[str], options: BuildOptions, library: TrtBuilder) -> None:
    """Raise `InputError` if a graph is fp8 and a GPU that it is built for has no FP8; warn of int8 without kernels.

    Args:
        graphs: names of graphs to build; empty is all.
        options: as `TrtBuilder.check` returned them.
    """
    found = _quantization(bundle, graphs)
    if found is None:
        return
    without = ", ".join(capability for capability in library.runs_on(options) if not _has_fp8(capability))
    if found.to == "fp8" and without:
        raise InputError(
            f"{bundle.path} is fp8, which GPUs have from compute capability {FP8_FROM} on: "
            f"{_advice(options, without)}. For older GPUs, build the bundle that this one was made from, or quantize "
            "that one --to int8"
        )
    if found.to == "int8" and library.backend == "tensorrt_rtx":
        logger.warning(
            "NVIDIA lists int8 kernels of tensorrt_rtx for weights alone: do not expect engines of int8 activations to "
            "be faster there. Build with --backend tensorrt, or quantize --to fp8, for compute capability %s and later",
            FP8_FROM,
        )


def _quantization(bundle: AnyBundle, graphs: Sequence[str]) -> Quantization | None:
    """That of the first of these graphs which is quantized."""
    manifest = bundle.manifest
    return next(filter(None, (quantization_of(manifest, name) for name in graphs or manifest.graphs)), None)


def _advice(options: BuildOptions, without: str) -> str:
    if options.hardware_compatible == "ampere_plus":
        return "build without --hardware-compatible ampere_plus, which includes GPUs before that"
    if options.compute_capabilities in ((), ("current",)):
        return f"this GPU has {without}"
    return f"leave out --compute-capability {without}"


def _has_fp8(capability: str) -> bool:
    return _numbers(capability) >= _numbers(FP8_FROM)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.removesuffix("+").split(".")))
