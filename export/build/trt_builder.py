"""ONNX to an engine with TensorRT or TensorRT for RTX, which share their Python interface. Needs neither PyTorch nor
onnx. The only file of the exporter that calls these libraries; it knows nothing of bundles.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.runtime.backends.trt.library import TrtLibrary
from latentrt.runtime.errors import BackendError, ExportError, InputError
from latentrt.runtime.gpu.device import Device

HARDWARE = ("none", "ampere_plus", "same_compute_capability")
# What TensorRT for RTX builds for where nothing is said and no GPU is there: the RTX 30, 40 and 50 series.
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")

Progress = Callable[[str, float], object]
Shapes = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a user chooses about engines.

    Attributes:
        optimization_level: 0 builds fastest, 5 searches longest for fast kernels.
        tf32: let fp32 convolutions and products round their inputs to 10 bits, for speed.
        refittable: LoRA can change the weights that the bundle names.
        strip_weights: leave weights out of the file; they are refitted from the ONNX file when it is loaded.
        version_compatible: later versions of the library run it, too; it then carries code for the host.
        hardware_compatible: of "tensorrt": "none", "ampere_plus" (8.0 and later) or "same_compute_capability".
        compute_capabilities: of "tensorrt_rtx": GPUs that the engine runs on, such as ("8.6", "8.9").
        workspace_mib: most scratch memory that a kernel may take; None is all of the GPU's.
    """

    optimization_level: int = 3
    tf32: bool = False
    refittable: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None


class TrtBuilder(TrtLibrary):
    """TensorRT or TensorRT for RTX, as installed, on a GPU or without one."""

    def __init__(self, backend: str, devices: Sequence[Device]) -> None:
        """`devices` are the visible GPUs; engines are built for the first."""
        super().__init__(backend)
        self.device = devices[0] if devices else None
        if backend == "tensorrt" and self.device is None:
            raise BackendError(
                "tensorrt times kernels on the GPU that it builds for, and none is visible here. Build on the machine "
                "that the engines are for, or anywhere with --backend tensorrt_rtx --compute-capability 8.9"
            )

    def check(self, options: BuildOptions) -> BuildOptions:
        """The options with what they leave open filled in; refuses what this library cannot do here."""
        if not 0 <= options.optimization_level <= 5:
            raise InputError(f"--optimization-level {options.optimization_level}: it is 0 (fast build) to 5 (best)")
        if options.hardware_compatible not in HARDWARE:
            raise InputError(f"--hardware-compatible {options.hardware_compatible}: it is one of {', '.join(HARDWARE)}")
        if self.backend == "tensorrt":
            if options.compute_capabilities:
                raise InputError(
                    "--compute-capability belongs to tensorrt_rtx. tensorrt builds for the GPU that it runs on; "
                    "--hardware-compatible ampere_plus or same_compute_capability lets others run the engine"
                )
            return options
        if options.hardware_compatible != "none":
            raise InputError("--hardware-compatible belongs to tensorrt; with tensorrt_rtx say --compute-capability")
        if self.device is None:
            for chosen, option in (
                (options.refittable, "--refittable"),
                (options.strip_weights, "--strip-weights"),
                (options.version_compatible, "--version-compatible"),
            ):
                if chosen:
                    raise BackendError(f"tensorrt_rtx needs a GPU to build with {option}, and none is visible here")
        capabilities = options.compute_capabilities or (("current",) if self.device else RTX_CAPABILITIES)
        known = self._capabilities()
        for capability in capabilities:
            if capability not in known:
                raise InputError(
                    f"--compute-capability {capability}: tensorrt_rtx {self.version} builds for {', '.join(known)}"
                )
        if "current" in capabilities and (len(capabilities) > 1 or self.device is None):
            raise InputError("--compute-capability current stands alone, and needs a GPU")
        return BuildOptions(**{**_fields(options), "compute_capabilities": tuple(capabilities)})

    def runs_on(self, options: BuildOptions) -> tuple[str, ...]:
        """Compute capabilities of an engine built with checked options."""
        own = () if self.device is None else (self.device.compute_capability,)
        if self.backend == "tensorrt_rtx":
            return own if options.compute_capabilities == ("current",) else options.compute_capabilities
        return ("8.0+",) if options.hardware_compatible == "ampere_plus" else own

    def _capabilities(self) -> dict[str, Any]:
        members = self.trt.ComputeCapability.__members__
        named = {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}
        return {**named, "current": members["CURRENT"]}

    def engine_from_onnx(
        self,
        onnx: Path,
        shapes: Shapes,
        options: BuildOptions,
        *,
        refittable_weights: Sequence[str] = (),
        strict_nans: bool = False,
        timing_cache: Path | None = None,
        progress: Progress = lambda _phase, _share: None,
    ) -> bytes:
        """Build an engine.

        Args:
            shapes: input name -> minimal, optimal, maximal shape.
            options: as `check` returned them.
            refittable_weights: initializers that may change, where `options.refittable`.
            strict_nans: keep arithmetic that a NaN would show in.
            timing_cache: file that keeps kernel timings between builds; made where missing.
            progress: gets the name of the current phase, and the share that is done.

        Raises `ExportError` with the library's last errors. An interrupt cancels the build.
        """
        self.forget_errors()
        builder = self.trt.Builder(self.log)
        network = builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(onnx)):
            errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._error("read", onnx, " ".join("; ".join(errors).split()))
        config = builder.create_builder_config()
        self._set_shapes(builder, network, config, shapes)
        self._set_options(config, options)
        if strict_nans:
            config.set_flag(self.trt.BuilderFlag.STRICT_NANS)
        if options.refittable:
            for name in refittable_weights:
                if not network.mark_weights_refittable(name):
                    raise ExportError(f"{self.backend} {self.version} cannot make {name!r} of {onnx.name} refittable")
        self._decompose_attention(network)
        cache = self._timing_cache(config, timing_cache)
        monitor = _monitor(self.trt, progress)
        config.progress_monitor = monitor
        plan = _in_background(lambda: builder.build_serialized_network(network, config), monitor)
        if plan is None:
            raise self._error("build", onnx, self.last_errors())
        if cache is not None and timing_cache is not None:
            _write_atomically(timing_cache, memoryview(config.get_timing_cache().serialize()))
        return bytes(memoryview(plan))

    def _error(self, verb: str, onnx: Path, reason: str) -> ExportError:
        return ExportError(f"{self.backend} {self.version} cannot {verb} {onnx.name}: {reason}")

    def _set_shapes(self, builder: Any, network: Any, config: Any, shapes: Shapes) -> None:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            least, best, most = shapes[tensor.name]
            profile.set_shape(tensor.name, least, best, most)
            # What is always the same is written into the network, so that it is known while the graph is simplified.
            tensor.shape = [low if low == high else -1 for low, high in zip(least, most, strict=True)]
        config.add_optimization_profile(profile)

    def _set_options(self, config: Any, options: BuildOptions) -> None:
        flag = self.trt.BuilderFlag
        config.builder_optimization_level = options.optimization_level
        if not options.tf32:
            config.clear_flag(flag.TF32)
        if options.refittable:
            config.set_flag(flag.REFIT_INDIVIDUAL)
        if options.strip_weights:
            config.set_flag(flag.STRIP_PLAN)
        if options.version_compatible:
            config.set_flag(flag.VERSION_COMPATIBLE)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if self.backend == "tensorrt":
            level = self.trt.HardwareCompatibilityLevel
            config.hardware_compatibility_level = getattr(level, options.hardware_compatible.upper())
            return
        config.set_flag(flag.REQUIRE_USER_ALLOCATION)  # without it an engine may allocate, and not be captured
        known = self._capabilities()
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(known[capability], i)

    def _decompose_attention(self, network: Any) -> None:
        """Allow attention without a fused kernel, such as in float32 and at a VAE's 512 channels; else no engine."""
        kind = self.trt.LayerType
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            if layer.type == getattr(kind, "ATTENTION_INPUT", None):
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def _timing_cache(self, config: Any, file: Path | None) -> Any:
        # TensorRT for RTX chooses kernels on the user's machine; without a GPU it has no timings to keep.
        if file is None or self.device is None or self.backend != "tensorrt":
            return None
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache


def _fields(options: BuildOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in BuildOptions.__slots__}


def _in_background(build: Callable[[], Any], monitor: Any) -> Any:
    """Run a build on a thread of its own: an interrupt reaches this one meanwhile, and cancels the build."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        finally:
            monitor.cancelled = True  # nothing to cancel where the build is over


def _monitor(trt: Any, progress: Progress) -> Any:
    """Reports phases as a share of the whole: a phase takes one step of the phase that it began in."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._share = 0.0
            self._open: dict[str, list[Any]] = {}  # phase -> parent, steps done, steps

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._open[phase] = [parent, 0, max(steps, 1)]
            self._report(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._open:
                self._open[phase][1] = step + 1
            self._report(phase)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            self._open.pop(phase, None)

        def _report(self, phase: str) -> None:
            share, name = 0.0, phase
            while name in self._open:
                parent, done, steps = self._open[name]
                share = (min(done, steps - 1) + share) / steps if share else done / steps
                name = parent
            # Never backwards: a phase that ended counts for its parent only with the parent's next step.
            self._share = max(self._share, share)
            progress(phase, self._share)

    return Monitor()


def _write_atomically(file: Path, content: "memoryview | bytes") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)
