"""An engine file loaded to a GPU with TensorRT or TensorRT for RTX."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import EngineRecord, Graph, Sizes, shape_at, sizes_text
from latentrt.runtime.errors import BackendError
from latentrt.runtime.files import cache_folder, written_whole
from latentrt.runtime.gpu.device import DeviceMemory

from .library import TrtLibrary

logger = logging.getLogger(__name__)


class LoadedEngine:
    """A deserialised engine; see `DeviceEngine`. Its contexts share its weights. Needs its GPU as the current one."""

    def __init__(
        self, library: TrtLibrary, record: EngineRecord, spec: Graph, serialized: bytes, device_name: str
    ) -> None:
        """The caller must have checked the hash of `serialized`: the library trusts it."""
        self.library, self.record, self.spec = library, record, spec
        self._cache_file = _cache_file(library, record, device_name)
        self._cache: Any = None
        self._cached: bytes | None = None
        trt = library.trt
        library.forget_errors()
        runtime = trt.Runtime(library.log)
        if record.host_code:  # only records that the caller trusts get here
            runtime.engine_host_code_allowed = True
        if (reason := library.why_invalid(runtime, serialized)) is not None:
            raise BackendError(f"{self} does not run on this machine: {reason}")
        self.engine: Any = runtime.deserialize_cuda_engine(serialized)
        if self.engine is None:
            raise BackendError(f"{self} cannot be loaded: {library.last_errors()}")
        self._runtime = runtime
        self._check_tensors()
        self.scratch_size = int(self.engine.get_device_memory_size_for_profile_v2(0))

    def _check_tensors(self) -> None:
        engine, mode = self.engine, self.library.trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {name: engine.get_tensor_mode(name) == mode.INPUT for name in names}
        inputs, outputs = ({spec.name for spec in side} for side in (self.spec.inputs, self.spec.outputs))
        if found != {name: name in inputs for name in inputs | outputs}:
            raise BackendError(f"{self} has tensors {', '.join(names)}, which are not those of {self.spec.file}")

    def refit_from(self, onnx: Path) -> None:
        """Fill a weight-stripped engine from the ONNX file that it was built from."""
        trt = self.library.trt
        refitter = trt.Refitter(self.engine, self.library.log)
        reader = trt.OnnxParserRefitter(refitter, self.library.log)
        if not reader.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
            raise BackendError(f"{self} could not be refitted with the weights of {onnx}: {self.library.last_errors()}")

    def refit(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Set new values of initializers, in their stored dtype; no context may be running."""
        trt, library = self.library.trt, self.library
        types = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "uint16": trt.DataType.BF16}
        library.forget_errors()
        refitter = trt.Refitter(self.engine, library.log)
        arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}  # kept alive until the refit
        for name, array in arrays.items():
            if not refitter.set_named_weights(
                name, trt.Weights(types[array.dtype.name], array.ctypes.data, array.size)
            ):
                raise BackendError(f"{self} rejected new values of {name}: {library.last_errors()}")
        if not refitter.refit_cuda_engine():
            missing = ", ".join(refitter.get_missing_weights()) or "none"
            raise BackendError(f"{self} could not be refitted: {library.last_errors()} (also needed: {missing})")

    def bind(self, sizes: Sizes, addresses: Mapping[str, int], scratch: DeviceMemory) -> "BoundContext":
        """See `DeviceEngine.bind`. TensorRT for RTX compiles kernels here."""
        context = self._new_context()
        for tensor in self.spec.inputs:
            self._require(context.set_input_shape(tensor.name, shape_at(tensor, sizes)), tensor.name)
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            self._require(context.set_tensor_address(tensor.name, addresses[tensor.name]), tensor.name)
        context.set_device_memory(scratch.address, scratch.size)
        return BoundContext(self, context)

    def _require(self, accepted: bool, tensor: str) -> None:
        if not accepted:
            raise BackendError(f"{self} rejected {tensor!r}: {self.library.last_errors()}")

    def _new_context(self) -> Any:
        """An execution context without its own device memory."""
        trt = self.library.trt
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.library.backend == "tensorrt_rtx":
            # A graph captured before lazy compilation had finished would keep using fallback kernels.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.set_runtime_cache(self._runtime_cache(config))
        context = self.engine.create_execution_context(config)
        if context is None:
            raise BackendError(f"{self} could not create an execution context: {self.library.last_errors()}")
        return context

    def _runtime_cache(self, config: Any) -> Any:
        """Compiled kernels, loaded from the user's cache folder if possible; losing them only costs time."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                self._cached = self._cache_file.read_bytes()
                self._cache.deserialize(self._cached)
            except OSError:
                pass
        return self._cache

    def save_cache(self) -> None:
        """Save newly compiled kernels in the user's cache folder."""
        if self._cache is None:
            return
        content = bytes(memoryview(self._cache.serialize()))
        if content == self._cached:
            return
        self._cached = content
        try:
            with written_whole(self._cache_file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            logger.info("compiled kernels could not be saved: %s", error)

    def close(self) -> None:
        """Free the weights; all contexts must be closed."""
        self._cache = self.engine = self._runtime = None

    def __str__(self) -> str:
        return f"the {self.record.backend} engine of {self.record.graph} for {sizes_text(self.record)}"


class BoundContext:
    """An execution context with its shapes and addresses; see `BoundEngine`."""

    def __init__(self, engine: LoadedEngine, context: Any) -> None:
        self._engine, self._context = engine, context
        self._ran = False

    def __call__(self, stream: int) -> None:
        """See `BoundEngine`."""
        self._engine.library.forget_errors()
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self._engine} failed: {self._engine.library.last_errors()}")
        if not self._ran:  # all kernels are compiled now
            self._ran = True
            self._engine.save_cache()

    def capturable(self, stream: int) -> bool:
        """See `BoundEngine`."""
        can = getattr(self._context, "is_stream_capturable", None)  # TensorRT always can, and lacks this method
        if can is None or can(stream):
            return True
        logger.warning("%s cannot be captured as a CUDA graph, so each call takes more host time", self._engine)
        return False

    def close(self) -> None:
        """See `BoundEngine`."""
        self._context = None


def _cache_file(library: TrtLibrary, record: EngineRecord, device_name: str) -> Path:
    key = hashlib.sha256(repr((library.version, device_name, record.file)).encode()).hexdigest()[:16]
    return cache_folder() / "kernels" / f"{record.graph}-{key}.cache"
