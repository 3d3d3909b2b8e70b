"""ONNX Runtime: the backend that runs a bundle's ONNX files as they are, on a CPU.

Sessions are made on first use and shared; a denoiser holds the buffers of one loop, so several threads may draw at
once.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, Graph
from .engine import NO_INPUTS, Bucket, DenoiseStep, Float32, KnownParts, LoopTables, NewWeights, time_rows
from .errors import BackendError
from .scheduler import Plan

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
BFLOAT16 = 16  # ONNX's number of the type, which numpy does not have


def available_devices() -> tuple[str, ...]:
    """Devices that the installed onnxruntime can use, best first; empty when it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    providers = onnxruntime.get_available_providers()
    return tuple(device for device in ("cuda", "cpu") if _PROVIDERS[device] in providers)


def require_device(device: str) -> None:
    """Raise `BackendError` where the installed onnxruntime was not built for "cpu" or "cuda"."""
    if device not in (found := available_devices()):
        raise BackendError(
            f"onnxruntime cannot use {device!r} here (usable: {', '.join(found) or 'none'}). Install one of: "
            "pip install 'latentrt[cpu]', or for NVIDIA GPUs pip install 'latentrt[cuda]' (never both)"
        )


def new_session(
    path: Path,
    device: str,
    provider_options: Mapping[str, str],
    weights: "Mapping[str, onnxruntime.OrtValue]",
    *,
    data_folder: Path | None = None,
) -> "onnxruntime.InferenceSession":
    """A session on "cpu" or "cuda".

    Args:
        weights: initializers that differ from the file's; they must outlive the session.
        data_folder: where the external data lies, if not beside the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Warnings are about nodes placed on the CPU on purpose; errors are raised.
    options.log_severity_level = 3
    if weights:
        # They take the place of the file's, and so are prepared in the same way as these.
        options.add_external_initializers(list(weights), list(weights.values()))
    if data_folder is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(data_folder))
    provider = _PROVIDERS[device]
    providers: list[Any] = [(provider, dict(provider_options))]
    if device != "cpu":
        providers.append(_PROVIDERS["cpu"])
    try:
        # A file may refer to data beside it only, which holds for bytes and the folder that is given with them, too.
        model = path if data_folder is None else path.read_bytes()
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has no common base class of its errors
        raise BackendError(f"onnxruntime cannot load {path}: {error}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"onnxruntime could not use {provider} for {path.name}; the reason is in its log above. "
            "Mostly the CUDA or cuDNN libraries are missing: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


class OrtBackend:
    """Sessions of one bundle on the CPU."""

    name = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle) -> None:
        require_device("cpu")
        if "bf16" in (bundle.manifest.recipe.precision, bundle.manifest.recipe.vae_precision):
            raise BackendError(
                f"{bundle.path} is a bf16 bundle, and onnxruntime has no bf16 kernels on a CPU: "
                "export with --precision fp32, or use a GPU"
            )
        self._bundle = bundle
        self._weights: NewWeights = {}
        self._engines: dict[str, OrtEngine] = {}
        self._lock = threading.Lock()

    def engine(self, graph: str) -> "OrtEngine":
        """The engine of a graph, made on first use and kept."""
        with self._lock:
            if graph not in self._engines:
                self._engines[graph] = OrtEngine(self._bundle, graph, self._weights.get(graph, {}))
            return self._engines[graph]

    def denoiser(self, bucket: Bucket) -> "OrtDenoiser":
        """A denoiser for these sizes."""
        parts = (self.engine("time"), self.engine("context"), self.engine("denoise"))
        return OrtDenoiser(parts, bucket, blend=lambda: self.engine("blend"))

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`: sessions are made anew, as they keep copies of their weights in another form."""
        with self._lock:
            before, changed = self._engines, {*self._weights, *weights}
            rebuilt = {name: OrtEngine(self._bundle, name, weights.get(name, {})) for name in before if name in changed}
            self._weights, self._engines = weights, before | rebuilt

    def close(self) -> None:
        """Give all memory back."""
        with self._lock:
            while self._engines:
                self._engines.popitem()[1].close()


class OrtEngine:
    """One session; `weights` are initializers that differ from the bundle's."""

    def __init__(self, bundle: Bundle, graph: str, weights: Mapping[str, NDArray[Any]]) -> None:
        self.spec: Graph = bundle.graph(graph)
        self._weights, path = ort_values(weights), bundle.file(self.spec.file)
        self._session: onnxruntime.InferenceSession | None = new_session(path, "cpu", {}, self._weights)

    @property
    def session(self) -> "onnxruntime.InferenceSession":
        """The session; raises `BackendError` once the engine is closed."""
        if self._session is None:
            raise BackendError(f"the engine of {self.spec.file} is closed")
        return self._session

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        names = [output.name for output in self.spec.outputs]
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session = None


class OrtDenoiser:
    """The loop on ONNX Runtime: two state buffers take turns, nothing is copied between."""

    def __init__(self, parts: Sequence[OrtEngine], bucket: Bucket, *, blend: Callable[[], OrtEngine]) -> None:
        self._time, self._context, self._denoise = parts
        self._bucket, self._blend = bucket, blend

    def run(
        self,
        plans: Sequence[Plan],
        *,
        context: Float32,
        guidance: Float32,
        guidance_rescale: Float32,
        noise: Sequence[Float32],
        clean: Float32 | None = None,
        time_inputs: Mapping[str, Float32] = NO_INPUTS,
        extra: Float32 | None = None,
        mask: Float32 | None = None,
    ) -> Iterator[DenoiseStep]:
        """See `Denoiser.run`."""
        tables = LoopTables.from_plans(plans, noise, clean)
        features = self._time_features(tables.timesteps, time_inputs)
        session = self._denoise.session
        fixed = {
            "guidance": _value(guidance),
            "guidance_rescale": _value(guidance_rescale),
            **self._keys_and_values(context),
        }
        if extra is not None:
            fixed["extra"] = _value(extra)
        states = _value(tables.state), _value(np.zeros_like(tables.state))
        bindings = [self._binding(session, fixed, *pair) for pair in (states, states[::-1])]
        known = None if mask is None or clean is None else KnownParts.from_plans(plans, noise, clean, mask)
        if known is not None:
            blend = self._blend().session
            parts = {name: _value(array) for name, array in known.fixed.items()}
            # Each call ends with its blend, which leaves the state where it was before the call.
            blending = self._binding(blend, parts, *states[::-1])
        quiet = _value(np.zeros_like(tables.state[:, 0]))
        total = len(tables.timesteps)
        for k in range(total):
            turn = k % 2 if known is None else 0
            binding, target = bindings[turn], states[1 - turn]
            fresh = tables.noise[k]
            binding.bind_ortvalue_input("coefficients", _value(tables.coefficients[k]))
            binding.bind_ortvalue_input("time_features", _value(features[k]))
            binding.bind_ortvalue_input("noise", quiet if fresh is None else _value(fresh))
            session.run_with_iobinding(binding)
            if known is not None:
                blending.bind_ortvalue_input("blend", _value(known.blend[k]))
                blend.run_with_iobinding(blending)
                target = states[0]
            yield DenoiseStep(k, total, partial(_register, target))

    @staticmethod
    def _binding(
        session: "onnxruntime.InferenceSession",
        fixed: Mapping[str, "onnxruntime.OrtValue"],
        state: "onnxruntime.OrtValue",
        next_state: "onnxruntime.OrtValue",
    ) -> Any:
        binding = session.io_binding()
        for name, value in fixed.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_input("state", state)
        binding.bind_ortvalue_output("next_state", next_state)
        return binding

    def _time_features(self, timesteps: Float32, time_inputs: Mapping[str, Float32]) -> NDArray[Any]:
        """(M, B*G, F)."""
        features = self._time.run(time_rows(timesteps, self._bucket.groups, time_inputs))["time_features"]
        return features.reshape(len(timesteps), -1, features.shape[1])

    def _keys_and_values(self, context: Float32) -> dict[str, "onnxruntime.OrtValue"]:
        """Keys and values of every cross-attention."""
        binding = self._context.session.io_binding()
        hidden_states = _value(context.reshape(-1, *context.shape[2:]))
        binding.bind_ortvalue_input("hidden_states", hidden_states)
        names = [output.name for output in self._context.spec.outputs]
        for name in names:
            binding.bind_output(name)
        self._context.session.run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))


def _value(array: NDArray[Any]) -> "onnxruntime.OrtValue":
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def ort_values(weights: Mapping[str, NDArray[Any]]) -> "dict[str, onnxruntime.OrtValue]":
    """Initializers by name; uint16 is bfloat16."""
    import onnxruntime

    def value(array: NDArray[Any]) -> "onnxruntime.OrtValue":
        if array.dtype == np.uint16:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    return {name: value(array) for name, array in weights.items()}


def _register(state: "onnxruntime.OrtValue", register: int) -> Float32:
    """A copy of one register, (B, C, h, w), on the host."""
    values: Float32 = state.numpy()
    return values[:, register].copy()
