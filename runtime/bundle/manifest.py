"""The content of bundle.json, as frozen dataclasses. `engines/README.md` is the specification."""

import json
from dataclasses import dataclass

from .strict_json import encode, schema

FORMAT = "latentrt.bundle/1"
MANIFEST = "bundle.json"


@dataclass(frozen=True, slots=True, eq=False)
class Producer:
    """What wrote the bundle: versions by package name."""

    latentrt: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """What was put into the checkpoint before the export: another VAE, a LoRA, or an embedding (textual inversion).

    Attributes:
        kind: "vae", "lora" or "embedding".
        name: of the file or folder.
        weight: how strongly a LoRA was merged; null for the others.
    """

    kind: str
    name: str
    sha256: str
    weight: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What the bundle was made from: a name for people, a hash over all files that were read, and what was added."""

    name: str
    sha256: str
    additions: tuple[Addition, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How it was exported: precisions (fp32, fp16, bf16), ONNX opset, whether exact fp32 weights are stored as fp16."""

    precision: str
    vae_precision: str
    opset: int
    compact: bool


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """One text encoder: its graph, its tokenizer, and the ids that frame and pad a prompt.

    Attributes:
        embeddings: words of textual inversions -> the ids, in order, that each stands for; the tokenizer gives the
            first of them.
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
    """Facts of the model that no user changes; sizes of latents are in latent pixels.

    Attributes:
        vae_tile: side of the latents that the VAE was trained at, and of the tiles of larger pictures.
        latent_rgb: (C + 1, 3), from a latent pixel and 1 to RGB in [0, 1], for previews without the VAE; optional.
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
    """What a call uses where the caller says nothing; height and width in pixels, strength with an image, and with an
    image and a mask."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    strength: float
    inpaint_strength: float


@dataclass(frozen=True, slots=True, eq=False)
class TensorSpec:
    """A tensor of a graph: a dimension is a number, a symbol, or a product such as `B*G` and `8*h`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Sizes that a symbol may take; `max` null means without limit."""

    min: int
    max: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """One ONNX graph: the file, and what goes in and comes out."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: dict[str, Range]


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """Where a parameter of the checkpoint went.

    Attributes:
        graph, initializer: its name in the ONNX file.
        transposed: whether it is stored so.
        dtype: what the module computed in.
        stored_dtype, shape: of the initializer, as it is stored.
        offset: of its first byte in the graph's external data; null where it is in the ONNX file itself.
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
    """A compiled engine, and everything it depends on.

    Attributes:
        file: relative to the folder that lists the engine.
        backend, version: the library that built it, "tensorrt" or "tensorrt_rtx"; or "onnxruntime", for a graph in its
            own form, with the version of the domain com.microsoft that it needs.
        device: the GPU's name where the engine fits that model only, else null. A graph of onnxruntime is for "cpu" or
            "cuda".
        compute_capabilities: GPUs that it runs on, such as "8.9"; "8.0+" is this one and all later. A graph of
            onnxruntime has none, and runs on all.
        profile: symbol -> [min, opt, max]; three times the same number is a static size. A graph of onnxruntime has
            none, and serves all.
        options: what else was chosen for the builder.
        host_code: whether the plan carries code for the host, and so is loaded only when trusted.
        onnx_sha256, weights_sha256: of the ONNX file and its external data; null where there is none.
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


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """What a runtime must reproduce: `file` holds ids, embedding, plan, noise, latents and image, made with PyTorch."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """The content of bundle.json."""

    format: str
    producer: Producer
    checkpoint: Checkpoint
    recipe: Recipe
    model: Model
    defaults: Defaults
    scheduler: str
    graphs: dict[str, Graph]
    weights: dict[str, tuple[Weight, ...]]
    engines: tuple[EngineRecord, ...]
    golden: Golden | None
    files: dict[str, File]


def manifest_json(manifest: Manifest) -> str:
    """Text of bundle.json."""
    return json.dumps(encode(manifest), indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """Text of `engines/bundle.schema.json`."""
    return json.dumps({"title": FORMAT, **schema(Manifest)}, indent=1) + "\n"
