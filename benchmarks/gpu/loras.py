"""LoRA on every backend: to A, to B, and back to the checkpoint, whose pictures must then be the same to the bit."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from latentrt.export.trt_build import BuildOptions
from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.request import CallOptions
from latentrt.runtime.verify import relative_error

from .backends import ensure_engines
from .places import TOLERANCE, Place, on_each_backend
from .report import Report

PROMPT = "a large white cross on a red background"
RANK, PROJECTIONS = 4, (".to_q", ".to_v", ".to_out.0", ".conv1", ".q_proj")


def run(place: Place, report: Report, steps: int = 8) -> None:
    """Engines are refitted and sessions made anew; with a LoRA, latents must be those of the CPU."""
    engines = ensure_engines(place, report, "refittable", BuildOptions(refittable=True))
    a, b = (random_lora(place.work / f"{name}.safetensors", place.bundle, seed) for seed, name in enumerate("AB"))
    call: CallOptions = {"num_inference_steps": steps, "seed": 12, "output_type": "latent"}
    orders: tuple[dict[Path | str, float], ...] = (
        {},
        {a: 1.0},
        {a: 0.5, b: -0.4},
        {b: 0.7},
        {},
    )
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        expected = []
        for loras in orders[:-1]:
            cpu.set_loras(loras)
            expected.append(cpu(PROMPT, **call).latents)
    expected.append(expected[0])
    report.figure("the LoRA change latents by", [relative_error(e, expected[0]) for e in expected[1:-1]])

    def compare(backend: str, pipe: Pipeline) -> None:
        milliseconds, got = [], []
        for loras, wanted in zip(orders, expected, strict=True):
            milliseconds.append(pipe.set_loras(loras))
            got.append(pipe(PROMPT, **call).latents)
            names = " + ".join(f"{weight} {Path(file).stem}" for file, weight in loras.items()) or "the checkpoint"
            report.at_most(f"{backend}: {names}", relative_error(got[-1], wanted), TOLERANCE)
        equal = np.array_equal(got[0], got[-1])
        report.check(f"{backend}: back to the checkpoint", equal, "equal to the bit" if equal else "differs")
        report.figure(f"{backend}: milliseconds of each swap", milliseconds[1:])

    on_each_backend(place, report, compare, engines=engines)


def random_lora(file: Path, bundle_path: Path, seed: int) -> Path:
    """A LoRA file, in the format of PEFT, of every projection and convolution that is named above."""
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for parameter, uses in Bundle.open(bundle_path).manifest.weights.items():
        module = parameter.removesuffix(".weight")
        if module == parameter or module.startswith("vae.") or not module.endswith(PROJECTIONS):
            continue
        shape = uses[0].shape[::-1] if uses[0].transposed else uses[0].shape
        out, into, *kernel = shape
        scale = 0.3 / np.sqrt(RANK * into * np.prod(kernel, dtype=int))
        down = random.standard_normal((RANK, into, *kernel)).astype(np.float32)
        up = random.standard_normal((out, RANK, *[1] * len(kernel))).astype(np.float32) * np.float32(scale)
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
