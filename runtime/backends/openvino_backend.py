"""The OpenVINO backend: compiles a bundle's ONNX files for the CPU.

`denoise` is compiled for each size of images, once for a single image and once for any number, and the last few are
kept; all other graphs are compiled once, with dynamic shapes.
docs/decisions/0010-openvino-on-cpus.md has the reasons.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Layers, NewWeights, with_layers
from latentrt.runtime.bundle import AnyBundle, Graph, TensorSpec, shape_at, sizes_of_inputs
from latentrt.runtime.cpu import int8_overflows
from latentrt.runtime.errors import BackendError
from latentrt.runtime.files import files_in_one_folder
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.loop.host_engine import Arrays, BoundCall, host_net
from latentrt.runtime.loop.tables import TimeFeatures
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.weights import to_float32

from .engine_cache import EngineCache
from .tensor_check import Found, require_tensors

if TYPE_CHECKING:
    import openvino

# Compiles of `denoise`; each holds another copy of the UNet's weights, in the layout of its kernels.
KEPT_SIZES = 2
_HALVES = {"f16": "float16", "bf16": "bfloat16"}
_DTYPES = {**_HALVES, "f32": "float32", "f64": "float64", "i64": "int64", "i32": "int32", "u8": "uint8"}


class _Key(NamedTuple):
    """A graph, and what it is compiled for: all sizes, or one bucket with any number of images or with one."""

    graph: str
    bucket: Bucket | None = None
    one_image: bool = False


def openvino_is_installed() -> bool:
    """Whether openvino can be found; does not import it, which takes half a second."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoBackend:
    """Compiled graphs of one bundle on the CPU."""

    name = "openvino-cpu"

    def __init__(self, bundle: AnyBundle, nets: "Mapping[str, OpenVinoBackend] | None" = None) -> None:
        """Reads all graphs and compiles a small one, so that problems are found now. Raises `BackendError`.

        Args:
            nets: backends of control bundles, by name; they are closed with this one.
        """
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                f"openvino cannot be imported ({error}): pip install 'latentrt[openvino]', or use another backend"
            ) from error
        self._bundle, self._core = bundle, openvino.Core()
        if "CPU" not in self._core.available_devices:
            raise BackendError("openvino has no plugin for this CPU: use backend='onnxruntime'")
        self._has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._models = {graph: self._read(graph) for graph in bundle.manifest.graphs}
        self._engines = EngineCache(self._make, graph_of=lambda key: key.graph, kept=KEPT_SIZES)
        self._features = TimeFeatures(lambda graph, inputs: self.engine(graph).run(inputs))
        self.nets = dict(nets or {})
        self._host_nets = {name: host_net(net) for name, net in self.nets.items()}
        if "time" in self._models:
            self.engine("time")

    def engine(self, graph: str) -> "OpenVinoEngine":
        """The engine of a graph for all sizes, created on first use and kept."""
        return self._engines.get(_Key(graph))

    def slots(self, bucket: Bucket, count: int) -> HostSlots:
        """See `Backend.slots`."""
        denoise = self._engines.get(_Key("denoise", bucket, one_image=count == 1))
        # Compiled for this number of groups.
        return HostSlots(
            bucket,
            count,
            denoise=denoise,
            engine=self.engine,
            features=self._features,
            any_groups=False,
            nets=self._host_nets,
        )

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Recompiles the changed graphs, as compilation converts the weights."""
        self._engines.replace(weights)
        self._features.clear()

    def close(self) -> None:
        """Free all memory."""
        for net in self.nets.values():
            net.close()
        self._engines.close()
        self._models.clear()

    def _read(self, graph: str) -> "openvino.Model":
        path = self._bundle.file(self._bundle.graph(graph).file)
        try:
            with files_in_one_folder(path, Path(f"{path}.data")) as folder:
                model = self._core.read_model(folder / path.name)
            found = [[_found(port) for port in side] for side in (model.inputs, model.outputs)]
        except Exception as error:  # openvino's errors have no common base class
            raise BackendError(f"openvino cannot read {path}: {_reason(error)}") from error
        require_tensors(self._bundle.graph(graph), *found)
        return model

    def _make(self, key: _Key, weights: NewWeights) -> "OpenVinoEngine":
        graph, bucket, one_image = key
        if graph not in self._models:
            raise BackendError(f"the engine of {self._bundle.graph(graph).file} is closed")
        spec, model = self._bundle.graph(graph), _model_with(self._models[graph], weights.get(graph, {}))
        if bucket is not None:
            shape_of = _one_image if one_image else _any_batch
            model.reshape({tensor.name: shape_of(tensor, bucket) for tensor in spec.inputs})
        recipe = self._bundle.manifest.recipe
        precision = recipe.vae_precision if graph.startswith("vae") else recipe.precision
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default OpenVINO uses bfloat16 wherever the CPU supports it, even for fp32 bundles.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" and self._has_bf16 else "f32",
        }
        if recipe.quantization is not None and int8_overflows():
            options["LP_TRANSFORMS_MODE"] = False  # quantized layers are computed in float32
        try:
            return OpenVinoEngine(spec, self._core.compile_model(model, "CPU", options))
        except Exception as error:
            raise BackendError(f"openvino cannot compile {spec.file}: {_reason(error)}") from error


class OpenVinoEngine:
    """A compiled graph. Thread-safe: each run and each bound call has its own tensors."""

    def __init__(self, spec: Graph, compiled: "openvino.CompiledModel") -> None:
        self.spec = spec
        self._compiled: openvino.CompiledModel | None = compiled

    def run(self, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `Engine.run`. Raises `InputError` for wrong shapes."""
        request = self._request()
        sizes_of_inputs(self.spec, {name: array.shape for name, array in inputs.items()})
        tensors = {spec.name: _tensor(spec.dtype, inputs[spec.name]) for spec in self.spec.inputs}
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)
        try:
            request.infer()
        except Exception as error:
            raise BackendError(f"{self.spec.file} failed on openvino: {_reason(error)}") from error
        outputs = {spec.name: _array(spec.dtype, request.get_tensor(spec.name)) for spec in self.spec.outputs}
        return with_layers(outputs, layers)

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """See `HostEngine.bind`."""
        request = self._request()
        dtypes = {spec.name: spec.dtype for spec in (*self.spec.inputs, *self.spec.outputs)}
        # Tensors share memory with their arrays, and must live as long as the request.
        bound = {name: _tensor(dtypes[name], array) for name, array in {**inputs, **outputs}.items()}
        for name, tensor in bound.items():
            request.set_tensor(name, tensor)

        def call() -> None:
            assert bound
            try:
                request.infer()
            except Exception as error:
                raise BackendError(f"{self.spec.file} failed on openvino: {_reason(error)}") from error

        return call

    def close(self) -> None:
        """Free the memory."""
        self._compiled = None

    def _request(self) -> "openvino.InferRequest":
        if self._compiled is None:
            raise BackendError(f"the engine of {self.spec.file} is closed")
        return self._compiled.create_infer_request()


def _found(port: "openvino.Output") -> Found:
    kind = port.get_element_type().to_string()
    sizes = port.get_partial_shape()
    shape = None if sizes.rank.is_dynamic else [None if size.is_dynamic else size.get_length() for size in sizes]
    return Found(port.get_any_name(), _DTYPES.get(kind, kind), shape)


def _one_image(tensor: TensorSpec, bucket: Bucket) -> list[Any]:
    """The shape of an input at the sizes of a bucket, for one image."""
    return list(shape_at(tensor, bucket.sizes(1)))


def _any_batch(tensor: TensorSpec, bucket: Bucket) -> list[Any]:
    """The shape of an input at the sizes of a bucket, for any number of images."""
    import openvino

    one, two = (shape_at(tensor, bucket.sizes(batch)) for batch in (1, 2))
    return [a if a == b else openvino.Dimension(a, -1) for a, b in zip(one, two, strict=True)]


def _reason(error: Exception) -> str:
    """The last line of an OpenVINO error; the lines before are source locations."""
    return ([line for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1]


def _tensor(dtype: str, array: NDArray[Any]) -> "openvino.Tensor":
    """A tensor that shares memory with an array, or with a copy if its dtype or layout differs."""
    import openvino

    if dtype == "bfloat16":  # numpy has no such dtype
        raw = np.ascontiguousarray(array, np.uint16)
        return openvino.Tensor(raw, openvino.Shape(list(raw.shape)), openvino.Type.bf16)
    return openvino.Tensor(np.ascontiguousarray(array, dtype), shared_memory=True)


def _array(dtype: str, tensor: "openvino.Tensor") -> NDArray[Any]:
    """A copy, as the request owns the tensor's memory; bfloat16 as uint16."""
    array: NDArray[Any] = tensor.data
    return (array.view(np.uint16) if dtype == "bfloat16" else array).copy()


def _model_with(model: "openvino.Model", weights: Arrays) -> "openvino.Model":
    """A copy of a model with these constants replaced by name.

    Also folds casts of 16-bit weights to float32, which OpenVINO would repeat in every run.
    """
    copy, left = model.clone(), set(weights)
    for node in copy.get_ops():
        if node.get_type_name() != "Constant":
            continue
        name, kind = node.friendly_name, node.get_element_type().to_string()
        left.discard(name)
        inputs = node.output(0).get_target_inputs()
        users = [user.get_node() for user in inputs]
        is_cast = kind in _HALVES and all(map(_casts_to_float32, users))
        if not is_cast and name not in weights:
            continue
        array = weights.get(name, node.data)
        if is_cast:
            array = to_float32(array.view(np.uint16) if kind == "bf16" else array, _HALVES[kind])
            inputs = {user for cast in users for user in cast.output(0).get_target_inputs()}
        constant = _constant("f32" if is_cast else kind, array)
        for user in inputs:
            user.replace_source_output(constant.output(0))
    if left:
        raise BackendError(f"openvino has no constant {min(left)} to change: use another backend for LoRA")
    return copy


def _casts_to_float32(node: "openvino.Node") -> bool:
    kinds: tuple[str, str] = node.get_type_name(), node.get_output_element_type(0).to_string()
    return kinds == ("Convert", "f32")


def _constant(kind: str, array: NDArray[Any]) -> "openvino.Node":
    """A constant in memory owned by OpenVINO, as compiled models keep reading it."""
    import openvino

    tensor = openvino.Tensor(getattr(openvino.Type, kind), openvino.Shape(list(array.shape)))
    tensor.data[...] = array.view(np.float16) if kind == "bf16" else array
    return openvino.op.Constant(tensor)
