"""The ONNX Runtime backend for CPUs.

Sessions are created on first use and shared by all threads. All of them use one memory arena.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from latentrt.runtime.arrays import Layers, NewWeights, with_layers
from latentrt.runtime.backends.engine_cache import EngineCache
from latentrt.runtime.bundle import AnyBundle, EngineList, Graph, sizes_of_inputs
from latentrt.runtime.errors import BackendError
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.loop.host_engine import Arrays, BoundCall, host_net
from latentrt.runtime.loop.tables import TimeFeatures
from latentrt.runtime.protocols import Bucket

from .built_graphs import BuiltGraphs
from .session import GraphFile, new_session, ort_values, require_device, return_freed_memory, run_error, value_of

if TYPE_CHECKING:
    import onnxruntime


class OrtBackend:
    """Sessions of one bundle on the CPU."""

    name = "onnxruntime-cpu"

    def __init__(self, bundle: AnyBundle, engines: EngineList, nets: "Mapping[str, OrtBackend] | None" = None) -> None:
        """`nets`: backends of control bundles, by name; they are closed with this one."""
        require_device("cpu")
        if "bf16" in (bundle.manifest.recipe.precision, bundle.manifest.recipe.vae_precision):
            raise BackendError(
                f"{bundle.path} is a bf16 bundle, but onnxruntime has no bf16 kernels for CPUs: "
                "export with --precision fp32, use a GPU, or pip install 'latentrt[openvino]'"
            )
        self._bundle, self._graphs = bundle, BuiltGraphs(bundle, engines, "cpu")
        self._engines = EngineCache(self._make, graph_of=str)
        self._features = TimeFeatures(lambda graph, inputs: self.engine(graph).run(inputs))
        self.nets = dict(nets or {})
        self._host_nets = {name: host_net(net) for name, net in self.nets.items()}

    def engine(self, graph: str) -> "OrtEngine":
        """The engine of a graph, created on first use and kept."""
        return self._engines.get(graph)

    def _make(self, graph: str, weights: NewWeights) -> "OrtEngine":
        spec, changed = self._bundle.graph(graph), weights.get(graph, {})
        return self._graphs.loaded(graph, lambda file: OrtEngine(spec, file, changed), changed=bool(changed))

    def slots(self, bucket: Bucket, count: int) -> HostSlots:
        """See `Backend.slots`."""
        denoise = self.engine("denoise")
        return HostSlots(
            bucket,
            count,
            denoise=denoise,
            engine=self.engine,
            features=self._features,
            any_groups=True,
            nets=self._host_nets,
        )

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Recreates the changed sessions, as they keep converted copies of their weights."""
        self._engines.replace(weights)
        self._features.clear()

    def close(self) -> None:
        """Free all memory except the arena, which later sessions of the process use."""
        for net in self.nets.values():
            net.close()
        self._engines.close()
        return_freed_memory()


class OrtEngine:
    """One session; `weights` replace initializers of the file."""

    def __init__(self, spec: Graph, file: GraphFile, weights: Mapping[str, NDArray[Any]]) -> None:
        self.spec, self.path = spec, file.path
        self._weights = ort_values(weights)
        self._session: onnxruntime.InferenceSession | None = new_session(file, "cpu", {}, self._weights, spec=spec)

    @property
    def session(self) -> "onnxruntime.InferenceSession":
        """The session; raises `BackendError` once the engine is closed."""
        if self._session is None:
            raise BackendError(f"the engine of {self.spec.file} is closed")
        return self._session

    def run(self, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        names, session = [output.name for output in self.spec.outputs], self.session
        sizes_of_inputs(self.spec, {name: array.shape for name, array in inputs.items()})
        try:
            outputs = session.run(names, dict(inputs))
        except Exception as error:
            raise run_error(self.spec.file, error) from error
        return with_layers(dict(zip(names, outputs, strict=True)), layers)

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """See `HostEngine.bind`."""
        session = self.session
        binding = session.io_binding()
        # A binding holds only addresses; these keep the arrays alive.
        bound = {name: value_of(array) for name, array in {**inputs, **outputs}.items()}
        for name in inputs:
            binding.bind_ortvalue_input(name, bound[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, bound[name])

        def call() -> None:
            assert bound
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                raise run_error(self.spec.file, error) from error

        return call

    def close(self) -> None:
        """Free the memory."""
        self._session = None
