"""Sessions of ONNX Runtime: options, devices, and initializers that replace the file's."""

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
# Of the arena's first block, nearly the most that may be asked for. Memory is taken when it is written to, so that this
# costs addresses only; in a small block large tensors soon find no gap, and the arena grows.
ARENA_BYTES = (1 << 31) - (1 << 20)


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
    # A bundle has several sessions, and each has threads of its own: these must not spin while another session runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cpu":
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # A pattern wants one block for all tensors of a run, beside what the first run has taken piece by piece.
        options.enable_mem_pattern = False
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


@functools.cache
def _share_arena() -> None:
    """Let all sessions of this process that ask for it compute in one arena, as graphs run one after the other.

    An arena of its own would keep the most that a graph ever needed, for each graph. One large block serves tensors of
    all sizes; an arena that grows as it must has blocks that fit the tensors of one graph only.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"initial_chunk_size_bytes": ARENA_BYTES}))


def return_freed_memory() -> None:
    """To the system: glibc keeps most of a session's weights for the process, which may never want them again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def value_of(array: NDArray[Any]) -> "onnxruntime.OrtValue":
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def ort_values(weights: Mapping[str, NDArray[Any]]) -> "dict[str, onnxruntime.OrtValue]":
    """Initializers by name; uint16 is bfloat16."""
    import onnxruntime

    def value(array: NDArray[Any]) -> "onnxruntime.OrtValue":
        if array.dtype == np.uint16:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, DTYPES["bfloat16"].onnx)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    return {name: value(array) for name, array in weights.items()}
