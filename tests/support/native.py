"""The C++ library for tests: built once, what is inside of it by `probe`, and the C functions by `NativePipeline`."""

import ctypes
import fcntl
import functools
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint64
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .exports import ROOT

BUILD = ROOT / "out" / "native"
NUL = ctypes.c_size_t(-1).value
# Values of latentrt_status.
OK, INPUT, SCHEDULER, BUNDLE, BACKEND, NONFINITE, CANCELLED, OUT_OF_MEMORY, UNEQUAL, INTERNAL = range(10)


@functools.cache
def built() -> Path:
    """The folder of the build, brought up to date by `make native`; other processes wait."""
    for tool in ("make", "cmake", "g++"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"the library in C++ needs {tool}: apt-get install {tool}")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["make", "native"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"make native: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return BUILD


@functools.cache
def probe() -> ctypes.CDLL:
    """What is inside of the library, as functions of C."""
    return ctypes.CDLL(str(built() / "tests" / "libprobe.so"))


@functools.cache
def onnxruntime_library() -> Path:
    """ONNX Runtime's library in its Python package."""
    import onnxruntime

    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")
    return library


class Text(Structure):
    """latentrt_text."""

    _fields_ = (("data", c_char_p), ("length", c_size_t))


class _Pixels(Structure):
    _fields_ = (
        *(("data", ctypes.c_void_p), ("height", c_int32), ("width", c_int32), ("channels", c_int32)),
        ("stride", c_size_t),
    )


class _Pair(Structure):
    _fields_ = (("first", c_int32), ("second", c_int32))


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, POINTER(ctypes.c_char), c_size_t, ctypes.c_void_p)
ON_STEP = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class OpenOptions(Structure):
    """latentrt_open_options."""

    _fields_ = (
        *(("struct_size", c_size_t), ("onnxruntime", Text), ("provider", Text), ("device", c_int32)),
        *(("threads", c_int32), ("provider_keys", POINTER(Text)), ("provider_values", POINTER(Text))),
        *(("provider_options_count", c_size_t), ("plans", POINTER(Text)), ("plans_count", c_size_t), ("log", LOG)),
        ("log_user", ctypes.c_void_p),
    )


class RequestStruct(Structure):
    """latentrt_request."""

    _fields_ = (
        ("struct_size", c_size_t),
        *(("prompts", POINTER(Text)), ("prompts_count", c_size_t)),
        *(("negative_prompts", POINTER(Text)), ("negative_prompts_count", c_size_t)),
        *(("prompts_2", POINTER(Text)), ("prompts_2_count", c_size_t)),
        *(("negative_prompts_2", POINTER(Text)), ("negative_prompts_2_count", c_size_t)),
        *(("prompt_syntax", ctypes.c_int), ("long_prompt", ctypes.c_int), ("clip_skip", c_int32)),
        *(("num_images_per_prompt", c_int32), ("height", c_int32), ("width", c_int32)),
        *(("scheduler", Text), ("num_inference_steps", c_int32), ("plan", ctypes.c_void_p)),
        *(("guidance_scales", POINTER(c_double)), ("guidance_scales_count", c_size_t)),
        *(("guidance_rescale", c_double), ("guidance_start", c_double), ("guidance_end", c_double)),
        *(("seeds", POINTER(c_uint64)), ("seeds_count", c_size_t), ("rng", ctypes.c_int)),
        *(("noise_seed_delta", c_int64), ("latents", POINTER(c_float)), ("latents_count", c_size_t)),
        *(("images", POINTER(_Pixels)), ("images_count", c_size_t)),
        *(("masks", POINTER(_Pixels)), ("masks_count", c_size_t)),
        *(("image_latents", POINTER(c_float)), ("image_latents_count", c_size_t), ("strength", c_double)),
        *(("original_size", _Pair), ("crops_coords_top_left", _Pair), ("target_size", _Pair)),
        *(("negative_original_size", _Pair), ("negative_crops_coords_top_left", _Pair)),
        *(("negative_target_size", _Pair), ("vae_tiling", c_int32), ("output", ctypes.c_int)),
        ("call", ctypes.c_void_p),
    )


class Verification(Structure):
    """latentrt_verification."""

    _fields_ = (
        *(("struct_size", c_size_t), ("ids_equal", c_int32), ("embedding_error", c_double)),
        *(("embedding_tolerance", c_double), ("latents_error", c_double), ("latents_tolerance", c_double)),
        *(("psnr", c_double), ("psnr_floor", c_double)),
    )


class NativeError(Exception):
    """A failure of the library."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@functools.cache
def library() -> ctypes.CDLL:
    """liblatentrt."""
    loaded = ctypes.CDLL(str(built() / "liblatentrt.so"))
    pointers = (
        *("latentrt_backend", "latentrt_scheduler_name", "latentrt_error_text", "latentrt_images_text"),
        "latentrt_version",
    )
    for name in pointers:
        getattr(loaded, name).restype = c_char_p
    for name in ("latentrt_images_pixels", "latentrt_images_latents"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("latentrt_images_count", "latentrt_step_index", "latentrt_step_total", "latentrt_step_images"):
        getattr(loaded, name).restype = c_size_t
    loaded.latentrt_images_seed.restype = c_uint64
    loaded.latentrt_images_milliseconds.restype = c_double
    return loaded


def check(status: int, error: ctypes.c_void_p) -> None:
    """Raise `NativeError` for a failure, and free its error."""
    if status:
        text = library().latentrt_error_text(error).decode()
        library().latentrt_error_free(error)
        raise NativeError(status, text)


class Drawn:
    """Finished pictures, copied: pixels (n, H, W, 3), latents (n, C, h, w), texts, PNG files."""

    def __init__(self, images: ctypes.c_void_p) -> None:
        lib = library()
        count = lib.latentrt_images_count(images)
        height, width = lib.latentrt_images_height(images), lib.latentrt_images_width(images)
        self.seeds = [lib.latentrt_images_seed(images, c_size_t(i)) for i in range(count)]
        shape = (c_size_t * 3)()
        self.pixels: list[NDArray[np.uint8]] = []
        self.latents: list[NDArray[np.float32]] = []
        self.texts: list[dict[str, str]] = []
        self.files: list[bytes] = []
        stages = ("tokenize", "text_encoder", "vae_encoder", "denoise", "vae_decoder", "total")
        self.timings = {name: lib.latentrt_images_milliseconds(images, name.encode()) for name in stages}
        for i in map(c_size_t, range(count)):
            address = lib.latentrt_images_latents(images, i, shape)
            self.latents.append(_copied(address, tuple(shape), np.float32))
            texts = {key: lib.latentrt_images_text(images, i, key.encode()) for key in ("parameters", "latentrt")}
            self.texts.append({key: text.decode() for key, text in texts.items()})
            if address := lib.latentrt_images_pixels(images, i):
                self.pixels.append(_copied(address, (height, width, 3), np.uint8))
                data, length, error = POINTER(c_uint8)(), c_size_t(), ctypes.c_void_p()
                check(lib.latentrt_images_png(images, i, byref(data), byref(length), byref(error)), error)
                self.files.append(ctypes.string_at(data, length.value))
        lib.latentrt_images_free(images)


def _copied(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


class NativePipeline:
    """latentrt_pipeline, with options named as in Python."""

    def __init__(
        self,
        bundle: Path,
        *,
        onnxruntime: Path | str | None = None,
        plans: Sequence[Path] = (),
        provider: str = "",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.messages: list[str] = []

        def log(_level: int, text: Any, length: int, _user: Any) -> None:
            self.messages.append(ctypes.string_at(text, length).decode())

        self._log, given, error = LOG(log), OpenOptions(), ctypes.c_void_p()
        lib = library()
        lib.latentrt_open_options_init(byref(given), c_size_t(ctypes.sizeof(given)))
        given.onnxruntime = _text(str(onnxruntime or onnxruntime_library()))
        if provider:
            given.provider = _text(provider)
        given.plans, given.plans_count = _texts([str(plan) for plan in plans])
        chosen = options or {}
        given.provider_keys, given.provider_options_count = _texts(list(chosen))
        given.provider_values, _ = _texts(list(chosen.values()))
        given.log = self._log
        self.handle = ctypes.c_void_p()
        check(lib.latentrt_open(str(bundle).encode(), byref(given), byref(self.handle), byref(error)), error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory."""
        library().latentrt_close(self.handle)
        self.handle = ctypes.c_void_p()

    @property
    def schedulers(self) -> list[str]:
        """Names that the bundle has plans for."""
        names: list[str] = []
        while (name := library().latentrt_scheduler_name(self.handle, c_size_t(len(names)))) is not None:
            names.append(name.decode())
        return names

    def verify(self) -> Verification:
        """Compare with the goldens."""
        found, error = Verification(), ctypes.c_void_p()
        library().latentrt_verification_init(byref(found), c_size_t(ctypes.sizeof(found)))
        check(library().latentrt_verify(self.handle, byref(found), byref(error)), error)
        return found

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        on_step: Callable[[ctypes.c_void_p], bool] | None = None,
        plan: ctypes.c_void_p | None = None,
        call: ctypes.c_void_p | None = None,
        **options: Any,
    ) -> Drawn:
        """Draw; `options` are those of `Pipeline.__call__` as far as the library has them."""
        request, images, error = request_struct(prompt, options), ctypes.c_void_p(), ctypes.c_void_p()
        request.plan, request.call = plan, call
        each = ON_STEP((lambda step, _: int(on_step(step))) if on_step else 0)
        lib = library()
        status = lib.latentrt_draw(self.handle, byref(request), each, None, byref(images), byref(error))
        check(status, error)
        return Drawn(images)


def _text(given: str) -> Text:
    data = given.encode()
    return Text(data, len(data))


def _texts(given: Sequence[str]) -> tuple[Any, int]:
    return (Text * len(given))(*map(_text, given)), len(given)


_CHOICES = {
    "prompt_syntax": ["plain", "web-ui"],
    "long_prompt": ["truncate", "chunk"],
    "rng": ["cpu", "cuda"],
    "output_type": ["np", "latent"],
}
_TEXTS = {"negative_prompt": "negative_prompts", "prompt_2": "prompts_2", "negative_prompt_2": "negative_prompts_2"}


def request_struct(prompt: str | Sequence[str], options: Mapping[str, Any]) -> RequestStruct:
    """latentrt_request of a call in Python."""
    request = RequestStruct()
    library().latentrt_request_init(byref(request), c_size_t(ctypes.sizeof(request)))
    request.prompts, request.prompts_count = _texts([prompt] if isinstance(prompt, str) else prompt)
    for name, value in options.items():
        if name in _TEXTS:
            texts = [value] if isinstance(value, str) else value
            for field, part in zip((_TEXTS[name], f"{_TEXTS[name]}_count"), _texts(texts), strict=True):
                setattr(request, field, part)
        elif name in _CHOICES:
            setattr(request, "output" if name == "output_type" else name, _CHOICES[name].index(value))
        elif name == "scheduler":
            request.scheduler = _text(value)
        elif name in ("guidance_scale", "seed"):
            kind, field = (c_double, "guidance_scales") if name == "guidance_scale" else (c_uint64, "seeds")
            values = list(value) if isinstance(value, Sequence) else [value]
            setattr(request, field, (kind * len(values))(*values))
            setattr(request, f"{field}_count", len(values))
        elif name in ("image", "mask_image"):
            pictures = value if isinstance(value, list) else [value]
            field = "images" if name == "image" else "masks"
            pictures = [np.ascontiguousarray(picture, np.uint8) for picture in pictures]
            setattr(request, field, (_Pixels * len(pictures))(*map(_pixels, pictures)))
            setattr(request, f"_{field}_kept", pictures)  # a struct holds addresses alone
            setattr(request, f"{field}_count", len(pictures))
        elif name in ("latents", "image_latents"):
            array = np.ascontiguousarray(value, np.float32)
            setattr(request, name, array.ctypes.data_as(POINTER(c_float)))
            setattr(request, f"{name}_count", array.size)
        elif isinstance(value, tuple):
            setattr(request, name, _Pair(*value))
        else:
            setattr(request, name, value)
    return request


def _pixels(picture: NDArray[np.uint8]) -> _Pixels:
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    return _Pixels(picture.ctypes.data, picture.shape[0], picture.shape[1], channels, 0)
