"""The bundle: a folder that holds everything needed to draw with one checkpoint, and proves that it is whole.

`engines/README.md` is the specification. This module knows the manifest and the files' hashes; it knows nothing of
running the graphs.
"""

import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError
from .strict_json import StrictJSONError, decode, encode, schema

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

    `vae_tile` is the side of the latents that the VAE was trained at, and of the tiles of larger pictures.
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


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Read `bundle.json` strictly and check that every file is there at its size (hashes: `altered_files`)."""
        path = Path(path)
        manifest = _read_manifest(path)
        bundle = cls(path, manifest)
        for name, entry in manifest.files.items():
            file = bundle.file(name)
            if not file.is_file():
                raise BundleError(f"{path} is not whole: {name} is missing. Copy the bundle again, or export it again.")
            if (size := file.stat().st_size) != entry.size:
                raise BundleError(
                    f"{path} is not whole: {name} has {size:,} bytes instead of {entry.size:,}. "
                    "Copy the bundle again, or export it again."
                )
        return bundle

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names; refuses names that leave the bundle."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} names no file {name!r}")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise BundleError(f"{self.path / MANIFEST} names a file outside of the bundle: {name!r}")
        return self.path / parts

    def read_json(self, name: str) -> dict[str, Any]:
        """Parse a JSON file of the bundle."""
        try:
            data = json.loads(self.file(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{self.path / name} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise BundleError(f"{self.path / name} should hold an object, not {type(data).__name__}")
        return data

    def graph(self, name: str) -> Graph:
        """The spec of a graph."""
        if name not in self.manifest.graphs:
            raise BundleError(f"{self.path} has no graph {name!r}; it has {', '.join(sorted(self.manifest.graphs))}")
        return self.manifest.graphs[name]

    def altered_files(
        self, progress: Callable[[int], object] = lambda _: None, *, only: Container[str] | None = None
    ) -> list[str]:
        """Names of files whose sha256 is not the manifest's; `progress` gets the size of each piece that was read."""
        wanted = {n: e for n, e in self.manifest.files.items() if only is None or n in only}
        return [n for n, e in wanted.items() if sha256_of_file(self.file(n), progress) != e.sha256]


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder. Make a bundle with: latentrt export CHECKPOINT {path}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "this is a checkpoint; export it first" if (path / "model_index.json").exists() else "make a bundle with"
        raise BundleError(f"{path} has no {MANIFEST}: {hint}: latentrt export CHECKPOINT OUT") from None
    except ValueError as error:
        raise BundleError(f"{file} is not JSON ({error}); copy or export the bundle again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise BundleError(f"{file} has the format {version!r}, but this version of latentrt reads {FORMAT!r} only")
    try:
        return decode(Manifest, data, MANIFEST)
    except StrictJSONError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error


def manifest_json(manifest: Manifest) -> str:
    """Text of bundle.json."""
    return json.dumps(encode(manifest), indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """Text of `engines/bundle.schema.json`."""
    return json.dumps({"title": FORMAT, **schema(Manifest)}, indent=1) + "\n"


def sha256_of_file(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Hex sha256 of a file, read in pieces of 4 MiB; `progress` gets the size of each."""
    import hashlib  # here, because opening a bundle does not need it

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
