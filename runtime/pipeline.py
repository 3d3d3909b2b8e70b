"""Prompt to picture: text encoder, denoising loop, VAE decoder, on any backend. Never imports PyTorch."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, ControlBundle, ControlManifest
from latentrt.runtime.control.fit import check_fit
from latentrt.runtime.loop.resident import Passed, run
from latentrt.runtime.request import OUT_OF_MEMORY, CallOptions, Request
from latentrt.runtime.scheduler import REGISTERS
from latentrt.runtime.text import Tokenizer

from .arrays import Float32, Layers
from .cpu_hints import cpu_hints
from .errors import BundleError, InputError
from .image import pil_from_arrays
from .locks import SharedLock
from .protocols import Backend, Bucket, Slots
from .stages import Stages

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Finished pictures.

    Attributes:
        images: PIL images, or (images, H, W, 3) uint8 for output_type "np"; an empty list for "latent".
        latents: (images, C, h, w) float32.
        seeds: one for each image.
        timings: milliseconds by stage: tokenize, text_encoder, vae_encoder, denoise, vae_decoder, total.
    """

    images: "list[Image.Image] | NDArray[np.uint8]"
    latents: Float32
    seeds: tuple[int, ...]
    timings: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A finished denoising call. Read it before the next step is requested; reading waits for the device.

    Attributes:
        index, total: of the call, counted from 0. Some schedulers need more than one call a step.
        result: the pictures, with the last step only.
    """

    index: int
    total: int
    result: Result | None
    _stages: Stages
    _images: Sequence[Passed]
    _tiling: bool

    def latents(self) -> Float32:
        """(images, C, h, w) float32: what the model sees next; with the last step the finished latents."""
        return _register(self._images, 0)

    def preview(self, method: str = "auto") -> "list[Image.Image]":
        """The pictures as the model predicts them now.

        Args:
            method: "rgb" maps latents to colours, one for each latent pixel, in a fraction of a millisecond; "taesd"
                decodes them with the small decoder of a bundle that was exported with `--preview-vae`; "vae" decodes
                them exactly. "auto" is "taesd" where the bundle has that decoder, else "rgb" where it has
                `latent_rgb`, else "vae".

        Raises: InputError: an unknown method, or one that the bundle has nothing for.
        """
        images = self._stages.preview(_register(self._images, REGISTERS - 1), method, tiling=self._tiling)
        return pil_from_arrays(images, [{}] * len(images))


class Pipeline:
    """A bundle, loaded on a backend. Thread-safe: each call has buffers of its own. Close it, or use it in `with`."""

    def __init__(self, bundle: Bundle, backend: Backend, controls: Mapping[str, ControlManifest] | None = None) -> None:
        """For backends of your own; otherwise use `Pipeline.load`."""
        self.bundle, self._backend = bundle, backend
        self._stages = Stages(bundle, backend, controls)
        self._scheduler_config = bundle.read_json(bundle.manifest.scheduler)
        self._weights_in_use = SharedLock()
        self._lent = False

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        backend: str = "auto",
        device: str | None = None,
        engines: Path | str | None = None,
        trust_engines: bool = False,
        controls: Mapping[str, Path | str] | None = None,
    ) -> Self:
        """Open a bundle.

        Args:
            path: the bundle's folder; None is the small model that ships with latentrt.
            backend: "tensorrt", "tensorrt_rtx", "openvino" or "onnxruntime"; "auto" takes the best of them that works
                here: TensorRT where there are engines, ONNX Runtime on other GPUs, on CPUs what a bundle was quantized
                for, else OpenVINO where it is installed, else ONNX Runtime. An explicit choice never falls back.
            device: "cpu", "cuda" or "cuda:1"; None is the best that the backend finds.
            engines: folder of compiled engines, where they are not in the bundle.
            trust_engines: also load engines that contain host code (those built as version-compatible).
            controls: folders of control bundles, by the names that calls use, such as {"canny": "controls/canny"}.

        Raises: BundleError: not a complete bundle, or a control bundle that does not fit. BackendError: the backend is
        unknown or cannot run here.
        """
        bundle = Bundle.open(embedded_bundle() if path is None else path)
        registers = bundle.manifest.model.registers
        if registers != REGISTERS:
            raise BundleError(
                f"{bundle.path} was exported for plans of {registers} registers, and this runtime's have {REGISTERS}: "
                "export the checkpoint again"
            )
        from latentrt.runtime.backends import load_backend  # imported here because plans and bundles need none

        folder = None if engines is None else Path(engines)
        opened = {name: ControlBundle.open(one) for name, one in (controls or {}).items()}
        check_fit(bundle, opened)
        loaded = load_backend(bundle, backend, device, engines=folder, trust_engines=trust_engines, controls=opened)
        logger.info("%s on %s", bundle.path, loaded.name)
        if loaded.name.endswith("-cpu") and logger.isEnabledFor(logging.INFO):
            for hint in cpu_hints(bundle.manifest):
                logger.info("%s", hint)
        return cls(bundle, loaded, {name: one.manifest for name, one in opened.items()})

    @property
    def backend(self) -> str:
        """What runs the graphs, such as "onnxruntime-cpu"."""
        return self._backend.name

    @property
    def loras(self) -> dict[Path, float]:
        """LoRA files in use and their weights."""
        return {lora.path: lora.weight for lora in self._stages.loras}

    def set_loras(self, loras: Mapping[Path | str, float], *, timeout: float = 60.0) -> float:
        """Draw with these LoRAs from now on, and with no others; `{}` goes back to the checkpoint, bit for bit.

        Args:
            loras: safetensors file of any trainer, or folder of PEFT -> weight, mostly 0 to 1; any number is allowed.
            timeout: seconds to wait for pictures that are being drawn, and for streams that are paused.

        Returns the milliseconds that it took. Raises `InputError` for a file that does not fit the bundle, and where
        the pictures are not finished in time; `BackendError` for engines that were built without `--refittable`. Then
        everything stays as it was.
        """
        self._require_own()
        start = time.perf_counter()
        put_in = self._stages.loras_of(loras)
        busy = (
            f"pictures are still being drawn after {timeout:g} s: finish or close all streams before you change LoRAs"
        )
        with self._weights_in_use.alone(busy, timeout):
            count = put_in()
        took = 1000 * (time.perf_counter() - start)
        logger.info("%d LoRAs change %d weights on %s; swapped in %.0f ms", len(loras), count, self.backend, took)
        return took

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]) -> Result:
        """Draw pictures.

        Args:
            prompt: a text, or one for each picture.
            **options: see `docs/options.md`, or `latentrt.runtime.request.OPTIONS`.

        Raises: InputError, SchedulerError: wrong arguments. NonFiniteError: the model returned NaN or infinity.
        """
        *_, last = self.stream(prompt, **options)
        assert last.result is not None
        return last.result

    def stream(self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]) -> Iterator[Step]:
        """The same call as a generator of steps, for progress, previews and cancelling (stop asking for steps)."""
        manifest = self.bundle.manifest
        self._require_own()
        # Checked here, not at the first step, so that the error is raised by the call itself.
        request = Request.from_call(manifest, self._scheduler_config, prompt, options, self._stages.controls)
        return self._checked_steps(request)

    def png_texts(
        self, prompt: str | Sequence[str] | None = None, **options: Unpack[CallOptions]
    ) -> list[dict[str, str]]:
        """The text chunks that each picture of this call would have in a PNG file. Draws nothing.

        Raises: InputError, SchedulerError: wrong arguments.
        """
        manifest = self.bundle.manifest
        self._require_own()
        request = Request.from_call(manifest, self._scheduler_config, prompt, options, self._stages.controls)
        return self._stages.png_texts(request)

    def _checked_steps(self, request: Request) -> Iterator[Step]:
        try:
            yield from self._steps(request)
        except MemoryError:
            raise InputError(OUT_OF_MEMORY) from None

    def _steps(self, request: Request) -> Iterator[Step]:
        self._stages.require_open()
        with self._weights_in_use.shared():
            clock = _Clock()
            trajectories = self._stages.trajectories(request, lap=clock.lap)
            with closing(self.slots(trajectories[0].bucket, len(trajectories))) as slots:
                for images in run(slots, trajectories):
                    index, total, result = images[0].index, images[0].total, None
                    if images[0].finished:
                        latents = _register(images, 0)
                        clock.lap("denoise")
                        result = self._result(request, latents, clock)
                    yield Step(index, total, result, self._stages, images, bool(request.options["vae_tiling"]))
                    self._stages.require_open()

    def _result(self, request: Request, latents: Float32, clock: "_Clock") -> Result:
        images: list[Image.Image] | NDArray[np.uint8] = []
        if request.options["output_type"] == "latent":
            bad = np.flatnonzero(~np.isfinite(latents).all(axis=(1, 2, 3)))
        else:
            images, nonfinite = self._stages.decode(latents, tiling=bool(request.options["vae_tiling"]))
            bad = np.flatnonzero(nonfinite)
            clock.lap("vae_decoder")
        if bad.size:
            raise self._stages.overflowed(bad.tolist(), len(latents))
        if request.options["output_type"] == "pil":
            images = self._stages.pil_images(request, np.asarray(images))
        return Result(images, latents, request.seeds, clock.done())

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """Run one of the bundle's graphs on host arrays; `bundle.graph(name)` has the inputs and outputs.

        Args:
            layers: return only these of the output `hidden_states`; None is all.
        """
        return self._stages.run(graph, inputs, layers)

    def slots(self, bucket: Bucket, count: int) -> Slots:
        """Slots for a loop of your own, for this many images of these sizes. Close them."""
        return self._stages.slots(bucket, count)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text encoder."""
        return self.tokenizers[0]

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The bundle's tokenizers, one for each text encoder."""
        return self._stages.tokenizers

    def lend(self) -> Stages:
        """Hand the stages to a dispatcher. From now on calls and LoRAs go through it; here they raise `InputError`."""
        self._require_own()
        self._lent = True
        return self._stages

    def warm_up(self, **options: Unpack[CallOptions]) -> None:
        """Load everything and draw one step at the given sizes, so that the first real call is as fast as the next."""
        merged: CallOptions = {"num_inference_steps": 1, "seed": 0}
        merged.update(options)
        self("", **merged)

    def close(self) -> None:
        """Free all memory. The pipeline cannot draw after this; streams that are under way raise at their next step."""
        self._stages.close()

    def _require_own(self) -> None:
        self._stages.require_open()
        if self._lent:
            raise InputError("this pipeline belongs to a dispatcher: submit calls and LoRAs to it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def embedded_bundle() -> Path:
    """Folder of the small model that ships with latentrt."""
    from latentrt import engines

    return Path(next(iter(engines.__path__))) / "shapes"


def _register(images: Sequence[Passed], register: int) -> Float32:
    """(images, C, h, w)."""
    copies = [image.fetch(register) for image in images]
    return np.stack([copy.result() for copy in copies])


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self._laps[stage] = 1000 * (now - self._last)
        self._last = now

    def done(self) -> dict[str, float]:
        """All laps, and the total."""
        return {**self._laps, "total": 1000 * (time.perf_counter() - self._start)}
