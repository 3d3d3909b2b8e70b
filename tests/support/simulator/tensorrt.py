"""The part of `tensorrt` and `tensorrt_rtx` that latentrt calls, for the simulated GPU.

A simulated plan names its ONNX file; its engine runs on ONNX Runtime in host memory. What TensorRT rejects is rejected
with a logged error; misuse that TensorRT would not notice raises a `Fault`.
"""

import ctypes
import enum
import itertools
import json
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx as real
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model

from latentrt.runtime.cpu import int8_overflows

from .cuda import Cuda
from .work import ALIGNMENT, GARBAGE, Fault, Work, alive

MAGIC = b"SIMULATED PLAN\n"
# Those of TensorRT 10; TensorRT 11 dropped the first three.
TACTICS = ["CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
SCRATCH = {"denoise": 3 << 20, "vae_decoder": 5 << 20}  # bytes; others take 1 MiB
BYTES = {real.DataType.FLOAT: 4, real.DataType.HALF: 2, real.DataType.BF16: 2}
NUMPY = {1: np.float32, 2: np.uint8, 6: np.int32, 7: np.int64, 10: np.float16}


def simulated_tensorrt(cuda: Cuda, name: str = "tensorrt_rtx", version: str = "1.7.1.116") -> ModuleType:
    """A module like `tensorrt` or `tensorrt_rtx`, on a simulated GPU."""
    trt: Any = ModuleType(name)
    trt.__version__, trt.cuda = version, cuda
    for kept in (
        "BuilderFlag", "ComputeCapability", "DataType", "DynamicShapesKernelSpecializationStrategy",
        "EngineInvalidityDiagnostics", "EngineValidity", "ExecutionContextAllocationStrategy",
        "HardwareCompatibilityLevel", "LayerType", "MemoryPoolType",
        "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TacticSource", "TensorIOMode",
        "TilingOptimizationLevel",
    ):  # fmt: skip
        setattr(trt, kept, getattr(real, kept))
    if name == "tensorrt" and version.startswith("10."):
        trt.TacticSource = enum.IntEnum("TacticSource", TACTICS, start=0, module=name)
    trt._milliseconds = itertools.cycle((3.0, 1.0, 2.0))  # of a run of each engine that is built
    trt.ILogger, trt.IProgressMonitor = real.ILogger, real.IProgressMonitor
    for kind in (
        Builder, OnnxParser, Runtime, ICudaEngine, IExecutionContext, IRuntimeConfig, Refitter, OnnxParserRefitter,
        Weights,
    ):  # fmt: skip
        setattr(trt, kind.__name__, type(kind.__name__, (kind,), {"trt": trt}))
    return trt


def _error(log: Any, message: str) -> None:
    log.log(real.ILogger.Severity.ERROR, message)


# --- building -----------------------------------------------------------------------------------------------------


class Builder:
    trt: Any

    def __init__(self, log: Any) -> None:
        self._log = log

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << int(real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition()

    def create_builder_config(self) -> "IBuilderConfig":
        return IBuilderConfig()

    def create_optimization_profile(self) -> "IOptimizationProfile":
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if not config.profiles or set(config.profiles[0].shapes) != set(network.inputs):
            _error(self._log, "a profile must have all inputs")
            return None
        if config.timing_cache is not None:
            config.timing_cache.content += b"timed "
        if config.profiling_verbosity == real.ProfilingVerbosity.DETAILED:
            self._log.log(real.ILogger.Severity.VERBOSE, _layers(network.onnx))
        stripped = real.BuilderFlag.STRIP_PLAN in config.flags
        graph = Path(network.onnx).stem
        return (
            MAGIC
            + json.dumps(
                {
                    "onnx": str(Path(network.onnx).resolve()),
                    "version": self.trt.__version__,
                    "profile": config.profiles[0].shapes,
                    "scratch": SCRATCH.get(graph, 1 << 20),
                    # Timings of an earlier build lead to the same kernels again.
                    "milliseconds": 3.0 if config.timing_cache is not None else next(self.trt._milliseconds),
                    "refittable": sorted(network.refittable),
                    "stripped": stripped,
                    "host_code": real.BuilderFlag.VERSION_COMPATIBLE in config.flags,
                }
            ).encode()
        )


def _layers(path: str) -> str:
    """Each node as a layer, in the words of the library."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    line = (
        "Name: {0}, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: {1}, StreamId: 0, Metadata: "
    )
    return "Layers:\n" + "\n".join(
        line.format(node.name, node.op_type) + f"[ONNX Layer: {node.name}]" for node in nodes
    )


class INetworkDefinition:
    num_layers = 0

    def __init__(self) -> None:
        self.onnx, self.inputs, self.initializers = "", {}, set()
        self.refittable: set[str] = set()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        return list(self.inputs.values())[index]

    def mark_weights_refittable(self, name: str) -> bool:
        self.refittable.add(name)
        return name in self.initializers


class OnnxParser:
    def __init__(self, network: INetworkDefinition, log: Any) -> None:
        self._network, self._errors = network, [str]

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        self._network.onnx = path
        self._network.inputs = {i.name: SimpleNamespace(name=i.name, shape=None) for i in graph.input}
        self._network.initializers = {i.name for i in graph.initializer}
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(best), list(most)]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: set[Any] = set()
        self.profiles: list[IOptimizationProfile] = []
        self.timing_cache: ITimingCache | None = None
        self.limits: dict[Any, int] = {}
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = real.HardwareCompatibilityLevel.NONE
        self.num_compute_capabilities = 0
        self.profiling_verbosity = real.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.tiling_optimization_level = real.TilingOptimizationLevel.NONE
        self.l2_limit_for_tiling = 0
        self.avg_timing_iterations = 1
        self.tactic_sources: int | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_tactic_sources(self, sources: int) -> bool:
        self.tactic_sources = sources
        return True

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        return index < self.num_compute_capabilities

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, content: bytes) -> ITimingCache | None:
        return None if content.startswith(b"damaged") else ITimingCache(content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.timing_cache


# --- running ------------------------------------------------------------------------------------------------------


class Runtime:
    trt: Any

    def __init__(self, log: Any) -> None:
        self._log, self.engine_host_code_allowed = log, False

    invalid = 0  # what is wrong with engines, as bits of EngineInvalidityDiagnostics

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return (real.EngineValidity.INVALID if self.invalid else real.EngineValidity.VALID), self.invalid

    def deserialize_cuda_engine(self, plan: bytes) -> "ICudaEngine | None":
        if not plan.startswith(MAGIC):
            _error(self._log, "the plan is damaged")
            return None
        facts = json.loads(plan[len(MAGIC) :])
        if facts["host_code"] and not self.engine_host_code_allowed:
            _error(self._log, "the plan has host code, which is not allowed")
            return None
        engine: ICudaEngine = self.trt.ICudaEngine(facts, self._log)
        engine.device = self.trt.cuda.device
        # Freeing it would break a capture of the thread that frees it.
        weakref.finalize(engine, self.trt.cuda.breaks_capture)
        return engine


def _options() -> onnxruntime.SessionOptions:
    """A GPU's 8-bit products do not overflow, as those of some CPUs do."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if int8_overflows():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


@cache
def _session(path: str, stamp: float) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])


class ICudaEngine:
    trt: Any
    device = 0

    def __init__(self, facts: dict[str, Any], log: Any) -> None:
        self._facts, self._log = facts, log
        graph = onnx.load(facts["onnx"], load_external_data=False).graph
        sides = ((graph.input, real.TensorIOMode.INPUT), (graph.output, real.TensorIOMode.OUTPUT))
        self._tensors = {tensor.name: (tensor, mode) for side, mode in sides for tensor in side}
        self._new_weights: dict[str, NDArray[Any]] = {}
        self._session = None if facts["stripped"] else _session(facts["onnx"], Path(facts["onnx"]).stat().st_mtime)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][1]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        assert profile_index == 0
        return int(self._facts["scratch"])

    def create_runtime_config(self) -> "IRuntimeConfig":
        config: IRuntimeConfig = self.trt.IRuntimeConfig()
        return config

    def create_execution_context(self, config: "IRuntimeConfig") -> "IExecutionContext":
        if config.strategy != real.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Fault("this context would allocate its own memory")
        self._check_device("a context is made")
        context: IExecutionContext = self.trt.IExecutionContext(self, self._log)
        weakref.finalize(context, self.trt.cuda.breaks_capture)
        if config.get_runtime_cache() is not None:
            config.get_runtime_cache().content += b"kernels "
        return context

    def _check_device(self, what: str) -> None:
        current = self.trt.cuda.device
        if current != self.device:
            raise Fault(f"{what} on device {current}, but the engine is on device {self.device}")

    def _compute(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self._session is None:
            raise Fault("a weight-stripped engine was run before its refit")
        outputs: list[NDArray[Any]] = self._session.run(None, inputs)
        return outputs

    def _refit(self, weights: dict[str, NDArray[Any]]) -> None:
        self._new_weights |= weights
        model = onnx.load(self._facts["onnx"], load_external_data=False)
        load_external_data_for_model(model, str(Path(self._facts["onnx"]).parent))
        for tensor in model.graph.initializer:
            if tensor.name in self._new_weights:
                changed = self._new_weights[tensor.name].reshape(tuple(tensor.dims))
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), _options())


class IRuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = bytes(content)
        return True

    def serialize(self) -> bytes:
        return self.content


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = real.ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = real.DynamicShapesKernelSpecializationStrategy.LAZY
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache


class IExecutionContext:
    trt: Any
    capturable = True

    def __init__(self, engine: ICudaEngine, log: Any) -> None:
        self.engine, self._log = engine, log
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._shapes_set = 0  # how often shapes were changed
        self._ran_with = -1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine._facts["profile"][name]
        if len(shape) != len(least) or any(not a <= s <= b for a, s, b in zip(least, shape, most, strict=True)):
            _error(self._log, f"{name}: {shape} is not within {least} and {most}")
            return False
        self._shapes[name] = tuple(shape)
        self._shapes_set += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine._tensors or address % ALIGNMENT:
            _error(self._log, f"{name}: unknown, or {address:#x} is not aligned")
            return False
        self._addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        if size < self.engine._facts["scratch"]:
            raise Fault("scratch memory is too small")
        self._scratch = (address, self.engine._facts["scratch"])

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        cuda: Cuda = self.trt.cuda
        self.engine._check_device("a context runs")
        tensors = self.engine._tensors
        missing = [n for n, (_, m) in tensors.items() if m == real.TensorIOMode.INPUT and n not in self._shapes]
        missing += [name for name in tensors if name not in self._addresses]
        if missing or not self._scratch[0]:
            _error(self._log, f"without shape, address or scratch memory: {missing}")
            return False
        shapes = self._all_shapes()
        ranges = {n: (self._addresses[n], _bytes_of(t, shapes[n])) for n, (t, _) in tensors.items()}
        reads = [ranges[name] for name in self._shapes]
        writes = [at for name, at in ranges.items() if name not in self._shapes]
        if any(a < d + e and d < a + b for a, b in reads for d, e in writes):
            raise Fault("an engine writes to its own input")
        if cuda._streams[stream].recording is not None and self._ran_with != self._shapes_set:
            raise Fault("captured before it ran once at these shapes")
        self._ran_with = self._shapes_set
        self_, engine_, at, scratch = weakref.ref(self), weakref.ref(self.engine), self._shapes_set, self._scratch

        def check() -> None:
            context = alive(self_, "a captured context")
            if context._shapes_set != at:
                raise Fault("a captured graph is launched after its context's shapes were changed")

        def compute() -> None:
            engine = alive(engine_, "an engine")
            inputs = {
                name: _array(cuda, tensors[name][0], shapes[name], ranges[name]) for name in shapes if name in inputs_
            }
            cuda.view(scratch).fill(GARBAGE)  # overwrites what other contexts left there
            for name, array in zip(outputs_, engine._compute(inputs), strict=True):
                if array.shape != shapes[name]:
                    raise Fault(f"{name} has shape {array.shape}; expected {shapes[name]}")
                cuda.view(ranges[name])[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        inputs_, outputs_ = list(self._shapes), [n for n in tensors if n not in self._shapes]
        cuda.enqueue(
            stream,
            Work(
                f"an engine of {outputs_[0]}",
                reads,
                [*writes, scratch],
                compute,
                check,
                self.engine,
                self.engine._facts["milliseconds"],
            ),
        )
        return True

    def _all_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes including outputs, from the names of dimensions in the ONNX file."""
        sizes: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for text, size in zip(_dimensions(self.engine._tensors[name][0]), shape, strict=True):
                sizes[text] = size
                *factors, symbol = text.split("*")
                if not symbol.isdigit() and all(map(str.isdigit, factors)):
                    sizes[symbol] = size // int(np.prod([int(f) for f in factors] or [1]))
        return {
            name: self._shapes.get(name) or tuple(_size(text, sizes) for text in _dimensions(tensor))
            for name, (tensor, _) in self.engine._tensors.items()
        }


def _size(text: str, sizes: Mapping[str, int]) -> int:
    """A dimension such as "8", "h", "B*G" or "h/2", which is rounded up."""
    if text in sizes:
        return sizes[text]
    if "/" in text:
        symbol, divisor = text.split("/")
        return -(-sizes[symbol] // int(divisor))
    return int(np.prod([int(sizes.get(part, part)) for part in text.split("*")]))


def _dimensions(tensor: Any) -> list[str]:
    return [(d.dim_param or str(d.dim_value)).replace(" ", "") for d in tensor.type.tensor_type.shape.dim]


def _bytes_of(tensor: Any, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(NUMPY[tensor.type.tensor_type.elem_type]).itemsize


def _array(cuda: Cuda, tensor: Any, shape: tuple[int, ...], at: tuple[int, int]) -> NDArray[Any]:
    return cuda.view(at).view(NUMPY[tensor.type.tensor_type.elem_type]).reshape(shape).copy()


# --- new weights --------------------------------------------------------------------------------------------------


class Weights:
    def __init__(self, dtype: Any, ptr: int, count: int) -> None:
        memory = (ctypes.c_uint8 * (count * BYTES[dtype])).from_address(ptr)
        self.array = np.ctypeslib.as_array(memory).view({2: np.float16, 4: np.float32}[BYTES[dtype]])


class Refitter:
    trt: Any

    def __init__(self, engine: ICudaEngine, log: Any) -> None:
        self._engine, self._log, self._weights = engine, log, {}

    def set_named_weights(self, name: str, weights: Any) -> bool:
        if name not in self._engine._facts["refittable"]:
            _error(self._log, f"{name} cannot be refitted")
            return False
        self._weights[name] = weights.array
        return True

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        self._engine._check_device("an engine is refitted")
        if self.trt.cuda.is_busy(self._engine):
            raise Fault("an engine is refitted while it runs")
        self._engine._refit({name: array.copy() for name, array in self._weights.items()})
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, log: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        return Path(path).resolve() == Path(self._refitter._engine._facts["onnx"])
