"""ONNX Runtime on an NVIDIA GPU: a bundle's ONNX files, with the whole loop on the device.

Where `latentrt build --backend onnxruntime` has put a graph into a form that is faster here, that form is loaded.

All sessions compute on one stream of ours, so that nothing waits between their work and our copies. ONNX Runtime
captures `denoise` as a CUDA graph itself, once for each set of buffers; the memory that it computes in is shared by all
of them, which is safe on one stream.
"""

import itertools
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, NewWeights
from latentrt.runtime.bundle import Bundle, EngineList, Sizes, shape_at, sizes_of_inputs
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.device import Stream, device_at
from latentrt.runtime.gpu.engine import Fitted, GpuEngine
from latentrt.runtime.gpu.lane import Lane
from latentrt.runtime.gpu.lane_pool import LanePool
from latentrt.runtime.loop.gpu import GpuDenoiser
from latentrt.runtime.protocols import Bucket

from .built_graphs import BuiltGraphs
from .session import new_session, ort_values

logger = logging.getLogger(__name__)

CAPTURED = "denoise"  # the one graph that runs often enough
NO_CAPTURE = "-1"


class OrtCudaBackend:
    """Sessions of one bundle on one GPU; made on first use, and kept."""

    def __init__(self, bundle: Bundle, engines: EngineList, *, device_index: int = 0) -> None:
        """Raises `BackendError` with the reason, and what to do, where CUDA cannot be used here."""
        import onnxruntime

        self._device = device_at(device_index, "onnxruntime-cuda")
        onnxruntime.preload_dlls()  # finds the CUDA libraries that pip has installed
        self._bundle, self._graphs = bundle, BuiltGraphs(bundle, engines, "cuda")
        self._stream = Stream(device_index)
        self._weights: NewWeights = {}
        self._loaded: dict[str, CudaSession] = {}
        self._loading = threading.Lock()
        self.lanes = LanePool(
            lambda: Lane(device_index, self._stream), self._release, f"{bundle.path} on onnxruntime-cuda"
        )

    @property
    def name(self) -> str:
        """Such as "onnxruntime-cuda on NVIDIA H100"."""
        return f"onnxruntime-cuda on {self._device.name}"

    def engine(self, graph: str) -> GpuEngine:
        """The session of a graph, for host arrays."""
        return GpuEngine(self, self._bundle.graph(graph), graph)

    def denoiser(self, bucket: Bucket) -> GpuDenoiser:
        """A denoiser for these sizes."""
        return GpuDenoiser(self, bucket)

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:  # noqa: ARG002  # every size fits
        """The session of a graph, made on first use."""
        with self._loading:
            self.lanes.require_open()
            if graph not in self._loaded:
                self._loaded[graph] = self._session(graph, self._weights)
            return Fitted(self._loaded[graph], sizes)

    def _session(self, graph: str, weights: NewWeights) -> "CudaSession":
        facts = (self._bundle, graph, self._stream, self._device.index, weights.get(graph, {}))
        return self._graphs.loaded(graph, lambda built: CudaSession(*facts, built=built))

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`: sessions are made anew, as they keep copies of their weights in another form."""
        with self.lanes.at_rest(), self._loading:
            changed = {*self._weights, *weights} & {*self._loaded}
            rebuilt = {graph: self._session(graph, weights) for graph in changed}
            for graph in rebuilt:
                self.lanes.forget(self._loaded[graph])
            self._loaded |= rebuilt
            self._weights = weights

    def close(self) -> None:
        """Give all memory back; that of calls under way, as soon as they end."""
        self.lanes.close()

    def _release(self) -> None:
        with self._loading:
            self._loaded.clear()
            self._stream.close()


class CudaSession:
    """A session whose tensors lie where we say; see `lane.DeviceEngine`."""

    captures_itself = True
    scratch_size = 0  # ONNX Runtime has its own

    def __init__(
        self,
        bundle: Bundle,
        graph: str,
        stream: Stream,
        device_index: int,
        weights: Mapping[str, NDArray[Any]],
        *,
        built: Path | None = None,
    ) -> None:
        """`built` is the graph in ONNX Runtime's own form, with its data in the bundle; None is the bundle's own."""
        self.spec = bundle.graph(graph)
        self._stream, self.device_index = stream, device_index
        self._path, self._weights = built or bundle.file(self.spec.file), ort_values(weights)
        self._data_folder = None if built is None else bundle.path
        self._lock = threading.Lock()  # a session that captures serves one thread at a time
        self._graph_ids = itertools.count(1)
        self._captures = graph == CAPTURED
        stream.make_current()
        try:
            self._session = self._new()
        except BackendError as error:
            if not self._captures or "graph" not in str(error).rpartition(self._path.name)[2].lower():
                raise
            logger.warning("%s cannot be captured as a CUDA graph, so each call costs more time: %s", self, error)
            self._captures = False
            self._session = self._new()

    def _new(self) -> Any:
        options = {
            "device_id": str(self.device_index),
            "user_compute_stream": str(self._stream.handle),
            "enable_cuda_graph": str(int(self._captures)),
            "use_tf32": "0",  # as the engines of TensorRT are built
        }
        return new_session(self._path, "cuda", options, self._weights, data_folder=self._data_folder)

    def new_context(self) -> "SessionContext":
        """Shapes and addresses for one use of the session."""
        return SessionContext(self)

    def execute(self, context: "SessionContext", stream: int) -> None:
        """Put the session's work on the stream; the first time at new addresses, it is captured on the way."""
        import onnxruntime

        if stream != self._stream.handle:
            raise BackendError(f"{self} computes on its own stream only")
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with self._lock:
            if context.binding is None:
                context.bind(self._session.io_binding())
                context.graph_id = str(next(self._graph_ids)) if self._captures else NO_CAPTURE
            options.add_run_config_entry("gpu_graph_id", context.graph_id)
            try:
                self._session.run_with_iobinding(context.binding, options)
            except Exception as error:  # onnxruntime has no common base class of its errors
                raise BackendError(f"{self} failed: {error}") from error

    def last_errors(self) -> str:
        """ONNX Runtime raises its errors; see `execute`."""
        return "onnxruntime gave no reason"

    def save_cache(self) -> None:
        """There is none."""

    def __str__(self) -> str:
        return f"onnxruntime's session of {self._path.name}"


class SessionContext:
    """Shapes and addresses of a session's tensors, bound when it runs; named as TensorRT names these calls."""

    def __init__(self, session: CudaSession) -> None:
        self._spec, self._device_index = session.spec, session.device_index
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.binding: Any = None
        self.graph_id = NO_CAPTURE

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """The shape of an input."""
        self._shapes[name] = shape
        self.binding = None
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where a tensor lies on the GPU."""
        self._addresses[name] = address
        self.binding = None
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Nothing is computed in memory of ours."""

    def bind(self, binding: Any) -> None:
        """Bind all tensors where they lie."""
        sizes = sizes_of_inputs(self._spec, self._shapes)
        for bind, tensors in ((binding.bind_input, self._spec.inputs), (binding.bind_output, self._spec.outputs)):
            for tensor in tensors:
                known = DTYPES[tensor.dtype]
                dtype: Any = known.onnx if tensor.dtype == "bfloat16" else known.numpy  # numpy has no bfloat16
                shape, address = shape_at(tensor, sizes), self._addresses[tensor.name]
                bind(tensor.name, "cuda", self._device_index, dtype, shape, address)
        self.binding = binding
