"""The content of bundle.json, as frozen dataclasses. `engines/README.md` is the specification."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from .strict_json import encode, schema

# The second has optional keys that the first has not: a reader of the first alone would ignore what they say.
FORMATS = ("latentrt.bundle/1", "latentrt.bundle/2")
SECOND_KEYS = ("plans", "recipe.quantization", "recipe.ports", "graphs.preview_decoder")
MANIFEST = "bundle.json"
INSTRUCTIONS = "instructions"  # key of `EngineRecord.options`
# Kinds of optional inputs of `denoise` -> how the names of their tensors begin.
PORTS = {"control": "residual_", "t2i": "adapter_", "ip-adapter": "image_"}
QUANTIZED = ("int8", "fp8", "int8-weights")
QUANTIZED_FOR = ("openvino", "onnxruntime", "tensorrt")


@dataclass(frozen=True, slots=True, eq=False)
class Producer:
    """What wrote the bundle: the latentrt version, and versions of other packages by name."""

    latentrt: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """Something added to the checkpoint before export: another VAE, a LoRA, or an embedding (textual inversion).

    Attributes:
        kind: "vae", "lora" or "embedding".
        name: name of the file or folder.
        weight: the factor a LoRA was merged with; null for the others.
    """

    kind: str
    name: str
    sha256: str
    weight: float | None


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointRecord:
    """The source of the bundle: a display name, a hash over all files that were read, and any additions."""

    name: str
    sha256: str
    additions: tuple[Addition, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Quantization:
    """How graphs of a bundle were quantized, and how far its predictions are from those of its source.

    Attributes:
        to: "int8" or "fp8", for weights and activations, or "int8-weights".
        target: the backend whose kernels the graphs suit: "openvino", "onnxruntime" or "tensorrt".
        level: 1 is convolutions, 2 adds feed-forward layers, 2.5 queries, keys and values, 3 all linear layers.
        graphs: names of the quantized graphs.
        report: file that lists the layers and what each costs.
        calibration: file with the ranges of the activations; null for weights alone.
        prompts, prompts_sha256: number and hash of the prompts of calibration and gate.
        source_sha256: hash of all graphs and weights of the source, and of the LoRAs that were merged.
        gate_mean, gate_worst: the most error that was allowed, as mean and at any call.
        error_mean, error_worst: relative L2 error of the guided prediction at each call of the source's trajectory.
        psnr: median PSNR in dB of pictures against the source's; 1000 for equal pictures.
    """

    to: str
    target: str
    level: float
    graphs: tuple[str, ...]
    report: str
    calibration: str | None
    prompts: int
    prompts_sha256: str
    source_sha256: str
    gate_mean: float
    gate_worst: float
    error_mean: float
    error_worst: float
    psnr: float


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Export settings: precisions (fp32, fp16, bf16), ONNX opset, whether exact fp32 weights are stored as fp16.

    Attributes:
        quantization: what was quantized after the export; the precisions are those of all else. Optional,
            `latentrt.bundle/2`.
        ports: keys of `PORTS`, inputs of `denoise` that change nothing where they are zero. Optional,
            `latentrt.bundle/2`.
    """

    precision: str
    vae_precision: str
    opset: int
    compact: bool
    quantization: Quantization | None = None
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """One text encoder: its graph, its tokenizer, and the special token ids.

    Attributes:
        embeddings: words of textual inversions -> the ids, in order, that each expands to; the tokenizer returns
            the first one.
    """

    graph: str
    tokenizer: str
    max_length: int
    bos: int
    eos: int
    pad: int
    hidden_size: int
    hidden_states: int
    pooled: bool
    embeddings: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Fixed properties of the model; sizes are in latent pixels.

    Attributes:
        vae_tile: side of the latents that the VAE was trained on, and of the tiles of larger images.
        latent_rgb: (C + 1, 3), maps a latent pixel with a 1 appended to RGB in [0, 1], for previews without the VAE;
            optional.
    """

    family: str
    prediction_type: str
    latent_channels: int
    vae_scale_factor: int
    vae_tile: int
    scaling_factor: float
    registers: int
    image_rounding: str
    force_zeros_for_empty_prompt: bool
    text_encoders: tuple[TextEncoder, ...]
    latent_rgb: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Defaults:
    """Defaults of a call; sizes in pixels, `inpaint_strength` for an image with a mask."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    strength: float
    inpaint_strength: float


@dataclass(frozen=True, slots=True, eq=False)
class TensorSpec:
    """A tensor of a graph.

    A dimension is a number, a symbol, a product such as `B*G` or `8*h`, or a part that is rounded up, such as `h/2`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Allowed sizes of a symbol; `max` null means no limit."""

    min: int
    max: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """One ONNX graph: its file, inputs, outputs, and the range of each symbolic dimension."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: dict[str, Range]

    @property
    def files(self) -> tuple[str, str]:
        """The ONNX file and its external data, which a graph without weights has not."""
        return self.file, f"{self.file}.data"


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """Where a parameter of the checkpoint is stored.

    Attributes:
        graph, initializer: its name in the ONNX file.
        transposed: whether it is stored transposed.
        dtype: the dtype that the module computes in.
        stored_dtype, shape: dtype and shape of the stored initializer.
        offset: first byte in the graph's external data; null if it is in the ONNX file itself.
    """

    graph: str
    initializer: str
    transposed: bool
    dtype: str
    stored_dtype: str
    shape: tuple[int, ...]
    offset: int | None


@dataclass(frozen=True, slots=True, eq=False)
class EngineRecord:
    """A compiled engine and everything it depends on.

    Attributes:
        file: path relative to the folder that lists the engine.
        backend, version: the library that built it, "tensorrt" or "tensorrt_rtx", and its version; or "onnxruntime",
            for a rewritten ONNX graph, and the version of the domain com.microsoft that it needs; for a saved graph the
            library's.
        device: the GPU's name if the engine runs only on that model, else null. "cpu" or "cuda" for onnxruntime.
        compute_capabilities: GPUs it runs on, such as "8.9"; "8.0+" includes all later ones. Empty for onnxruntime:
            no restriction.
        profile: symbol -> [min, opt, max]; three equal numbers are a static size. Empty for onnxruntime: any size.
        options: further builder options. A saved graph has `INSTRUCTIONS`, those of the CPU that it was optimized for.
        host_code: whether the plan contains code that runs on the host, and so is loaded only when trusted.
        onnx_sha256, weights_sha256: hashes of the ONNX file and its external data; null if there is none.
        layers: path of the file that says which kernels it has, for `latentrt inspect`; optional.
    """

    graph: str
    file: str
    backend: str
    version: str
    device: str | None
    compute_capabilities: tuple[str, ...]
    precision: str
    tf32: bool
    profile: dict[str, tuple[int, ...]]
    options: dict[str, str]
    host_code: bool
    onnx_sha256: str
    weights_sha256: str | None
    layers: str | None = None

    @property
    def saved(self) -> bool:
        """Whether ONNX Runtime saved it, with weights of its own in `<file>.data`."""
        return INSTRUCTIONS in self.options


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """What a runtime must reproduce: `file` holds ids, embeddings, plan, noise, latents and image from PyTorch."""

    file: str
    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    embedding_tolerance: float
    latents_tolerance: float
    psnr_floor: float


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """Size in bytes and sha256 of a file."""

    size: int
    sha256: str


class Contents(Protocol):
    """What the manifests of all kinds of bundles have, for backends and builds."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def graphs(self) -> Mapping[str, Graph]: ...
    @property
    def weights(self) -> Mapping[str, tuple[Weight, ...]]: ...
    @property
    def engines(self) -> tuple[EngineRecord, ...]: ...
    @property
    def files(self) -> Mapping[str, File]: ...
    @property
    def needed_graphs(self) -> tuple[str, ...]: ...
    @property
    def pixels_of_latent(self) -> int: ...
    @property
    def usual_sizes(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """The content of bundle.json.

    Attributes:
        plans: files of plan packs, for runtimes that compile no plans; optional, `latentrt.bundle/2`.
    """

    format: str
    producer: Producer
    checkpoint: CheckpointRecord
    recipe: Recipe
    model: Model
    defaults: Defaults
    scheduler: str
    graphs: dict[str, Graph]
    weights: dict[str, tuple[Weight, ...]]
    engines: tuple[EngineRecord, ...]
    golden: Golden | None
    files: dict[str, File]
    plans: tuple[str, ...] = ()

    @property
    def needed_graphs(self) -> tuple[str, ...]:
        """The graphs that text-to-image needs; the others are for image-to-image and inpainting."""
        return (*(encoder.graph for encoder in self.model.text_encoders), "context", "time", "denoise", "vae_decoder")

    @property
    def pixels_of_latent(self) -> int:
        """Pixels along a side of a latent pixel."""
        return self.model.vae_scale_factor

    @property
    def usual_sizes(self) -> tuple[int, int, int]:
        """Height and width in pixels, and tokens of a text, that engines are built for by default."""
        return self.defaults.height, self.defaults.width, self.model.text_encoders[0].max_length


def with_plans(manifest: Manifest, plans: tuple[str, ...], files: Mapping[str, File]) -> Manifest:
    """The manifest with other plan packs; its format is the one it had, if that has the key."""
    return replace(manifest, format=FORMATS[1] if plans else manifest.format, plans=plans, files=dict(files))


def manifest_json(manifest: Contents) -> str:
    """The text of bundle.json."""
    return json.dumps(encode(manifest), indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """The text of `engines/bundle.schema.json`."""
    return json.dumps({"title": FORMATS[-1], **schema(Manifest)}, indent=1) + "\n"
