"""Build an engine from an ONNX file with TensorRT or TensorRT for RTX, which share their Python interface.

Only this file and `trt_options` of the exporter call these libraries. Needs neither PyTorch nor onnx; knows nothing of
bundles.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from latentrt.runtime.backends.trt.library import TrtLibrary
from latentrt.runtime.errors import BackendError, ExportError
from latentrt.runtime.files import written_whole
from latentrt.runtime.gpu.device import Device

from .trt_options import BuildOptions, checked_options, set_options

logger = logging.getLogger(__name__)

WIDEST_FUSED = 256  # channels of an attention head, a multiple of 8

Progress = Callable[[str, float], object]
Shapes = Mapping[str, Sequence[Sequence[int]]]
T = TypeVar("T")


class Serialized(NamedTuple):
    """An engine, and the library's text about its layers, which `layers_from_text` reads; "" if it logged none."""

    engine: bytes
    layers: str


class TrtBuilder(TrtLibrary):
    """The installed TensorRT or TensorRT for RTX, with or without a GPU."""

    def __init__(self, backend: str, devices: Sequence[Device]) -> None:
        """Load a library; raises `BackendError` if it is not installed or needs a GPU.

        Args:
            backend: "tensorrt" or "tensorrt_rtx".
            devices: the visible GPUs; engines are built for the first.
        """
        super().__init__(backend)
        self.device = devices[0] if devices else None
        if backend == "tensorrt" and self.device is None:
            raise BackendError(
                "tensorrt needs the target GPU to time kernels, and no GPU is visible. Build on the target machine, or "
                "anywhere with --backend tensorrt_rtx --compute-capability 8.9"
            )

    def check(self, options: BuildOptions) -> BuildOptions:
        """The options with defaults filled in; raises `InputError` or `BackendError` for unsupported ones."""
        return checked_options(self, self.device, options)

    def runs_on(self, options: BuildOptions) -> tuple[str, ...]:
        """Compute capabilities of the GPUs that run an engine built with these options, which `check` returned."""
        own = () if self.device is None else (self.device.compute_capability,)
        if self.backend == "tensorrt_rtx":
            return own if options.compute_capabilities == ("current",) else options.compute_capabilities
        return ("8.0+",) if options.hardware_compatible == "ampere_plus" else own

    def engine_from_onnx(
        self,
        onnx: Path,
        shapes: Shapes,
        options: BuildOptions,
        *,
        refittable_weights: Sequence[str] = (),
        strict_nans: bool = False,
        fused_attention: bool = False,
        timing_cache: Path | None = None,
        progress: Progress = lambda _phase, _share: None,
    ) -> Serialized:
        """Build an engine.

        Args:
            shapes: input name -> minimum, optimum, maximum shape.
            options: as `check` returned them.
            refittable_weights: initializers that may change, if `options.refittable`.
            strict_nans: preserve NaNs, which the library may otherwise optimize away.
            fused_attention: do not let the library compute attention with all scores in memory, where it can.
            timing_cache: file that keeps kernel timings between builds; created if missing.
            progress: called with the current phase and the completed fraction.

        Raises `ExportError` with the library's last errors. An interrupt cancels the build.
        """
        self.forget_errors()
        builder = self.trt.Builder(self.log)
        network = builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.log)  # owns weights that the network refers to
        self._parse(parser, onnx)
        config = builder.create_builder_config()
        self._set_shapes(builder, network, config, shapes)
        set_options(self, config, options)
        if strict_nans:
            config.set_flag(self.trt.BuilderFlag.STRICT_NANS)
        if options.refittable:
            self._mark_refittable(network, onnx, refittable_weights)
        fused = self._decompose_attention(network, but_for_fused=fused_attention)
        cache = self._timing_cache(config, timing_cache)

        def built() -> tuple[Any, str]:
            config.progress_monitor = monitor = _monitor(self.trt, progress)
            return _in_background(
                lambda: (builder.build_serialized_network(network, config), self.take_layers()), monitor
            )

        serialized, layers = built()
        if serialized is None and fused:
            logger.warning(
                "%s %s has no fused kernel for attention of %s: scores take memory that grows with the square of the "
                "image (%s). TensorRT 11.4 and later has them",
                *(self.backend, self.version, onnx.name, self.last_errors()),
            )
            self.forget_errors()
            self._decompose_attention(network)
            serialized, layers = built()
        if serialized is None:
            raise self._error("build", onnx, self.last_errors())
        if cache is not None and timing_cache is not None:
            try:
                with written_whole(timing_cache) as file:
                    file.write_bytes(memoryview(config.get_timing_cache().serialize()))
            except OSError as error:  # only costs time
                logger.info("kernel timings could not be saved: %s", error)
        return Serialized(bytes(memoryview(serialized)), layers)

    def _parse(self, parser: Any, onnx: Path) -> None:
        if not parser.parse_from_file(str(onnx)):
            errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._error("read", onnx, " ".join("; ".join(errors).split()))

    def _mark_refittable(self, network: Any, onnx: Path, weights: Sequence[str]) -> None:
        for name in weights:
            if not network.mark_weights_refittable(name):
                raise ExportError(f"{self.backend} {self.version} cannot make {name!r} of {onnx.name} refittable")

    def _error(self, verb: str, onnx: Path, reason: str) -> ExportError:
        return ExportError(f"{self.backend} {self.version} cannot {verb} {onnx.name}: {reason}")

    def _set_shapes(self, builder: Any, network: Any, config: Any, shapes: Shapes) -> None:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            least, best, most = shapes[tensor.name]
            profile.set_shape(tensor.name, least, best, most)
            # Static dimensions become part of the network, so that the library can simplify the graph with them.
            tensor.shape = [low if low == high else -1 for low, high in zip(least, most, strict=True)]
        config.add_optimization_profile(profile)

    def _decompose_attention(self, network: Any, *, but_for_fused: bool = False) -> int:
        """Allow attention without a fused kernel, as in float32 or with a VAE's 512 channels; else the build fails.

        With `but_for_fused`, not for heads whose width fused kernels have; returns the number of those.
        """
        fused = 0
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            if layer.type == getattr(self.trt.LayerType, "ATTENTION_INPUT", None):
                layer.__class__ = self.trt.IAttentionInputLayer
                width = layer.get_input(0).shape[-1]
                layer.attention.decomposable = not (but_for_fused and width <= WIDEST_FUSED and width % 8 == 0)
                fused += not layer.attention.decomposable
        return fused

    def _timing_cache(self, config: Any, file: Path | None) -> Any:
        # TensorRT for RTX selects kernels on the user's machine and has no timings here.
        if file is None or self.device is None or self.backend != "tensorrt":
            return None
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache


def _in_background(build: Callable[[], T], monitor: Any) -> T:
    """Run a build on another thread, so that an interrupt reaches this one and cancels the build."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        finally:
            monitor.cancelled = True  # no effect once the build has finished


def _monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that reports the completed fraction; a nested phase takes one step of its parent."""

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
            # Never decreases: a finished phase counts for its parent only at the parent's next step.
            self._share = max(self._share, share)
            progress(phase, self._share)

    return Monitor()
