"""The stages of a call, one by one: texts and pictures to trajectories, slots for the loop, latents to pictures.

`Pipeline` runs them for one call at a time, a dispatcher for many at once. Knows graphs and requests; knows nothing of
order, threads or clocks: its caller sees to it that weights change while nothing is drawn.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, ControlManifest, takes
from latentrt.runtime.bundle.manifest import CheckpointRecord
from latentrt.runtime.latents import (
    PREVIEWS,
    TorchGenerator,
    Vae,
    initial_latents,
    known_images,
    rgb_from_latents,
)
from latentrt.runtime.latents.initial import InitialLatents
from latentrt.runtime.request import LoraFile, ModelFacts, Request, Source, png_text, time_inputs
from latentrt.runtime.text import Tokenizer, conditioning_from_texts, encode, tokenize, tokenizers_of
from latentrt.runtime.text.conditioning import Conditioning
from latentrt.runtime.weights import changed_weights, checked_factors, sha256_of_lora

from .arrays import Float32, Layers, RunEncoder
from .errors import BackendError, InputError, NonFiniteError, unknown
from .image import pil_from_arrays
from .protocols import Backend, Bucket, Slots, Trajectory
from .steering import steered

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
Lap = Callable[[str], None]  # told the name of each stage that has just ended


# Of one image: what draws, and what draws for the stochastic calls instead, if anything.
Generators = tuple[TorchGenerator, TorchGenerator | None]


def generators_of(request: Request) -> list[Generators]:
    """New generators for the images of a request."""
    delta, rng = request.options["noise_seed_delta"] or 0, request.options["rng"] or "cpu"
    return [(TorchGenerator(seed, rng), TorchGenerator(seed + delta, rng) if delta else None) for seed in request.seeds]


class Stages:
    """The stages on one backend. Thread-safe where the backend is, but for `set_loras`."""

    def __init__(self, bundle: Bundle, backend: Backend, controls: Mapping[str, ControlManifest] | None = None) -> None:
        """`controls`: manifests of the backend's nets, by name."""
        self.bundle, self.backend = bundle, backend
        self.controls = dict(controls or {})
        self.private = False  # see `Source`
        self.loras: tuple[LoraFile, ...] = ()
        self.refiner: CheckpointRecord | None = None  # of a second pass by another model
        self.vae = Vae(bundle.manifest.model, self.run)
        self._closed = False

    @cached_property
    def facts(self) -> ModelFacts:
        """What calls are checked against."""
        manifest = self.bundle.manifest
        return ModelFacts(manifest, self.bundle.read_json(manifest.scheduler), self.controls)

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The bundle's tokenizers, one for each text encoder."""
        return tokenizers_of(self.bundle)

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `Pipeline.run`."""
        self.require_open()
        return self.backend.engine(graph).run(inputs, layers)

    def trajectories(
        self,
        request: Request,
        *,
        lap: Lap = lambda _: None,
        run_encoder: RunEncoder | None = None,
        generators: Sequence[Generators] | None = None,
    ) -> list[Trajectory]:
        """Encode the texts and pictures of a pass: a trajectory for each image.

        Args:
            lap: called after tokenize, text_encoder and vae_encoder, where they are needed.
            run_encoder: runs text encoders instead of `run`, for a cache.
            generators: of an earlier pass that this one goes on with; None is new ones.
        """
        conditioning = self._conditioning(request, lap, run_encoder or self.run)
        initial = self._initial_latents(request, lap, generators or generators_of(request))
        groups, graph = conditioning.context.shape[1], self.bundle.graph("time")
        scale, rescale = request.guidance_scale, request.options["guidance_rescale"] or 0.0
        inputs = [
            time_inputs(
                graph,
                pooled=None if conditioning.pooled is None else conditioning.pooled[i],
                time_ids=request.time_ids,
                guidance_scale=scale,
                groups=groups,
            )
            for i in range(len(initial))
        ]
        steering = steered(request, self.backend.nets, self.controls, inputs)
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
                inputs[i],
                controls=steering[i].controls,
                image_prompt=steering[i].image_prompt,
                features=steering[i].features,
            )
            for i, start in enumerate(initial)
        ]

    def _conditioning(self, request: Request, lap: Lap, run: RunEncoder) -> Conditioning:
        encoders = self.bundle.manifest.model.text_encoders
        negative = request.negative if request.guided else None
        sides = [request.positive] if negative is None else [negative, request.positive]
        tokens = tokenize(sides, self.tokenizers, split=request.options["long_prompt"] == "chunk")
        if tokens:
            lap("tokenize")
        skip = request.options["clip_skip"] or 0
        encoded = encode(tokens, encoders, run, clip_skip=skip)
        if encoded:
            lap("text_encoder")
        return conditioning_from_texts(request.positive, negative, encoded, encoders, clip_skip=skip)

    def _initial_latents(self, request: Request, lap: Lap, generators: Sequence[Generators]) -> list[InitialLatents]:
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
                encode=partial(self.vae.encode, tiling=bool(request.options["vae_tiling"])),
            )
        shape = (model.latent_channels, request.height // factor, request.width // factor)
        result = [
            initial_latents(
                request.plan,
                generator,
                shape,
                noise=None if request.noise is None else request.noise[i],
                known=None if known is None else known[i],
                between=between,
            )
            for i, (generator, between) in enumerate(generators)
        ]
        if known is not None:
            lap("vae_encoder")
        return result

    def slots(self, bucket: Bucket, count: int) -> Slots:
        """See `Pipeline.slots`."""
        self.require_open()
        return self.backend.slots(bucket, count)

    def decode(self, latents: Float32, *, tiling: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Latents (n, C, h, w) to pictures (n, H, W, 3) and (n,), whether a picture holds NaN or infinity."""
        images, nonfinite = self.vae.decode(latents, tiling=tiling)
        return images, nonfinite != 0

    def overflowed(self, bad: Sequence[int], count: int) -> NonFiniteError:
        """The error for images of a call that hold NaN or infinity."""
        recipe = self.bundle.manifest.recipe
        return NonFiniteError(
            f"image {', '.join(map(str, bad))} of {count} holds NaN or infinity. The model overflowed: "
            f"this bundle is {recipe.precision}, its VAE {recipe.vae_precision}; export it with "
            "--vae-precision fp32 or --precision fp32, or lower the guidance scale"
        )

    def pil_images(
        self, request: Request, pictures: NDArray[np.uint8], indices: Sequence[int] | None = None
    ) -> "list[Image.Image]":
        """Pictures (n, H, W, 3) as PIL images with the text that they can be drawn again from.

        Args:
            indices: which images of the call they are; None is all of them.
        """
        return pil_from_arrays(pictures, self.png_texts(request, indices))

    def png_texts(self, request: Request, indices: Sequence[int] | None = None) -> list[dict[str, str]]:
        """The text chunks of these images of a call."""
        source = self._source()
        return [png_text(request, i, source) for i in (range(len(request.seeds)) if indices is None else indices)]

    def preview(self, latents: Float32, method: str, *, tiling: bool) -> NDArray[np.uint8]:
        """(n, H, W, 3) bytes of predicted clean latents (n, C, h, w); see `Step.preview`."""
        model = self.bundle.manifest.model
        if method not in PREVIEWS:
            raise InputError(unknown("preview method", method, PREVIEWS))
        if method == "auto":
            return self._fast_preview(latents, tiling=tiling)
        if method == "vae":
            return self.vae.decode(latents, tiling=tiling)[0]
        if method == "taesd":
            if "preview_decoder" not in self.bundle.manifest.graphs:
                raise InputError(
                    f"{self.bundle.path} has no preview_decoder: use another method, or export the checkpoint again "
                    "with --preview-vae"
                )
            return self.vae.decode(latents, tiling=tiling, graph="preview_decoder")[0]
        if model.latent_rgb is None:
            raise InputError(f"{self.bundle.path} has no latent_rgb: use method='vae', or export the checkpoint again")
        return rgb_from_latents(latents, model.latent_rgb, factor=model.vae_scale_factor)

    def _fast_preview(self, latents: Float32, *, tiling: bool) -> NDArray[np.uint8]:
        """By the first of "taesd", "rgb" and "vae" that the bundle has, and for the first an engine of these sizes."""
        rgb_or_vae = "vae" if self.bundle.manifest.model.latent_rgb is None else "rgb"
        if "preview_decoder" in self.bundle.manifest.graphs:
            try:
                return self.preview(latents, "taesd", tiling=tiling)
            except BackendError as error:
                logger.info("the preview is by %s: %s", rgb_or_vae, error)
        return self.preview(latents, rgb_or_vae, tiling=tiling)

    def loras_of(self, loras: Mapping[Path | str, float]) -> Callable[[], int]:
        """Read LoRAs; the function that is returned puts them in, and says how many weights they change.

        Raises `InputError` for files that do not fit, `BackendError` for engines without `--refittable`; then
        everything stays as it was.
        """
        self.require_open()
        wanted = checked_factors(loras)
        weights = changed_weights(self.bundle, wanted)
        in_use = tuple(LoraFile(path, sha256_of_lora(path), weight) for path, weight in wanted.items())

        def put_in() -> int:
            self.backend.set_weights(weights)
            self.loras = in_use
            return sum(map(len, weights.values()))

        return put_in

    def _source(self) -> Source:
        from importlib.metadata import version  # imported here because it is slow to import

        checkpoint = self.bundle.manifest.checkpoint
        return Source(checkpoint.name, checkpoint.sha256, self.loras, version("latentrt"), self.private, self.refiner)

    def close(self) -> None:
        """Free all memory."""
        self._closed = True
        self.backend.close()

    def require_open(self) -> None:
        """Raise `BackendError` once this is closed."""
        if self._closed:
            raise BackendError(f"this pipeline of {self.bundle.path} is closed: load the bundle again")
