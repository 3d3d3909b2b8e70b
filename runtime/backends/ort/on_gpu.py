"""The ONNX Runtime backend for NVIDIA GPUs, with the whole loop on the device.

Graphs that `latentrt build --backend onnxruntime` rewrote are preferred over the exported ones.

All sessions run on one stream that this backend owns, so that no synchronisation is needed between their work and the
copies of the loop. ONNX Runtime itself captures `denoise` as a CUDA graph, once per set of buffers; all captures share
its memory, which is safe on one stream. A capture belongs to the thread that made it, and takes in everything that
comes to the stream meanwhile, so one thread of the backend's own does all the work.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, Layers, NewWeights
from latentrt.runtime.backends.engine_cache import EngineCache
from latentrt.runtime.backends.engine_fit import uses_tf32
from latentrt.runtime.bundle import AnyBundle, EngineList, Sizes, shape_at
from latentrt.runtime.errors import BackendError, OutOfMemoryError
from latentrt.runtime.gpu.device import Device, DeviceMemory, Stream, device_at
from latentrt.runtime.gpu.engine import Fitted
from latentrt.runtime.gpu.one_shot import GpuEngine, OneShot, run_in_pieces
from latentrt.runtime.gpu.recording import no_recording, recording
from latentrt.runtime.gpu.threads import OnOwnThread
from latentrt.runtime.loop.gpu import GpuSlots, powers_of_two_to
from latentrt.runtime.loop.gpu_nets import GpuNet, gpu_net
from latentrt.runtime.loop.gpu_pool import WEIGHTS_IN_USE, LentSlots, SlotPool
from latentrt.runtime.loop.tables import TimeFeatures, time_graph
from latentrt.runtime.protocols import Bucket

from .built_graphs import BuiltGraphs
from .session import GraphFile, cuda_options, new_session, ort_values

logger = logging.getLogger(__name__)

CAPTURED = "denoise"  # the only graph that runs often enough
NO_CAPTURE = "-1"


class _CaptureError(BackendError):
    """A session was loaded for capture, and its first run failed."""


class OrtCudaBackend:
    """Sessions of one bundle on one GPU, created on first use and kept."""

    def __init__(
        self,
        bundle: AnyBundle,
        engines: EngineList,
        *,
        device_index: int = 0,
        beside: "OrtCudaBackend | None" = None,
    ) -> None:
        """Raises `BackendError` if CUDA cannot be used here.

        Args:
            beside: the backend of a checkpoint whose loop runs this control bundle: both use its stream and thread, as
                a session runs only on the stream that it was created with.
        """
        import onnxruntime

        self._device = device_at(device_index, "onnxruntime-cuda")
        onnxruntime.preload_dlls()  # finds the CUDA libraries installed by pip
        self._bundle, self._graphs = bundle, BuiltGraphs(bundle, engines, "cuda")
        self._captures = True
        self._beside = beside
        self.nets: dict[str, OrtCudaBackend] = {}
        self._on: OnOwnThread = OnOwnThread(device_index) if beside is None else beside._on
        self._engines = EngineCache(self._make, graph_of=str)
        of_time = time_graph(bundle.manifest.graphs)
        self._features = TimeFeatures(lambda graph, inputs: self._on(self._run, graph, inputs), of_time)
        self._slots = SlotPool(self._new_slots, self._on, self._release, f"{bundle.path} on onnxruntime-cuda")
        self._stream: Stream = self._on(Stream) if beside is None else beside._stream
        self._one_shot = OneShot(self._stream)
        if beside is not None:
            return
        try:
            self._on(self._engines.get, "time")  # a small graph, so that missing libraries are found now
        except BackendError:
            self.close()
            raise

    def add_net(self, name: str, bundle: AnyBundle, engines: EngineList) -> None:
        """Load a control bundle for the loop of this one; it is closed with it."""
        self.nets[name] = OrtCudaBackend(bundle, engines, device_index=self._device.index, beside=self)

    @property
    def name(self) -> str:
        """Library and device, such as "onnxruntime-cuda on NVIDIA H100"."""
        return f"onnxruntime-cuda on {self._device.name}"

    def engine(self, graph: str) -> GpuEngine:
        """The session of a graph, for host arrays."""
        return GpuEngine(self, self._bundle.graph(graph), graph)

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `GpuBackend.run`."""
        self._slots.require_open()
        return self._slots.retried(self._run, graph, inputs, layers)

    def _run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        return run_in_pieces(self, self._one_shot, graph, self._bundle.graph(graph), inputs, layers)

    def slots(self, bucket: Bucket, count: int) -> LentSlots:
        """See `Backend.slots`."""
        try:
            return self._slots.lend(bucket, count)
        except _CaptureError as error:
            logger.warning("%s is not captured as a CUDA graph, so each call takes more time: %s", CAPTURED, error)
        self._slots.free_idle()
        with self._slots.at_rest("a CUDA graph could not be captured: finish the other calls, then try again"):
            self._on(self._stop_capturing)
        return self._slots.lend(bucket, count)

    def _new_slots(self, bucket: Bucket, count: int) -> GpuSlots:
        """Slots whose largest batch is captured already, as a failure can be mended now but not in the loop."""
        graph = self._bundle.graph("denoise")
        nets = {name: found for name, net in self.nets.items() if (found := net.as_net())}
        slots = GpuSlots(self, graph, bucket, count, features=self._features, shared=self._stream, nets=nets)
        try:
            if self._captures:
                slots.warm_up()
        except BackendError as error:
            slots.close()
            if isinstance(error, OutOfMemoryError):
                raise
            raise _CaptureError(str(error)) from error
        return slots

    def as_net(self) -> GpuNet | None:
        """See `gpu_net`."""
        return gpu_net(self, self._bundle.manifest.graphs, self._features)

    def _stop_capturing(self) -> None:
        """Start anew on another stream, as a capture that failed leaves its stream unusable."""
        self._captures = False
        self._one_shot.clear()
        self._engines.drop(self._bundle.manifest.graphs)
        with suppress(BackendError):
            self._stream.close()
        self._stream = Stream()
        self._one_shot = OneShot(self._stream)
        for net in self.nets.values():
            net._follow(self._stream)

    def _follow(self, stream: Stream) -> None:
        """Go on with another stream; sessions are created anew."""
        self._one_shot.clear()
        self._engines.drop(self._bundle.manifest.graphs)
        self._stream, self._one_shot = stream, OneShot(stream)

    def batches(self, sizes: Sizes) -> Sequence[int]:
        """See `GpuBackend.batches`."""
        return powers_of_two_to(sizes["B"])

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:  # noqa: ARG002  # every size fits
        """See `GpuBackend.fitted`."""
        return Fitted(self._engines.get(graph), sizes)

    def _make(self, graph: str, weights: NewWeights) -> "CudaSession":
        return self._graphs.loaded(graph, lambda file: self._session(graph, weights, file))

    def _session(self, graph: str, weights: NewWeights, file: GraphFile) -> "CudaSession":
        captures = self._captures and graph == CAPTURED
        changed = weights.get(graph, {})
        try:
            return CudaSession(self._bundle, graph, self._stream, self._device, changed, file, captures=captures)
        except BackendError as error:
            if not captures:
                raise
            # Whatever the reason is, without capture the session may still load; if not, that error is the one to show.
            found = CudaSession(self._bundle, graph, self._stream, self._device, changed, file, captures=False)
            logger.warning("%s cannot be captured as a CUDA graph, so each call takes more time: %s", found, error)
            self._captures = False
            return found

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Recreates the changed sessions, as they keep converted copies of their weights."""
        with self._slots.at_rest(WEIGHTS_IN_USE):
            self._slots.free_idle()  # they are bound to the sessions
            self._on(self._replace, weights)

    def _replace(self, weights: NewWeights) -> None:
        self._one_shot.clear()
        for session in self._engines.replace(weights):
            session.close()
        self._features.clear()

    def close(self) -> None:
        """Free all memory; that of running calls when they end."""
        for net in self.nets.values():
            net.close()
        self._slots.close()

    def _release(self) -> None:
        def release() -> None:
            self._one_shot.clear()
            self._engines.close()
            if self._beside is None:
                self._stream.close()

        self._on(release)
        if self._beside is None:
            self._on.close()


class CudaSession:
    """A session on the current GPU; see `DeviceEngine`."""

    scratch_size = 0  # ONNX Runtime allocates its own

    def __init__(
        self,
        bundle: AnyBundle,
        graph: str,
        stream: Stream,
        device: Device,
        weights: Mapping[str, NDArray[Any]],
        file: GraphFile,
        *,
        captures: bool,
    ) -> None:
        self.spec = bundle.graph(graph)
        self.captures, self._device = captures, device
        self._stream = stream.handle
        self._path, self._weights = file.path, ort_values(weights)
        self._graph_ids = itertools.count(1)
        options = cuda_options(device, stream.handle, captures=captures, tf32=uses_tf32(bundle.manifest, graph))
        with no_recording():
            self._session: Any = new_session(file, "cuda", options, self._weights, spec=self.spec)

    def bind(self, sizes: Sizes, addresses: Mapping[str, int], scratch: DeviceMemory) -> "BoundSession":  # noqa: ARG002
        """See `DeviceEngine.bind`."""
        binding = self._session.io_binding()
        for bind, tensors in ((binding.bind_input, self.spec.inputs), (binding.bind_output, self.spec.outputs)):
            for tensor in tensors:
                known = DTYPES[tensor.dtype]
                dtype: Any = known.onnx if tensor.dtype == "bfloat16" else known.numpy  # numpy has no bfloat16
                bind(tensor.name, "cuda", self._device.index, dtype, shape_at(tensor, sizes), addresses[tensor.name])
        return BoundSession(self, binding, str(next(self._graph_ids)) if self.captures else NO_CAPTURE)

    def enqueue(self, binding: Any, graph_id: str, stream: int) -> None:
        """Enqueue the session; with a graph id, replay what the first run with it captured."""
        import onnxruntime

        if stream != self._stream:
            raise BackendError(f"{self} runs only on the stream that it was created with")
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", graph_id)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise BackendError(f"{self} failed: {error}") from error

    def close(self) -> None:
        """Free the memory."""
        self._session = None

    def __str__(self) -> str:
        return f"the onnxruntime session of {self._path.name}"


class BoundSession:
    """A session with its addresses, and the number of its captured graph; see `BoundEngine`."""

    def __init__(self, session: CudaSession, binding: Any, graph_id: str) -> None:
        self._session, self._binding, self._graph_id = session, binding, graph_id
        self._captured = False

    def __call__(self, stream: int) -> None:
        """See `BoundEngine`."""
        if self._captured:
            self._session.enqueue(self._binding, self._graph_id, stream)
            return
        with no_recording() if self._graph_id == NO_CAPTURE else recording():
            self._session.enqueue(self._binding, self._graph_id, stream)
        self._captured = self._graph_id != NO_CAPTURE

    def capturable(self, stream: int) -> bool:  # noqa: ARG002
        """See `BoundEngine`."""
        return False

    def close(self) -> None:
        """See `BoundEngine`. ONNX Runtime frees a captured graph with its session."""
        self._binding = None
