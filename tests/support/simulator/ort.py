"""The part of `onnxruntime` that latentrt calls for CUDA, on the simulated GPU; CPU sessions are real ones.

As on a real GPU, sessions enqueue work on a given stream and bind tensors to addresses; a session that captures CUDA
graphs replays the addresses of the first run with a graph id.
"""

import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real

from .contrib_ops import with_contrib_ops_expanded
from .cuda import Cuda
from .work import OK, Fault, Work

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def simulated_onnxruntime(
    cuda: Cuda,
    *,
    captures: bool = True,
    capture_fails: bool = False,
    recording_seconds: float = 0.002,
    group_norm: bool = True,
) -> ModuleType:
    """A module like `onnxruntime-gpu`.

    Args:
        captures: without it, sessions that capture CUDA graphs cannot be made.
        capture_fails: such sessions can be made, but their first run fails.
        recording_seconds: how long a recording takes, while other threads go on.
        group_norm: whether there is the kernel of com.microsoft.GroupNorm.
    """
    module: Any = ModuleType("onnxruntime")
    module.__dict__.update({k: v for k, v in vars(real).items() if not k.startswith("__")})
    module.__version__ = real.__version__
    module.get_available_providers = lambda: PROVIDERS
    found: list[bool] = []
    module.preload_dlls = lambda: found.append(True)

    def session(model: Path | bytes, options: Any, providers: list[Any], enable_fallback: int = 1) -> Any:
        if providers[0][0] != PROVIDERS[0]:
            return real.InferenceSession(model, options, providers=providers, enable_fallback=enable_fallback)
        facts = providers[0][1]
        if not found:
            raise RuntimeError("libcublasLt.so.13: cannot open shared object file")
        if facts["enable_cuda_graph"] == "1" and not captures:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        if isinstance(model, bytes):
            if not group_norm:
                raise RuntimeError("Could not find an implementation for GroupNorm(1) node with name 'group_norm'")
            model = with_contrib_ops_expanded(model)
        inner = real.InferenceSession(model, options, providers=[PROVIDERS[1]])
        return InferenceSession(cuda, inner, facts, recording_seconds, capture_fails=capture_fails)

    module.InferenceSession = session
    return module


class InferenceSession:
    def __init__(
        self,
        cuda: Cuda,
        session: real.InferenceSession,
        facts: dict[str, str],
        recording_seconds: float,
        *,
        capture_fails: bool,
    ) -> None:
        self._cuda, self._session = cuda, session
        self._recording_seconds, self._capture_fails = recording_seconds, capture_fails
        self._stream, self._captures = int(facts["user_compute_stream"]), facts["enable_cuda_graph"] == "1"
        self._graphs: dict[tuple[int, str], dict[str, Any]] = {}  # a captured graph belongs to its thread

        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def get_providers(self) -> list[str]:
        return PROVIDERS

    def io_binding(self) -> "IOBinding":
        return IOBinding()

    def run_with_iobinding(self, iobinding: "IOBinding", run_options: real.RunOptions) -> None:
        graph = run_options.get_run_config_entry("gpu_graph_id")
        key = (threading.get_ident(), graph)
        first = self._captures and graph != "-1" and key not in self._graphs
        if self._captures and graph != "-1" and self._graphs.setdefault(key, iobinding.tensors) != iobinding.tensors:
            raise Fault("a captured graph is run with other addresses than it was captured with")
        if run_options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            self._cuda.cudaStreamSynchronize(self._stream)
        ranges = {name: (t.address, t.size) for name, t in iobinding.tensors.items()}
        names = [o.name for o in self._session.get_outputs()]

        def compute() -> None:
            inputs = {
                name: self._cuda.view(ranges[name]).view(t.dtype).reshape(t.shape).copy()
                for name, t in iobinding.tensors.items()
                if name not in names
            }
            for name, array in zip(names, self._session.run(names, inputs), strict=True):
                if array.shape != iobinding.tensors[name].shape:
                    raise Fault(f"{name} has shape {array.shape}; expected {iobinding.tensors[name].shape}")
                self._cuda.view(ranges[name])[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        reads, writes = ([at for name, at in ranges.items() if (name in names) == side] for side in (False, True))
        work = Work(f"a session of {names[0]}", reads, writes, compute, owner=self)
        if first:
            self._enqueue(work)
            self._record(graph)
        self._enqueue(work)

    def _enqueue(self, work: Work) -> None:
        if (status := self._cuda.enqueue(self._stream, work)) != OK:
            raise RuntimeError(f"CUDA failure: {status.name}")

    def _record(self, graph: str) -> None:
        """After a plain run, the session is recorded."""
        self._cuda.recordings.append((threading.get_ident(), graph))
        self._cuda.begin_recording(self._stream)
        time.sleep(self._recording_seconds)
        whole = self._cuda.end_recording(self._stream)
        if self._capture_fails or not whole:
            self._cuda._streams[self._stream].unusable = True
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")


class IOBinding:
    def __init__(self) -> None:
        self.tensors: dict[str, SimpleNamespace] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        if device_type != "cuda":
            raise Fault(f"{name} is bound on {device_type!r}, and would be copied at each run")
        dtype = np.dtype(element_type)
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        self.tensors[name] = SimpleNamespace(address=buffer_ptr, shape=tuple(shape), dtype=dtype, size=size)

    bind_output = bind_input
