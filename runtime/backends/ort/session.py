"""Creates ONNX Runtime sessions: devices, session options, replaced initializers."""

import ctypes
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.backends.tensor_check import Found, require_tensors
from latentrt.runtime.bundle import Graph
from latentrt.runtime.cpu import int8_overflows
from latentrt.runtime.errors import BackendError, OutOfMemoryError
from latentrt.runtime.files import files_in_one_folder
from latentrt.runtime.gpu.device import Device

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_SAVED_DATA = "session.optimized_model_external_initializers_file_name"
# Size of the arena's first block, nearly the maximum. Pages are committed only when written, so this costs only address
# space; a smaller block would soon fragment, and the arena would grow.
ARENA_BYTES = (1 << 31) - (1 << 20)
# Earlier versions have no CUDA kernel for `Attention`, or a slow one, run `Resize` on the CPU, wait for the GPU at each
# replay of a captured graph, or replay copies from memory that was freed, which draws wrong pictures.
OLDEST_ON_CUDA = (1, 31)
# GPUs with less memory than this get an arena that grows by what is asked for instead of doubling.
SMALL_CARD_BYTES = 12 << 30


@dataclass(frozen=True, slots=True)
class GraphFile:
    """Where a graph is.

    Attributes:
        path: the ONNX file.
        data: its external data, in whatever folder; it need not exist.
        saved: whether the library saved it, optimized for this CPU.
    """

    path: Path
    data: Path
    saved: bool = False


def available_devices() -> tuple[str, ...]:
    """Devices that the installed onnxruntime supports, best first; empty if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    providers = onnxruntime.get_available_providers()
    return tuple(device for device in ("cuda", "cpu") if _PROVIDERS[device] in providers)


def require_device(device: str) -> None:
    """Raise `BackendError` if the installed onnxruntime was not built for this device, "cpu" or "cuda"."""
    if device not in (found := available_devices()):
        raise BackendError(
            f"onnxruntime cannot use {device!r} here (usable: {', '.join(found) or 'none'}). Install one of: "
            "pip install 'latentrt[cpu]', or for NVIDIA GPUs pip install 'latentrt[cuda]' (never both)"
        )
    if device == "cuda":
        _require_version()


def _require_version() -> None:
    import onnxruntime

    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if version < OLDEST_ON_CUDA:
        needed = ".".join(map(str, OLDEST_ON_CUDA))
        raise BackendError(
            f"onnxruntime-gpu {onnxruntime.__version__} is installed, but CUDA needs {needed} or later: earlier "
            "versions draw wrong pictures from captured CUDA graphs. "
            f"pip install 'onnxruntime-gpu[cuda,cudnn]>={needed}'"
        )


def cuda_options(device: Device, stream: int, *, captures: bool, tf32: bool) -> dict[str, str]:
    """Options of the CUDA provider for a session on a stream."""
    options = {
        "device_id": str(device.index),
        "user_compute_stream": str(stream),
        "enable_cuda_graph": str(int(captures)),
        "use_tf32": str(int(tf32)),
    }
    if device.memory < SMALL_CARD_BYTES:
        options["arena_extend_strategy"] = "kSameAsRequested"
    return options


def new_session(
    file: GraphFile,
    device: str,
    provider_options: Mapping[str, str],
    weights: "Mapping[str, onnxruntime.OrtValue]",
    *,
    spec: Graph,
    save_as: GraphFile | None = None,
) -> "onnxruntime.InferenceSession":
    """Create a session on "cpu" or "cuda".

    Raises `BackendError` if the file or the device cannot be used, or if the file has other tensors than `spec`.

    Args:
        weights: replacements of initializers in the file; they must outlive the session.
        save_as: also write the optimized graph to this place, both files in one folder.
    """
    path, provider = file.path, _PROVIDERS[device]
    providers: list[Any] = [(provider, dict(provider_options))]
    if device != "cpu":
        providers.append(_PROVIDERS["cpu"])
    apart = file.data.parent != path.parent
    try:
        # The library refuses data outside of their folder, where links may lead.
        with files_in_one_folder(*([] if apart else [path]), file.data) as folder:
            options = _session_options(device, weights, folder if apart else None)
            _set_optimization(options, file, save_as)
            # A model file may refer only to data in its own folder; for a model from bytes, this folder can be set.
            model = path.read_bytes() if apart else folder / path.name
            session = _session(model, options, providers)
    except Exception as error:  # onnxruntime's errors have no common base class
        what = f"load {path}" if save_as is None else f"load and optimize {path}"
        raise BackendError(f"onnxruntime cannot {what}: {' '.join(str(error).split())[:500]}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"onnxruntime could not use {provider} for {path.name}; its log output above has the reason. "
            "Usually the CUDA or cuDNN libraries are missing: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    require_tensors(spec, map(_found, session.get_inputs()), map(_found, session.get_outputs()))
    return session


def _session(
    model: Path | bytes, options: "onnxruntime.SessionOptions", providers: Sequence[Any]
) -> "onnxruntime.InferenceSession":
    import onnxruntime

    # With its fallback, the library prints each error to stdout and tries the same again.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def _set_optimization(options: "onnxruntime.SessionOptions", file: GraphFile, save_as: GraphFile | None) -> None:
    import onnxruntime

    if file.saved:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_as is not None:
        options.optimized_model_filepath = str(save_as.path)
        options.add_session_config_entry(_SAVED_DATA, save_as.data.name)


def _found(node: "onnxruntime.NodeArg") -> Found:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = [size if isinstance(size, int) else None for size in node.shape]
    return Found(node.name, {"float": "float32", "double": "float64"}.get(kind, kind), shape)


def run_error(what: str, error: Exception) -> BackendError:
    """The error of a run that failed: onnxruntime's errors have no common base class."""
    text = " ".join(str(error).split())[-300:]
    if isinstance(error, MemoryError) or "allocate" in text or "bad_alloc" in text:
        return OutOfMemoryError(f"{what}: no memory is left for this call: {text}. Smaller calls still work")
    return BackendError(f"{what} failed: {text}")


def _session_options(
    device: str, weights: "Mapping[str, onnxruntime.OrtValue]", data_folder: Path | None
) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Warnings only concern nodes placed on the CPU on purpose; errors raise exceptions.
    options.log_severity_level = 3
    # Every session has its own threads, which must not spin while another session runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cpu":
        if int8_overflows():  # quantized layers are computed in float32
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # A memory pattern allocates one block for a whole run, in addition to the blocks of the first run.
        options.enable_mem_pattern = False
    if weights:
        # They replace those of the file, and so are processed in the same way.
        options.add_external_initializers(list(weights), list(weights.values()))
    if data_folder is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(data_folder))
    return options


@functools.cache
def _share_arena() -> None:
    """Let the sessions of this process share one arena, as graphs run one after the other.

    With separate arenas, each session would keep the peak memory of its graph. The arena starts with one large block,
    which fits tensors of all sizes; blocks added on demand fit only the tensors of one graph.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"initial_chunk_size_bytes": ARENA_BYTES}))


def return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps most of a closed session's weights in the process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def value_of(array: NDArray[Any]) -> "onnxruntime.OrtValue":
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def ort_values(weights: Mapping[str, NDArray[Any]]) -> "dict[str, onnxruntime.OrtValue]":
    """OrtValues of initializers by name; uint16 is bfloat16."""
    import onnxruntime

    def value(array: NDArray[Any]) -> "onnxruntime.OrtValue":
        if array.dtype == np.uint16:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, DTYPES["bfloat16"].onnx)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    return {name: value(array) for name, array in weights.items()}
