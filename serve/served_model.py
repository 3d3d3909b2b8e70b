"""A model as the front end knows it: which calls it takes, which sizes, which LoRAs. Loads no graph.

What a client sends is checked here before any work; no path is ever taken from it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from latentrt.runtime.bundle import Bundle, ControlManifest, EngineRecord
from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.request import Call, CallOptions, ModelFacts, Request, checked_call
from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.scheduler import scheduler_names
from latentrt.runtime.text import Tokenizer, tokenize, tokenizers_of

from .messages import LoraSet

RATIOS = (1.0, 5 / 4, 3 / 2, 16 / 9)
LORA_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask for.

    Attributes:
        images: in one call.
        steps: UNet calls of one image.
        chunks: of 75 tokens, of one text.
        loras: in one set.
    """

    images: int = 10
    steps: int = 150
    chunks: int = 3
    loras: int = 8


def _holds_path(value: Any) -> bool:
    """Whether a picture, or one of several, is a path."""
    if isinstance(value, Mapping):
        return any(map(_holds_path, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_path, value))
    return isinstance(value, str | bytes | os.PathLike)


class ServedModel:
    """One bundle at the server."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        lora_folder: Path | None = None,
        limits: Limits | None = None,
        controls: Mapping[str, ControlManifest] | None = None,
        refiner: "ServedModel | None" = None,
    ) -> None:
        """A model.

        Args:
            sizes: (width, height) that clients may ask for; None is `usual_sizes`.
            refiner: what goes on from the option `refiner_start`.
        """
        self.refiner = refiner
        self.controls = dict(controls or {})
        self.name, self.bundle, self.limits = name, bundle, limits or Limits()
        defaults = bundle.manifest.defaults
        own = (defaults.width, defaults.height)
        self.sizes = tuple(sizes) if sizes else usual_sizes(*own)
        self.default_size = own if own in self.sizes else self.sizes[0]
        self._lora_folder = lora_folder
        self._facts = ModelFacts(bundle.manifest, bundle.read_json(bundle.manifest.scheduler), self.controls)

    @cached_property
    def _tokenizers(self) -> tuple[Tokenizer, ...]:
        return tokenizers_of(self.bundle)

    def call(self, prompt: str | Sequence[str] | None, options: Mapping[str, Any]) -> Call:
        """Check a call and its limits. Raises `InputError` or `SchedulerError`, which say what is allowed.

        Args:
            options: as for `Pipeline.__call__`; pictures are PIL images or arrays, never paths. A size that is not
                given is the model's, also with a picture to begin from.
        """
        given = self._with_size(options)
        if self.refiner is None and given.get("refiner_start") is not None:
            raise InputError(
                f"refiner_start: {self.name} has no refiner at this server; leave it out, or have the operator name "
                "one: refiner in the table [[model]] of the settings file"
            )
        refiner = None if self.refiner is None else self.refiner._facts
        call = checked_call(self._facts, prompt, cast(CallOptions, given), refiner=refiner)
        self._check_limits(call.first)
        if call.second is not None:
            second = self.refiner if self.refiner is not None and call.refines else self
            second._check_limits(call.second)
        return call

    def _with_size(self, options: Mapping[str, Any]) -> dict[str, Any]:
        for name in BY_HASH:
            if _holds_path(options.get(name)):
                raise InputError(f"{name}: expected the picture itself, not a path or an address")
        sides = {"width": self.default_size[0], "height": self.default_size[1]}
        return sides | {name: value for name, value in options.items() if value is not None}

    def request(self, prompt: str | Sequence[str] | None, options: Mapping[str, Any]) -> Request:
        """Check a call of one pass, like `call`."""
        call = self.call(prompt, options)
        if call.refines:
            raise InputError("a call of one pass is expected: pass refiner_start=1 to leave the refiner out")
        require_one_size(call)
        return call.first

    def _check_limits(self, request: Request) -> None:
        size, limits = (request.width, request.height), self.limits
        if size not in self.sizes:
            raise InputError(self.wrong_size(size))
        if len(request.seeds) > limits.images:
            raise InputError(f"{len(request.seeds)} images: expected at most {limits.images} in one call")
        if len(request.plan) > limits.steps:
            raise InputError(
                f"this call needs {len(request.plan)} UNet calls an image: expected at most {limits.steps}"
            )
        tokens = self.tokens(request)
        most = limits.chunks * self._tokenizers[0].capacity
        if tokens > limits.chunks * 77:
            raise InputError(f"a text has more than {most} tokens: expected at most {limits.chunks} chunks")

    def tokens(self, request: Request) -> int:
        """The length of the texts' hidden states, padded to the longest: S of the bucket."""
        sides = [request.negative, request.positive] if request.guided else [request.positive]
        lengths: list[int] = [side.embeds.shape[1] for side in sides if side.embeds is not None]
        split = request.options["long_prompt"] == "chunk"
        for of_encoder in tokenize(sides, self._tokenizers, split=split):
            lengths += [chunks.ids.size for chunks in of_encoder.values()]
        return max(lengths)

    def bucket(self, request: Request) -> Bucket:
        """The sizes of a call's images in UNet calls."""
        factor = self.bundle.manifest.model.vae_scale_factor
        groups = 2 if request.guided else 1
        bucket = Bucket(groups, request.height // factor, request.width // factor, self.tokens(request))
        if request.image_prompt is None:
            return bucket
        return replace(bucket, image_tokens=self.controls[request.image_prompt.net].image_tokens)

    @property
    def sizes_text(self) -> str:
        """The sizes, for messages."""
        return ", ".join(map(shown_size, self.sizes))

    def wrong_size(self, size: tuple[int, int]) -> str:
        """The message for a size that the model does not draw here."""
        nearest = shown_size(self.nearest_size(size))
        return f"size {shown_size(size)}: {self.name} draws {self.sizes_text}; the nearest is {nearest}"

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size whose aspect ratio is most like that of another size; of several, the one with the nearest sides."""

        def distance(own: tuple[int, int]) -> tuple[float, int]:
            aspect = math.log(max(size[0], 1) * own[1] / (max(size[1], 1) * own[0]))
            return round(abs(aspect), 9), abs(own[0] - size[0]) + abs(own[1] - size[1])

        return min(self.sizes, key=distance)

    def defaults(self) -> dict[str, float]:
        """What calls get that leave these options out: steps, guidance, strength, and a size in pixels."""
        width, height = self.default_size
        return {**asdict(self.bundle.manifest.defaults), "width": width, "height": height}

    def scheduler_names(self) -> list[str]:
        """Short names of schedulers that calls may ask for; names of classes are accepted, too."""
        return [name for name in scheduler_names() if name.islower()]

    def lora_names(self) -> list[str]:
        """The LoRAs of the operator's folder, by the names of their files."""
        if self._lora_folder is None:
            return []
        return sorted(file.stem for file in self._lora_folder.glob(f"*{LORA_SUFFIX}"))

    def loras(self, given: Mapping[str, float]) -> LoraSet:
        """The set that a call asks for; raises `InputError` for unknown names and weights that are no numbers."""
        known = self.lora_names()
        for name, weight in given.items():
            if name not in known:
                if not known:
                    raise InputError(f"unknown LoRA {name[:80]!r}: this server has none for {self.name}")
                raise InputError(unknown("LoRA", name, known))
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= 100:
                raise InputError(f"the LoRA {name} has the weight {weight!r}: expected a number from -100 to 100")
        if len(given) > self.limits.loras:
            raise InputError(f"{len(given)} LoRAs: expected at most {self.limits.loras}")
        return tuple(sorted((name, float(weight)) for name, weight in given.items() if weight))

    def lora_file(self, name: str) -> Path:
        """The file of a LoRA that `loras` has accepted."""
        assert self._lora_folder is not None
        return self._lora_folder / f"{name}{LORA_SUFFIX}"


def require_one_size(call: Call) -> None:
    """Raise `InputError` for a call whose second pass is enlarged, which has an answer in one API alone."""
    if call.second is not None and not call.refines:
        raise InputError("hires_scale: a second pass is drawn by /sdapi/v1/txt2img alone, with enable_hr")


def shown_size(size: tuple[int, int]) -> str:
    """Such as 512x768: width, height."""
    return f"{size[0]}x{size[1]}"


def usual_sizes(width: int, height: int) -> tuple[tuple[int, int], ...]:
    """The model's size, and the usual aspect ratios at about its area, in steps of 64 pixels."""
    side = (width * height) ** 0.5
    result = {(width, height): None}
    for ratio in RATIOS:
        long, short = (max(64, int(side * factor / 64 + 0.5) * 64) for factor in (ratio**0.5, ratio**-0.5))
        result |= {(long, short): None, (short, long): None}
    return tuple(result)


def sizes_of_engines(bundle: Bundle, engines: Sequence[EngineRecord]) -> tuple[tuple[int, int], ...] | None:
    """The sizes (width, height) that compiled engines of the UNet are for; None where no engine has sizes of its own.

    Of a range, these are the usual sizes in it, and the one that it was tuned for.
    """
    defaults, factor = bundle.manifest.defaults, bundle.manifest.model.vae_scale_factor
    result: dict[tuple[int, int], None] = {}
    for record in engines:
        if record.graph != "denoise" or not {"h", "w"} <= record.profile.keys():
            continue
        (low_h, tuned_h, high_h), (low_w, tuned_w, high_w) = record.profile["h"], record.profile["w"]
        candidates = [(tuned_w * factor, tuned_h * factor), *usual_sizes(defaults.width, defaults.height)]
        for width, height in candidates:
            if low_w * factor <= width <= high_w * factor and low_h * factor <= height <= high_h * factor:
                result[width, height] = None
    return tuple(result) or None
