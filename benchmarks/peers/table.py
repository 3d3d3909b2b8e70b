"""The table of peers: what each is, where it runs, and how it gets its model.

Knows nothing about installing or measuring. A new peer is a new row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

TORCH = ("torch>=2.9,<2.14", "accelerate>=1.10")


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed in an environment.

    Attributes:
        requirements: arguments of `pip install`.
        extra: install this project with that extra.
        without: packages that are removed afterwards.
        given: for what pip cannot install, an environment variable that holds its folder. The same variable with
            "_PYTHON" appended holds its Python; default: python3.
        running: the Python that runs the comparison; nothing is installed.
    """

    requirements: tuple[str, ...] = ()
    extra: str | None = None
    without: tuple[str, ...] = ()
    given: str | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the comparison.

    Attributes:
        environment: a key of `ENVIRONMENTS`.
        worker: the module of its worker, in this package.
        module: what it imports; its import time is measured.
        model: what it opens: "bundle", "checkpoint", or a key of `CONVERSIONS`.
        device: "cpu" or "cuda".
        options: passed to the worker.
        engines: a key of `CONVERSIONS` that makes the engines for its model.
        precision: what most of its UNet computes in: words of `NEEDS`. Rows of one precision are compared with each
            other.
        own: for a row of reduced precision, the row of the same program in full precision.
    """

    environment: str
    worker: str
    module: str
    model: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    engines: str | None = None
    precision: str = "fp32"
    own: str | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a checkpoint becomes a peer's model: a command in an environment.

    The command may contain {checkpoint}, {bundle}, {prompts}, {target}, {size} (of the pictures, in pixels), {source}
    (the result of the conversion `source`), and as a word {quantize}: more arguments of `latentrt quantize`.
    """

    environment: str
    command: tuple[str, ...]
    source: str | None = None

    @property
    def depends_on_size(self) -> bool:
        """Whether each size of pictures needs its own conversion."""
        return any("{size}" in word for word in self.command)


# A CPU without any of these instructions computes in that precision many times as slowly as in float32, or not at all.
NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"fp32": (), "fp16": (), "bf16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni", "amx_int8")}
)


def lacking(precision: str, instructions: Collection[str]) -> str | None:
    """Why a CPU with these instructions cannot be measured at a precision such as "int8 bf16"; None if it can."""
    for word in precision.split():
        if NEEDS[word] and not set(NEEDS[word]) & set(instructions):
            return f"this CPU has no instructions for {word}: none of {', '.join(NEEDS[word])}"
    return None


ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "this": Environment(running=True),
        "latentrt": Environment(extra="cpu"),
        "latentrt-openvino": Environment(extra="openvino"),
        "latentrt-cuda": Environment(extra="cuda"),
        "latentrt-tensorrt": Environment(extra="tensorrt-cu13"),
        "latentrt-tensorrt-rtx": Environment(extra="tensorrt-rtx"),
        "diffusers": Environment((*TORCH, "diffusers==0.42.*", "transformers<5.24")),
        "diffusers-torchao": Environment((*TORCH, "diffusers==0.42.*", "transformers<5.24", "torchao==0.18.*")),
        # optimum-onnx requires transformers below 4.58. Without the other pins, pip backtracks through every version.
        "optimum-onnx": Environment(
            ("optimum-onnx[onnxruntime]", *TORCH, "transformers==4.57.*", "diffusers==0.35.*"),
        ),
        "optimum-onnx-cuda": Environment(
            ("optimum-onnx[onnxruntime-gpu]", *TORCH, "transformers==4.57.*", "diffusers==0.35.*"),
        ),
        "openvino-genai": Environment(("openvino-genai", "openvino-tokenizers", "pillow", "numpy")),
        # PyPI's torchvision is built for CUDA: with a CPU build of PyTorch, importing transformers fails.
        "openvino-export": Environment(
            ("optimum-intel[openvino]", *TORCH, "diffusers>=0.35"), without=("torchvision",)
        ),
        "stable-diffusion.cpp": Environment(("stable-diffusion-cpp-python", "numpy", "pillow")),
        "nvidia-demo": Environment(given="NVIDIA_DEMO"),
    }
)

_TO_TARGET = ("--task", "text-to-image", "--model", "{checkpoint}", "{target}")
_OPENVINO = ("optimum-cli", "export", "openvino")
_LATENTRT = ("python", "-m", "latentrt.runtime.cli")
_SIZE = ("--height", "{size}", "--width", "{size}")
_INT8 = ("{target}", "--to", "int8", "--calibrate", "{prompts}", "--steps", "10", *_SIZE, "{quantize}", "--for")
_BUILD = ("latentrt", "build", "{bundle}", "--engines", "{target}", *_SIZE, "--backend")
_NNCF = (
    *("python", "-m", "benchmarks.peers.quantize_openvino", "{source}", "{target}"),
    *("--prompts", "{prompts}", "--size", "{size}", "--mode"),
)


CONVERSIONS: Mapping[str, Conversion] = MappingProxyType(
    {
        "onnx": Conversion("optimum-onnx", ("optimum-cli", "export", "onnx", *_TO_TARGET)),
        "openvino": Conversion("openvino-export", (*_OPENVINO, "--weight-format", "fp32", *_TO_TARGET)),
        "openvino-int8-weights": Conversion("openvino-export", (*_OPENVINO, "--weight-format", "int8", *_TO_TARGET)),
        "openvino-int8": Conversion("openvino-export", (*_NNCF, "full"), "openvino"),
        "openvino-int8-hybrid": Conversion("openvino-export", (*_NNCF, "hybrid"), "openvino"),
        "bf16": Conversion("this", (*_LATENTRT, "export", "{checkpoint}", "{target}", "--precision", "bf16")),
        "int8-onnxruntime": Conversion("this", (*_LATENTRT, "quantize", "{bundle}", *_INT8, "onnxruntime")),
        "int8-openvino": Conversion("this", (*_LATENTRT, "quantize", "{bundle}", *_INT8, "openvino")),
        "int8-bf16": Conversion("this", (*_LATENTRT, "quantize", "{source}", *_INT8, "openvino"), "bf16"),
        "tensorrt": Conversion("latentrt-tensorrt", (*_BUILD, "tensorrt")),
        "tensorrt-rtx": Conversion("latentrt-tensorrt-rtx", (*_BUILD, "tensorrt_rtx")),
    }
)


def _ours(backend: str, model: str = "bundle", precision: str = "fp32") -> Peer:
    own = "latentrt" if backend == "onnxruntime" else f"latentrt {backend}"
    return Peer(
        *(own.replace(" ", "-"), "worker_latentrt", "latentrt.runtime", model),
        options={"backend": backend, "device": "cpu"},
        precision=precision,
        own=None if precision == "fp32" else own,
    )


def _diffusers(precision: str = "fp32", **options: Any) -> Peer:
    environment = "diffusers-torchao" if "torchao" in options else "diffusers"
    own = None if precision == "fp32" else "diffusers"
    return Peer(
        environment, "worker_diffusers", "diffusers", "checkpoint", options=options, precision=precision, own=own
    )


def _genai(model: str = "openvino", precision: str = "fp32") -> Peer:
    """By default it computes in bf16 wherever the CPU can."""
    options = {"INFERENCE_PRECISION_HINT": "bf16" if "bf16" in precision else "f32"}
    own = None if precision == "fp32" else "openvino-genai"
    return Peer(
        *("openvino-genai", "worker_openvino_genai", "openvino_genai", model),
        options=options,
        precision=precision,
        own=own,
    )


_CUDA = {"device": "cuda", "dtype": "float16"}
_ON_CUDA = ("worker_latentrt", "latentrt.runtime", "bundle", "cuda")
_DIFFUSERS_ON_CUDA = ("diffusers", "worker_diffusers", "diffusers", "checkpoint", "cuda")
_CPP = ("stable-diffusion.cpp", "worker_stable_diffusion_cpp", "stable_diffusion_cpp", "checkpoint")

# The first row of each device is the reference for the pictures of the others.
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "latentrt": _ours("onnxruntime"),
        "latentrt openvino": _ours("openvino"),
        "diffusers": _diffusers(),
        "diffusers channels-last": _diffusers(channels_last=True),
        "diffusers compiled": _diffusers(compile=True),
        "optimum-onnx": Peer(
            "optimum-onnx", "worker_diffusers", "optimum.onnxruntime", "onnx", options={"optimum": True}
        ),
        "openvino-genai": _genai(),
        # The weights of convolutions are always fp16.
        "stable-diffusion.cpp": Peer(*_CPP, precision="fp16"),
        "latentrt bf16": _ours("onnxruntime", "bf16", "bf16"),
        "latentrt openvino bf16": _ours("openvino", "bf16", "bf16"),
        "diffusers bf16": _diffusers("bf16", dtype="bfloat16"),
        "diffusers bf16 compiled": _diffusers("bf16", dtype="bfloat16", compile=True, freezing=True),
        "openvino-genai bf16": _genai("openvino", "bf16"),
        "latentrt int8": _ours("onnxruntime", "int8-onnxruntime", "int8"),
        "latentrt openvino int8": _ours("openvino", "int8-openvino", "int8"),
        "diffusers torchao int8": _diffusers("int8", torchao="int8", compile=True, freezing=True),
        "diffusers torchao int8 weights": _diffusers("int8", torchao="int8 weights", compile=True, freezing=True),
        "openvino-genai int8": _genai("openvino-int8", "int8"),
        "openvino-genai int8 hybrid": _genai("openvino-int8-hybrid", "int8"),
        "openvino-genai int8 weights": _genai("openvino-int8-weights", "int8"),
        "stable-diffusion.cpp q8_0": Peer(
            *_CPP, options={"wtype": "q8_0", "all_cores": True}, precision="int8", own="stable-diffusion.cpp"
        ),
        "latentrt int8 bf16": _ours("onnxruntime", "int8-bf16", "int8 bf16"),
        "latentrt openvino int8 bf16": _ours("openvino", "int8-bf16", "int8 bf16"),
        "diffusers torchao int8 bf16": _diffusers(
            "int8 bf16", torchao="int8", dtype="bfloat16", compile=True, freezing=True
        ),
        "openvino-genai int8 bf16": _genai("openvino-int8", "int8 bf16"),
        "openvino-genai int8 hybrid bf16": _genai("openvino-int8-hybrid", "int8 bf16"),
        "latentrt cuda": Peer(
            "latentrt-cuda", *_ON_CUDA, {"backend": "onnxruntime", "device": "cuda"}, precision="fp16"
        ),
        "latentrt tensorrt": Peer(
            "latentrt-tensorrt", *_ON_CUDA, {"backend": "tensorrt"}, engines="tensorrt", precision="fp16"
        ),
        "latentrt tensorrt-rtx": Peer(
            "latentrt-tensorrt-rtx", *_ON_CUDA, {"backend": "tensorrt_rtx"}, engines="tensorrt-rtx", precision="fp16"
        ),
        "diffusers cuda": Peer(*_DIFFUSERS_ON_CUDA, _CUDA, precision="fp16"),
        "diffusers cuda compiled": Peer(
            *_DIFFUSERS_ON_CUDA, {**_CUDA, "channels_last": True, "compile": True}, precision="fp16"
        ),
        "optimum-onnx cuda": Peer(
            *("optimum-onnx-cuda", "worker_diffusers", "optimum.onnxruntime", "onnx", "cuda"),
            {"optimum": True, "device": "cuda"},
            precision="fp16",
        ),
        "NVIDIA's demo": Peer(
            "nvidia-demo", "worker_nvidia_demo", "demo_diffusion", "checkpoint", "cuda", precision="fp16"
        ),
    }
)
