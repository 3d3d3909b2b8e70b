"""Latency from prompt to picture: every backend against diffusers, with the same weights, steps, scheduler and seeds.

diffusers runs eagerly, with channels-last memory, and compiled. All cases take turns, so that a disturbance affects all
of them. Each is also compared with the floor: the time for the graphs' operations at the measured rate of matrix
products, or for their bytes at the measured bandwidth, whichever is longer.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.gpu_ceilings import rates
from benchmarks.common.harness import PROMPT, interleaved
from benchmarks.common.onnx_cost import bundle_costs
from latentrt.runtime import Bundle, Pipeline, Result
from latentrt.runtime.goldens import relative_error

from .full_size import bundle_of, checkpoint_of
from .places import Place, attempt, opened
from .report import Report

SCALE, SEED = 7.5, 0
VARIANTS = ("eager", "channels-last", "compiled")
SAME = 5e-2  # largest relative error of latents after all steps in float16


def run(
    place: Place,
    report: Report,
    *,
    batches: Sequence[int] = (1, 4),
    steps: int = 20,
    repetitions: int = 12,
    compiler: str = "inductor",
    compiles: bool = True,
    ceilings: Callable[[str], dict[str, float]] = rates,
) -> None:
    """Report p50, p90 and p50 over the floor of each case at the bundle's default size. Passes if all draw the same.

    The bundle and the checkpoint are those of the part `full_size`.
    """
    checkpoint, bundle = checkpoint_of(place), bundle_of(place)
    if not (checkpoint.exists() and bundle.exists()):
        report.check("checkpoint and bundle", False, "missing: run the part full_size first")
        return
    measured = ceilings(place.device)
    report.figure("rates", measured)
    with ExitStack() as stack:
        ours = {
            name: stack.enter_context(pipe)
            for name, pipe in opened(place, report, engines=place.engines("sd15"), bundle=bundle)
        }
        precision = Bundle.open(bundle).manifest.recipe.precision
        variants = VARIANTS if compiles else VARIANTS[:-1]
        given = {"precision": precision, "compiler": compiler, "variants": variants}
        theirs: dict[str, Any] = {}  # if one cannot be loaded, those before it and our own are measured
        attempt(report, "diffusers", lambda: theirs.update(diffusers_pipelines(place, report, checkpoint, **given)))
        for batch in batches:
            draws = {name: partial(draw_ours, pipe, batch, steps) for name, pipe in ours.items()}
            draws |= {f"diffusers {name}": partial(draw_theirs, pipe, batch, steps) for name, pipe in theirs.items()}
            title = f"batch {batch}, {steps} steps"
            graphs = floor(bundle, batch, steps, measured)
            least = sum(graph["ms"] for graph in graphs.values()) / 1000
            report.figure(f"floor, {title}", {"ms": 1000 * least, "graphs": graphs})
            compare(report, title, draws, repetitions, least)


def compare(
    report: Report, title: str, draws: Mapping[str, Callable[..., Any]], repetitions: int, least: float
) -> None:
    """Draw with each case alone, which compiles it and shows whether it works; then time the working ones in turns.

    Args:
        report: gets the checks and figures.
        title: of the checks and figures.
        draws: what draws, by case; called with output_type="latent" for latents.
        repetitions: counted repetitions of each case.
        least: the floor in seconds.
    """
    latents: dict[str, NDArray[Any]] = {}
    for name, draw in draws.items():
        attempt(report, f"{name}, {title}", partial(_draw_alone, latents, name, draw))
    reference = next((name for name in latents if name.startswith("diffusers")), None)
    for name, array in latents.items():
        if reference not in (None, name):
            error = relative_error(array, latents[reference])
            report.at_most(f"{name}, {title}: latents against {reference}", error, SAME)
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in latents}

    def kept(name: str) -> None:
        found = draws[name]()
        if isinstance(found, Result):
            stages[name].append(found.timings)

    seconds = interleaved({name: partial(kept, name) for name in latents}, repetitions, warm_up=2)
    for name, values in seconds.items():
        p50, p90 = (float(np.percentile(values, q)) for q in (50, 90))
        figures: dict[str, Any] = {"p50_ms": 1000 * p50, "p90_ms": 1000 * p90, "p50_over_floor": p50 / least}
        if stages[name]:
            rows = stages[name][-repetitions:]
            figures["stages_ms"] = {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]}
        report.figure(f"{name}, {title}", figures)


def _draw_alone(latents: dict[str, NDArray[Any]], name: str, draw: Callable[..., Any]) -> None:
    latents[name] = draw(output_type="latent")
    draw()


def draw_ours(pipe: Pipeline, batch: int, steps: int, output_type: str = "pil") -> Any:
    """Draw with latentrt: a result, or its latents."""
    result = pipe(
        PROMPT,
        num_images_per_prompt=batch,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        scheduler="euler",
        seed=SEED,
        output_type=output_type,
    )
    return result.latents if output_type == "latent" else result


def draw_theirs(pipe: Any, batch: int, steps: int, output_type: str = "pil") -> Any:
    """Draw the same with diffusers: PIL images, or latents."""
    import torch

    images = pipe(
        PROMPT,
        num_images_per_prompt=batch,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        generator=[torch.Generator("cpu").manual_seed(SEED + i) for i in range(batch)],
        output_type=output_type,
    ).images
    return images.float().cpu().numpy() if output_type == "latent" else images


def diffusers_pipelines(
    place: Place, report: Report, checkpoint: Path, *, precision: str, compiler: str, variants: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """A pipeline for each of these `VARIANTS`, in the precision of the bundle; each loads the weights anew."""
    try:
        import torch
        from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    except ImportError as error:
        report.note(f"diffusers cannot be imported: {error}")
        return
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    for variant in variants:
        pipe = StableDiffusionPipeline.from_pretrained(
            checkpoint, dtype=dtype, safety_checker=None, local_files_only=True
        ).to(place.device)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        if variant != "eager":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if variant == "compiled":
            mode = {"mode": "reduce-overhead"} if compiler == "inductor" else {}
            # One compilation per batch size, as for engines.
            options: dict[str, Any] = {"backend": compiler, "fullgraph": True, "dynamic": False, **mode}
            pipe.unet = torch.compile(pipe.unet, **options)
            pipe.vae.decode = torch.compile(pipe.vae.decode, **options)
        yield variant, pipe


def floor(bundle_path: Path, batch: int, steps: int, measured: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The floor of each graph: number of runs, operations and bytes of one run, milliseconds of all runs.

    No implementation is faster on a machine with the rates of `measured`.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    defaults, factor = manifest.defaults, manifest.model.vae_scale_factor
    sizes = {"B": batch, "G": 2, "h": defaults.height // factor, "w": defaults.width // factor}
    costs = bundle_costs(bundle, sizes | {"S": manifest.model.text_encoders[0].max_length})
    # Products in bf16 are as fast as in fp16; fp32 may be computed in TF32.
    rate = measured["tf32" if manifest.recipe.precision == "fp32" else "float16"]
    graphs = {}
    for name, cost in costs.items():
        runs = steps if name == "denoise" else 1
        graphs[name] = {
            "runs": runs,
            "gflop": sum(cost.flops.values()) / 1e9,
            "mb": (cost.weights + cost.edges) / 1e6,
            "ms": 1000 * runs * cost.seconds(rate, measured["bytes"]),
        }
    return graphs
