"""What a quantization is asked to do, checked before any work."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentrt.runtime.backends.openvino_backend import openvino_is_installed
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.manifest import QUANTIZED, QUANTIZED_FOR
from latentrt.runtime.errors import InputError, unknown

from .forms import Form, form_of
from .layers import kinds_at
from .observe import Calibration

TARGETS = ("cpu", *QUANTIZED_FOR)
_NEVER = ("blend", "time", "context", "preview_decoder")  # graphs that run once, or without weights, or are small
# Of every so many prompts, the last is left out of the calibration, for the gate.
HELD_OUT = 4
PROMPTS = (
    "a photo of a red fox sitting in fresh snow, morning light",
    "an oil painting of a harbour with sailing boats at sunset",
    "portrait of an old woman with silver hair, studio lighting, 85 mm",
    "a bowl of ramen with an egg and spring onions, seen from above",
    "a modern glass house in a pine forest, architecture magazine",
    "watercolour of a hummingbird and pink flowers on white paper",
    "a black and white photo of a street in the rain at night",
    "an astronaut on a green meadow, wide angle, clear sky",
    "a steam locomotive crossing a stone bridge, detailed illustration",
    "macro photo of a blue butterfly on a leaf",
    "a child's drawing of a house, a tree and a yellow sun",
    "a knight in shining armour before a dark castle, concept art",
    "a plate of fresh fruit on a wooden table, still life",
    "the skyline of a big city from the sea, long exposure",
    "a corgi wearing round glasses and reading a book",
    "an abstract composition of circles and triangles in primary colours",
)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Options of a quantization.

    Attributes:
        to: "int8", "fp8" or "int8-weights".
        target: whose kernels: "cpu" is OpenVINO where it is installed, else ONNX Runtime.
        level: see `Quantization.level`.
        graphs: names of the graphs to quantize.
        prompts: at least 4; of every 4, the last is for the gate alone.
        calibration: that of an earlier run, in place of one; its prompts should be these.
        keep_float: so many of the layers that cost most stay in float.
        gate_mean, gate_worst: the most relative error of the guided prediction, in the mean and at any call.
        steps, height, width: of the pictures of calibration and gate; None is the bundle's default.
        loras: file -> weight, merged before.
        overwrite: replace an existing folder.
    """

    to: str
    target: str = "cpu"
    level: float = 3.0
    graphs: tuple[str, ...] = ("denoise",)
    prompts: tuple[str, ...] = PROMPTS
    calibration: Calibration | None = None
    keep_float: int = 0
    gate_mean: float = 0.10
    gate_worst: float = 0.15
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    loras: Mapping[Path | str, float] = field(default_factory=dict)
    overwrite: bool = False

    @property
    def backend(self) -> str:
        """The target without "cpu"."""
        if self.target != "cpu":
            return self.target
        return "openvino" if openvino_is_installed() else "onnxruntime"

    @property
    def form(self) -> Form:
        """How layers are written."""
        return form_of(self.to, self.backend)

    @property
    def calibration_prompts(self) -> tuple[str, ...]:
        """The prompts whose activations are observed."""
        return tuple(prompt for i, prompt in enumerate(self.prompts) if (i + 1) % HELD_OUT)

    @property
    def gate_prompts(self) -> tuple[str, ...]:
        """The prompts that are left out of the calibration."""
        return self.prompts[HELD_OUT - 1 :: HELD_OUT]

    @property
    def prompts_sha256(self) -> str:
        """A hash of all prompts in their order."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


def check(options: QuantizeOptions, source: Bundle) -> None:
    """Raise `InputError` for options that are not allowed, or that this bundle does not allow."""
    if options.to not in QUANTIZED:
        raise InputError(unknown("quantization", options.to, QUANTIZED))
    if options.target not in TARGETS:
        raise InputError(unknown("target", options.target, TARGETS))
    form_of(options.to, options.backend)
    kinds_at(options.level)
    for name in options.graphs:
        if name not in (known := [name for name in source.manifest.graphs if name not in _NEVER]):
            raise InputError(unknown("graph", name, known))
    if "denoise" not in options.graphs and options.keep_float:
        raise InputError("keep_float counts layers of denoise, which is not quantized")
    if len(options.prompts) < HELD_OUT:
        raise InputError(
            f"{len(options.prompts)} prompts; expected at least {HELD_OUT}: of every {HELD_OUT}, one is left out of "
            "the calibration, to judge the result"
        )
    if options.keep_float < 0:
        raise InputError(f"keep_float is {options.keep_float}; expected an integer >= 0")
    for name in ("gate_mean", "gate_worst"):
        if not 0 < (value := getattr(options, name)) <= 1000:
            raise InputError(f"{name} is {value:g}; expected a number above 0, at most 1000")
    if options.backend == "openvino" and source.manifest.recipe.precision == "bf16" and options.form.activation:
        raise InputError(
            f"{source.path} is bf16, and OpenVINO returns NaN for activations with scales in bf16: quantize an fp32 "
            "bundle of the checkpoint, or --to int8-weights"
        )
    if source.manifest.recipe.quantization is not None:
        raise InputError(f"{source.path} is quantized already: quantize the bundle that it was made from")
