"""The ONNX Runtime backend for NVIDIA GPUs, with the whole loop on the device.

Graphs that `latentrt build --backend onnxruntime` rewrote are preferred over the exported ones.

All sessions run on one stream that this backend owns, so that no synchronisation is needed between their work and the
copies of the loop. ONNX Runtime itself captures `denoise` as a CUDA graph, once per set of buffers; all captures share
its memory, which is safe on one stream.
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

CAPTURED = "denoise"  # the only graph that runs often enough
NO_CAPTURE = "-1"


class OrtCudaBackend:
    """Sessions of one bundle on one GPU, created on first use and kept."""

    def __init__(self, bundle: Bundle, engines: EngineList, *, device_index: int = 0) -> None:
        """Raises `BackendError` if CUDA cannot be used here."""
        import onnxruntime

        self._device = device_at(device_index, "onnxruntime-cuda")
        onnxruntime.preload_dlls()  # finds the CUDA libraries installed by pip
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
        """Library and device, such as "onnxruntime-cuda on NVIDIA H100"."""
        return f"onnxruntime-cuda on {self._device.name}"

    def engine(self, graph: str) -> GpuEngine:
        """The session of a graph, for host arrays."""
        return GpuEngine(self, self._bundle.graph(graph), graph)

    def denoiser(self, bucket: Bucket) -> GpuDenoiser:
        """A denoiser for these sizes."""
        return GpuDenoiser(self, bucket)

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:  # noqa: ARG002  # every size fits
        """The session of a graph, created on first use."""
        with self._loading:
            self.lanes.require_open()
            if graph not in self._loaded:
                self._loaded[graph] = self._session(graph, self._weights)
            return Fitted(self._loaded[graph], sizes)

    def _session(self, graph: str, weights: NewWeights) -> "CudaSession":
        facts = (self._bundle, graph, self._stream, self._device.index, weights.get(graph, {}))
        return self._graphs.loaded(graph, lambda built: CudaSession(*facts, built=built))

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Recreates the changed sessions, as they keep converted copies of their weights."""
        with self.lanes.at_rest(), self._loading:
            changed = {*self._weights, *weights} & {*self._loaded}
            rebuilt = {graph: self._session(graph, weights) for graph in changed}
            for graph in rebuilt:
                self.lanes.forget(self._loaded[graph])
            self._loaded |= rebuilt
            self._weights = weights

    def close(self) -> None:
        """Free all memory; that of running calls when they end."""
        self.lanes.close()

    def _release(self) -> None:
        with self._loading:
            self._loaded.clear()
            self._stream.close()


class CudaSession:
    """A session whose tensors are bound to given addresses; see `lane.DeviceEngine`."""

    captures_itself = True
    scratch_size = 0  # ONNX Runtime allocates its own

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
        """`built` is a rewritten graph whose external data is in the bundle; None is the exported graph."""
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
            logger.warning("%s cannot be captured as a CUDA graph, so each call takes more time: %s", self, error)
            self._captures = False
            self._session = self._new()

    def _new(self) -> Any:
        options = {
            "device_id": str(self.device_index),
            "user_compute_stream": str(self._stream.handle),
            "enable_cuda_graph": str(int(self._captures)),
            "use_tf32": "0",  # as in the TensorRT engines
        }
        return new_session(self._path, "cuda", options, self._weights, data_folder=self._data_folder)

    def new_context(self) -> "SessionContext":
        """Shapes and addresses for one use of the session."""
        return SessionContext(self)

    def execute(self, context: "SessionContext", stream: int) -> None:
        """Enqueue the session on the stream; the first run with new addresses also captures it."""
        import onnxruntime

        if stream != self._stream.handle:
            raise BackendError(f"{self} runs only on the stream it was created with")
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with self._lock:
            if context.binding is None:
                context.bind(self._session.io_binding())
                context.graph_id = str(next(self._graph_ids)) if self._captures else NO_CAPTURE
            options.add_run_config_entry("gpu_graph_id", context.graph_id)
            try:
                self._session.run_with_iobinding(context.binding, options)
            except Exception as error:  # onnxruntime's errors have no common base class
                raise BackendError(f"{self} failed: {error}") from error

    def last_errors(self) -> str:
        """Always the same text: ONNX Runtime raises its errors, see `execute`."""
        return "onnxruntime gave no reason"

    def save_cache(self) -> None:
        """Nothing to save."""

    def __str__(self) -> str:
        return f"the onnxruntime session of {self._path.name}"


class SessionContext:
    """Shapes and addresses of a session's tensors, with the method names of TensorRT's execution context."""

    def __init__(self, session: CudaSession) -> None:
        self._spec, self._device_index = session.spec, session.device_index
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.binding: Any = None
        self.graph_id = NO_CAPTURE

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input."""
        self._shapes[name] = shape
        self.binding = None
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the device address of a tensor."""
        self._addresses[name] = address
        self.binding = None
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Ignored: ONNX Runtime allocates its own scratch memory."""

    def bind(self, binding: Any) -> None:
        """Bind all tensors to their addresses."""
        sizes = sizes_of_inputs(self._spec, self._shapes)
        for bind, tensors in ((binding.bind_input, self._spec.inputs), (binding.bind_output, self._spec.outputs)):
            for tensor in tensors:
                known = DTYPES[tensor.dtype]
                dtype: Any = known.onnx if tensor.dtype == "bfloat16" else known.numpy  # numpy has no bfloat16
                shape, address = shape_at(tensor, sizes), self._addresses[tensor.name]
                bind(tensor.name, "cuda", self._device_index, dtype, shape, address)
        self.binding = binding
