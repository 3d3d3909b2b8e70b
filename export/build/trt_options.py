"""Options of a TensorRT build: which of them the installed library has, how it is told, and what a record says.

Knows neither graphs nor bundles.
"""

from dataclasses import dataclass, replace
from typing import Any

from latentrt.runtime.backends.trt.library import TrtLibrary
from latentrt.runtime.errors import BackendError, InputError, unknown
from latentrt.runtime.gpu.device import Device

HARDWARE = ("none", "ampere_plus", "same_compute_capability")
TILING = ("none", "fast", "moderate", "full")
LOSES_BIASES = "11.3"  # versions of TensorRT whose engines cannot be refitted safely
# Default targets of TensorRT for RTX without a GPU: the RTX 30, 40 and 50 series.
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """User options of a build.

    Attributes:
        optimization_level: 0 builds fastest, 5 searches longest for fast kernels.
        tiling: how long to search for tiles that keep tensors in the L2 cache, one of `TILING`; for static sizes.
        tiling_l2_mib: the part of the L2 cache that tiles may take, in MiB; None is the library's choice.
        tactics: for "tensorrt": where kernels may come from, names of its `TacticSource` in lower case; None is the
            library's choice, () allows none of these sources.
        timing_iterations: for "tensorrt": how often each kernel is timed; None is the library's choice.
        best_of: for "tensorrt": build each engine this often, each with timings of its own, and keep the fastest.
        tf32: allow TF32, which rounds inputs of fp32 convolutions and matrix products to 10-bit mantissas. None
            allows it for a VAE that is fp32 beside a UNet of 16 bits.
        refittable: allow LoRA to change the weights that the bundle names.
        strip_weights: omit weights from the engine; it is refitted from the ONNX file when it is loaded.
        version_compatible: also run with later versions of the library; the engine then contains host code.
        hardware_compatible: for "tensorrt": "none", "ampere_plus" (8.0 and later) or "same_compute_capability".
        compute_capabilities: for "tensorrt_rtx": GPUs that the engine runs on, such as ("8.6", "8.9").
        workspace_mib: limit of a kernel's scratch memory; None is the GPU's memory.
    """

    optimization_level: int = 3
    tiling: str = "none"
    tiling_l2_mib: int | None = None
    tactics: tuple[str, ...] | None = None
    timing_iterations: int | None = None
    best_of: int = 1
    tf32: bool | None = None
    refittable: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None


def checked_options(library: TrtLibrary, device: Device | None, options: BuildOptions) -> BuildOptions:
    """The options with defaults filled in; raises `InputError` or `BackendError` for those that cannot be met.

    Args:
        library: the installed library.
        device: the GPU that engines are built on; None without one.
    """
    _check_values(options)
    _check_tiling(library, options)
    if library.backend == "tensorrt":
        _check_for_tensorrt(library, options)
        return options if options.tactics is None else replace(options, tactics=tuple(sorted({*options.tactics})))
    _check_for_rtx(device, options)
    return replace(options, compute_capabilities=_capabilities_of(library, device, options))


def recorded(options: BuildOptions) -> dict[str, str]:
    """The options as an engine's record holds them; TF32 and GPUs have fields of their own there."""
    tactics = "default" if options.tactics is None else ",".join(options.tactics) or "none"
    return {
        "optimization_level": str(options.optimization_level),
        "tiling": options.tiling,
        "tiling_l2_mib": str(options.tiling_l2_mib or "default"),
        "tactics": tactics,
        "timing_iterations": str(options.timing_iterations or "default"),
        "best_of": str(options.best_of),
        "refittable": str(options.refittable).lower(),
        "strip_weights": str(options.strip_weights).lower(),
        "version_compatible": str(options.version_compatible).lower(),
        "hardware_compatible": options.hardware_compatible,
        "workspace_mib": str(options.workspace_mib or "all"),
    }


def set_options(library: TrtLibrary, config: Any, options: BuildOptions) -> None:
    """Tell a library's `IBuilderConfig` the options, which `checked_options` returned."""
    trt = library.trt
    config.builder_optimization_level = options.optimization_level
    # So that the library says of each layer which kernel it is. It adds no byte to an engine of TensorRT for RTX.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tiling != "none":
        config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, options.tiling.upper())
    if options.tiling_l2_mib is not None:
        config.l2_limit_for_tiling = options.tiling_l2_mib << 20
    if options.tactics is not None:
        sources = trt.TacticSource.__members__
        config.set_tactic_sources(sum(1 << int(sources[name.upper()]) for name in options.tactics))
    if options.timing_iterations is not None:
        config.avg_timing_iterations = options.timing_iterations
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _set_flags(config, trt.BuilderFlag, options)
    if library.backend == "tensorrt":
        level = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(level, options.hardware_compatible.upper())
        return
    # Otherwise an engine may allocate memory itself, which prevents CUDA graph capture.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    known = _known_capabilities(library)
    config.num_compute_capabilities = len(options.compute_capabilities)
    for i, capability in enumerate(options.compute_capabilities):
        config.set_compute_capability(known[capability], i)


def _set_flags(config: Any, flag: Any, options: BuildOptions) -> None:
    if not options.tf32:
        config.clear_flag(flag.TF32)
    if options.refittable:
        config.set_flag(flag.REFIT_INDIVIDUAL)
    if options.strip_weights:
        config.set_flag(flag.STRIP_PLAN)
    if options.version_compatible:
        config.set_flag(flag.VERSION_COMPATIBLE)


def _check_values(options: BuildOptions) -> None:
    if not 0 <= options.optimization_level <= 5:
        raise InputError(f"--optimization-level {options.optimization_level}: expected an integer from 0 to 5")
    if options.hardware_compatible not in HARDWARE:
        raise InputError(unknown("hardware compatibility", options.hardware_compatible, HARDWARE))
    if options.tiling not in TILING:
        raise InputError(unknown("tiling level", options.tiling, TILING))
    for option, value in (
        ("--tiling-l2", options.tiling_l2_mib),
        ("--timing-iterations", options.timing_iterations),
        ("--best-of", options.best_of),
        ("--workspace", options.workspace_mib),
    ):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: expected an integer from 1 on")


def _check_tiling(library: TrtLibrary, options: BuildOptions) -> None:
    if options.tiling_l2_mib is not None and options.tiling == "none":
        raise InputError("--tiling-l2 limits the tiles of --tiling: pass --tiling fast, moderate or full, too")
    if options.tiling != "none" and not hasattr(library.trt, "TilingOptimizationLevel"):
        raise BackendError(f"{library.backend} {library.version} has no tiling: build without --tiling")


def _check_for_tensorrt(library: TrtLibrary, options: BuildOptions) -> None:
    if options.refittable and library.version.startswith(f"{LOSES_BIASES}."):
        raise BackendError(
            f"tensorrt {library.version} may drop the bias of a matrix product when an engine is refitted, as "
            "NVIDIA's release notes say. Install another version (10.16, or 11.4 and later), or build without "
            "--refittable"
        )
    if options.compute_capabilities:
        raise InputError(
            "--compute-capability is for tensorrt_rtx. tensorrt builds for the GPU that it runs on; for other "
            "GPUs, pass --hardware-compatible ampere_plus or same_compute_capability"
        )
    known = [name.lower() for name in library.trt.TacticSource.__members__]
    for name in options.tactics or ():
        if name not in known:  # TensorRT 11 dropped cublas, cublas_lt and cudnn
            raise InputError(
                f"--tactics {name}: tensorrt {library.version} has {', '.join(known)}; `none` allows none of them"
            )


def _check_for_rtx(device: Device | None, options: BuildOptions) -> None:
    if options.hardware_compatible != "none":
        raise InputError("--hardware-compatible is for tensorrt; for tensorrt_rtx, pass --compute-capability")
    for given, option in (
        (options.tactics is not None, "--tactics"),
        (options.timing_iterations is not None, "--timing-iterations"),
        (options.best_of > 1, "--best-of"),
    ):
        if given:
            raise InputError(
                f"{option} is for tensorrt, which times kernels on its GPU while it builds. tensorrt_rtx "
                f"times none: its builds are all the same, and kernels are compiled later. Build without {option}"
            )
    if device is None:
        for chosen, option in (
            (options.refittable, "--refittable"),
            (options.strip_weights, "--strip-weights"),
            (options.version_compatible, "--version-compatible"),
        ):
            if chosen:
                raise BackendError(f"tensorrt_rtx needs a GPU to build with {option}, and no GPU is visible")


def _capabilities_of(library: TrtLibrary, device: Device | None, options: BuildOptions) -> tuple[str, ...]:
    capabilities = options.compute_capabilities or (("current",) if device else RTX_CAPABILITIES)
    known = _known_capabilities(library)
    for capability in capabilities:
        if capability not in known:
            raise InputError(
                f"--compute-capability {capability}: tensorrt_rtx {library.version} builds for {', '.join(known)}"
            )
    if "current" in capabilities and (len(capabilities) > 1 or device is None):
        raise InputError("--compute-capability current excludes others, and needs a GPU")
    return tuple(capabilities)


def _known_capabilities(library: TrtLibrary) -> dict[str, Any]:
    members = library.trt.ComputeCapability.__members__
    named = {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}
    return {**named, "current": members["CURRENT"]}
