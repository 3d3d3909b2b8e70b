"""Prompt to picture: text encoder, denoising loop, VAE decoder, on any backend. Never imports PyTorch."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, takes
from latentrt.runtime.latents import PREVIEWS, TorchGenerator, Vae, initial_latents, known_images, rgb_from_latents
from latentrt.runtime.latents.initial import InitialLatents
from latentrt.runtime.loop.resident import Passed, run
from latentrt.runtime.request import OUT_OF_MEMORY, CallOptions, LoraFile, Request, Source, png_text, time_inputs
from latentrt.runtime.scheduler import REGISTERS
from latentrt.runtime.text import Tokenizer, conditioning_from_texts, encode, tokenize
from latentrt.runtime.text.conditioning import Conditioning
from latentrt.runtime.weights import changed_weights, checked_factors, sha256_of_lora

from .arrays import Float32, Layers
from .errors import BackendError, BundleError, InputError, NonFiniteError, unknown
from .image import pil_from_arrays
from .locks import SharedLock
from .protocols import Backend, Bucket, Slots, Trajectory

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
    _pipeline: "Pipeline"
    _images: Sequence[Passed]
    _tiling: bool

    def latents(self) -> Float32:
        """(images, C, h, w) float32: what the model sees next; with the last step the finished latents."""
        return _register(self._images, 0)

    def preview(self, method: str = "auto") -> "list[Image.Image]":
        """The pictures as the model predicts them now.

        Args:
            method: "rgb" maps latents to colours, one for each latent pixel, in a fraction of a millisecond; "vae"
                decodes them. "auto" is "rgb" where the bundle has `latent_rgb`, else "vae".

        Raises: InputError: an unknown method, or "rgb" on a bundle without `latent_rgb`.
        """
        images = self._pipeline._preview(_register(self._images, REGISTERS - 1), method, tiling=self._tiling)
        return pil_from_arrays(images, [{}] * len(images))


class Pipeline:
    """A bundle, loaded on a backend. Thread-safe: each call has buffers of its own. Close it, or use it in `with`."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """For backends of your own; otherwise use `Pipeline.load`."""
        self.bundle, self._backend = bundle, backend
        self._scheduler_config = bundle.read_json(bundle.manifest.scheduler)
        self._loras: tuple[LoraFile, ...] = ()
        self._weights_in_use = SharedLock()
        self._closed = False
        self._vae = Vae(bundle.manifest.model, self.run)

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        backend: str = "auto",
        device: str | None = None,
        engines: Path | str | None = None,
        trust_engines: bool = False,
    ) -> Self:
        """Open a bundle.

        Args:
            path: the bundle's folder; None is the small model that ships with latentrt.
            backend: "tensorrt", "tensorrt_rtx", "openvino" or "onnxruntime"; "auto" takes the best of them that works
                here: TensorRT where there are engines, ONNX Runtime on other GPUs, OpenVINO on CPUs where it is
                installed, else ONNX Runtime. An explicit choice never falls back.
            device: "cpu", "cuda" or "cuda:1"; None is the best that the backend finds.
            engines: folder of compiled engines, where they are not in the bundle.
            trust_engines: also load engines that contain host code (those built as version-compatible).

        Raises: BundleError: not a complete bundle. BackendError: the backend is unknown or cannot run here.
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
        loaded = load_backend(bundle, backend, device, engines=folder, trust_engines=trust_engines)
        logger.info("%s on %s", bundle.path, loaded.name)
        return cls(bundle, loaded)

    @property
    def backend(self) -> str:
        """What runs the graphs, such as "onnxruntime-cpu"."""
        return self._backend.name

    @property
    def loras(self) -> dict[Path, float]:
        """LoRA files in use and their weights."""
        return {lora.path: lora.weight for lora in self._loras}

    def set_loras(self, loras: Mapping[Path | str, float], *, timeout: float = 60.0) -> float:
        """Draw with these LoRAs from now on, and with no others; `{}` goes back to the checkpoint, bit for bit.

        Args:
            loras: safetensors file of any trainer, or folder of PEFT -> weight, mostly 0 to 1; any number is allowed.
            timeout: seconds to wait for pictures that are being drawn, and for streams that are paused.

        Returns the milliseconds that it took. Raises `InputError` for a file that does not fit the bundle, and where
        the pictures are not finished in time; `BackendError` for engines that were built without `--refittable`. Then
        everything stays as it was.
        """
        self._require_open()
        start = time.perf_counter()
        wanted = checked_factors(loras)
        weights = changed_weights(self.bundle, wanted)
        in_use = tuple(LoraFile(path, sha256_of_lora(path), weight) for path, weight in wanted.items())
        busy = (
            f"pictures are still being drawn after {timeout:g} s: finish or close all streams before you change LoRAs"
        )
        with self._weights_in_use.alone(busy, timeout):
            self._backend.set_weights(weights)
            self._loras = in_use
        took = 1000 * (time.perf_counter() - start)
        count = sum(map(len, weights.values()))
        logger.info("%d LoRAs change %d weights on %s; swapped in %.0f ms", len(wanted), count, self.backend, took)
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
        self._require_open()
        # Checked here, not at the first step, so that the error is raised by the call itself.
        request = Request.from_call(manifest, self._scheduler_config, prompt, options)
        return self._checked_steps(request)

    def _checked_steps(self, request: Request) -> Iterator[Step]:
        try:
            yield from self._steps(request)
        except MemoryError:
            raise InputError(OUT_OF_MEMORY) from None

    def _steps(self, request: Request) -> Iterator[Step]:
        self._require_open()
        with self._weights_in_use.shared():
            clock = _Clock()
            trajectories = self._trajectories(request, clock)
            with closing(self.slots(trajectories[0].bucket, len(trajectories))) as slots:
                for images in run(slots, trajectories):
                    index, total, result = images[0].index, images[0].total, None
                    if images[0].finished:
                        latents = _register(images, 0)
                        clock.lap("denoise")
                        result = self._result(request, latents, clock)
                    yield Step(index, total, result, self, images, bool(request.options["vae_tiling"]))
                    self._require_open()

    def _trajectories(self, request: Request, clock: "_Clock") -> list[Trajectory]:
        conditioning = self._conditioning(request, clock)
        initial = self._initial_latents(request, clock)
        groups, graph = conditioning.context.shape[1], self.bundle.graph("time")
        scale, rescale = request.guidance_scale, request.options["guidance_rescale"] or 0.0
        return [
            Trajectory(
                request.plan,
                conditioning.context[i],
                request.guidance,
                start.noise,
                rescale,
                start.clean,
                start.mask,
                start.extra,
                time_inputs(
                    graph,
                    pooled=None if conditioning.pooled is None else conditioning.pooled[i],
                    time_ids=request.time_ids,
                    guidance_scale=scale,
                    groups=groups,
                ),
            )
            for i, start in enumerate(initial)
        ]

    def _conditioning(self, request: Request, clock: "_Clock") -> Conditioning:
        encoders = self.bundle.manifest.model.text_encoders
        negative = request.negative if request.guided else None
        sides = [request.positive] if negative is None else [negative, request.positive]
        tokens = tokenize(sides, self.tokenizers, split=request.options["long_prompt"] == "chunk")
        if tokens:
            clock.lap("tokenize")
        skip = request.options["clip_skip"] or 0
        encoded = encode(tokens, encoders, self.run, clip_skip=skip)
        if encoded:
            clock.lap("text_encoder")
        return conditioning_from_texts(request.positive, negative, encoded, encoders, clip_skip=skip)

    def _initial_latents(self, request: Request, clock: "_Clock") -> list[InitialLatents]:
        """What each image starts from; each has a generator of its own, so it does not depend on its batch."""
        model, factor = self.bundle.manifest.model, self.bundle.manifest.model.vae_scale_factor
        known = None
        if request.image is not None:
            known = known_images(
                request.image,
                request.plan,
                scaling=model.scaling_factor,
                factor=factor,
                inpaints=takes(self.bundle.graph("denoise"), "extra"),
                encode=partial(self._vae.encode, tiling=bool(request.options["vae_tiling"])),
            )
        shape = (model.latent_channels, request.height // factor, request.width // factor)
        delta, rng = request.options["noise_seed_delta"] or 0, request.options["rng"] or "cpu"
        result = [
            initial_latents(
                request.plan,
                TorchGenerator(seed, rng),
                shape,
                noise=None if request.noise is None else request.noise[i],
                known=None if known is None else known[i],
                between=TorchGenerator(seed + delta, rng) if delta else None,
            )
            for i, seed in enumerate(request.seeds)
        ]
        if known is not None:
            clock.lap("vae_encoder")
        return result

    def _result(self, request: Request, latents: Float32, clock: "_Clock") -> Result:
        images: list[Image.Image] | NDArray[np.uint8] = []
        if request.options["output_type"] == "latent":
            bad = np.flatnonzero(~np.isfinite(latents).all(axis=(1, 2, 3)))
        else:
            images, nonfinite = self._vae.decode(latents, tiling=bool(request.options["vae_tiling"]))
            bad = np.flatnonzero(nonfinite)
            clock.lap("vae_decoder")
        if bad.size:
            recipe = self.bundle.manifest.recipe
            raise NonFiniteError(
                f"image {', '.join(map(str, bad))} of {len(latents)} holds NaN or infinity. The model overflowed: "
                f"this bundle is {recipe.precision}, its VAE {recipe.vae_precision}; export it with "
                "--vae-precision fp32 or --precision fp32, or lower the guidance scale"
            )
        if request.options["output_type"] == "pil":
            source = self._source()
            texts = [png_text(request, i, source) for i in range(len(latents))]
            images = pil_from_arrays(np.asarray(images), texts)
        return Result(images, latents, request.seeds, clock.done())

    def _preview(self, latents: Float32, method: str, *, tiling: bool) -> NDArray[np.uint8]:
        model = self.bundle.manifest.model
        if method not in PREVIEWS:
            raise InputError(unknown("preview method", method, PREVIEWS))
        if method == "vae" or (method == "auto" and model.latent_rgb is None):
            return self._vae.decode(latents, tiling=tiling)[0]
        if model.latent_rgb is None:
            raise InputError(f"{self.bundle.path} has no latent_rgb: use method='vae', or export the checkpoint again")
        return rgb_from_latents(latents, model.latent_rgb, factor=model.vae_scale_factor)

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """Run one of the bundle's graphs on host arrays; `bundle.graph(name)` has the inputs and outputs.

        Args:
            layers: return only these of the output `hidden_states`; None is all.
        """
        self._require_open()
        return self._backend.engine(graph).run(inputs, layers)

    def slots(self, bucket: Bucket, count: int) -> Slots:
        """Slots for a loop of your own, for this many images of these sizes. Close them."""
        self._require_open()
        return self._backend.slots(bucket, count)

    def _source(self) -> Source:
        from importlib.metadata import version  # imported here because it is slow to import

        checkpoint = self.bundle.manifest.checkpoint
        return Source(checkpoint.name, checkpoint.sha256, self._loras, version("latentrt"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text encoder."""
        return self.tokenizers[0]

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The bundle's tokenizers, one for each text encoder."""
        encoders = self.bundle.manifest.model.text_encoders
        return tuple(Tokenizer.from_file(self.bundle.file(facts.tokenizer), facts) for facts in encoders)

    def warm_up(self, **options: Unpack[CallOptions]) -> None:
        """Load everything and draw one step at the given sizes, so that the first real call is as fast as the next."""
        merged: CallOptions = {"num_inference_steps": 1, "seed": 0}
        merged.update(options)
        self("", **merged)

    def close(self) -> None:
        """Free all memory. The pipeline cannot draw after this; streams that are under way raise at their next step."""
        self._closed = True
        self._backend.close()

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"this pipeline of {self.bundle.path} is closed: load the bundle again")

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
