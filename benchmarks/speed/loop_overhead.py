"""The share of a call that is spent outside engines: Python, numpy, tables, noise, and making the PIL image.

    python -m benchmarks.speed.loop_overhead BUNDLE [--steps 20] [--scheduler ddim] [--height H] [--width W] [--calls 3]

Draws once to load everything, then times `--calls` more calls. Every run of an engine is timed by wrapping
`InferenceSession.run` and `run_with_iobinding` of ONNX Runtime; the rest of the call's time is overhead. Stages are
those of `Result.timings`; `rest` is checking the arguments and making the PIL image. The target of at most 1 % is for a
UNet of at least 200 M parameters: the overhead is nearly constant, so its share is larger for a tiny model. The last
line is JSON.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
from tqdm import tqdm

from benchmarks.common.harness import PROMPT, Target, finish, show_environment, show_table, unet_parameters
from latentrt.runtime import Pipeline

TARGET = 1.0
STAGES = {
    "tokenize": (),
    "text_encoder": ("text_encoder",),
    "denoise": ("time", "context", "denoise"),
    "vae_decoder": ("vae_decoder",),
}
# Output -> the only graph that has it.
OUTPUTS = {
    "hidden_states": "text_encoder",
    "time_features": "time",
    "key_00": "context",
    "next_state": "denoise",
    "images": "vae_decoder",
}


@contextmanager
def timed_engines() -> Iterator[dict[str, list[float]]]:
    """Seconds of each run in this block, by graph. Clear the dictionary to start again."""
    session_type = onnxruntime.InferenceSession
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(session: Any, *arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = method(session, *arguments, **options)
            end = time.perf_counter()
            seconds[graph_of(session)].append(end - start)
            return result

        return run

    originals = {name: getattr(session_type, name) for name in ("run", "run_with_iobinding")}
    for name, method in originals.items():
        setattr(session_type, name, timed(method))
    try:
        yield seconds
    finally:
        for name, method in originals.items():
            setattr(session_type, name, method)


def graph_of(session: onnxruntime.InferenceSession) -> str:
    """The name of a session's graph."""
    return next(OUTPUTS[output.name] for output in session.get_outputs() if output.name in OUTPUTS)


def measure(pipe: Pipeline, calls: int, options: dict[str, Any]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Median milliseconds of each stage, in total and in engines; and a line for each engine."""
    stages: dict[str, dict[str, list[float]]] = {
        name: {"total": [], "engines": []} for name in (*STAGES, "rest", "call")
    }
    runs: dict[str, list[float]] = defaultdict(list)
    with timed_engines() as seconds:
        for turn in tqdm(range(-1, calls), disable=None, leave=False, unit="call"):
            seconds.clear()
            start = time.perf_counter()
            result = pipe(PROMPT, seed=0, **options)
            total = 1000 * (time.perf_counter() - start)
            if turn < 0:
                continue
            engines = {graph: 1000 * sum(values) for graph, values in seconds.items()}
            for graph, values in seconds.items():
                runs[graph] += values
            for name, graphs in STAGES.items():
                stages[name]["total"].append(result.timings[name])
                stages[name]["engines"].append(sum(engines.get(graph, 0.0) for graph in graphs))
            stages["rest"]["total"].append(total - sum(result.timings[name] for name in STAGES))
            stages["rest"]["engines"].append(0.0)
            stages["call"]["total"].append(total)
            stages["call"]["engines"].append(sum(engines.values()))
    medians = {name: {kind: statistics.median(v) for kind, v in kinds.items()} for name, kinds in stages.items()}
    for name, kinds in stages.items():
        outside = [total - inside for total, inside in zip(kinds["total"], kinds["engines"], strict=True)]
        medians[name]["outside"] = statistics.median(outside)
        shares = [100 * o / call for o, call in zip(outside, stages["call"]["total"], strict=True)]
        medians[name]["share"] = statistics.median(shares)
    lines = [f"{graph}: {len(v) // calls} x {1000 * statistics.median(v):,.2f} ms" for graph, v in runs.items()]
    return medians, lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the share of a call that is spent outside engines.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--scheduler", help="such as ddim; default: the bundle's")
    parser.add_argument("--height", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--width", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--calls", type=int, default=3, help="timed calls after the first; default: 3")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    arguments = parser.parse_args()
    card = show_environment()
    options = {
        "num_inference_steps": arguments.steps,
        "scheduler": arguments.scheduler,
        "height": arguments.height,
        "width": arguments.width,
    }
    with Pipeline.load(arguments.bundle, backend="onnxruntime", device=arguments.device) as pipe:
        parameters = unet_parameters(pipe.bundle)
        print(f"{arguments.bundle.name}: UNet of {parameters / 1e6:,.1f} M parameters on {pipe.backend}")
        print(f"target: {TARGET:g} % outside engines, for 200 M parameters and more", flush=True)
        stages, engines = measure(pipe, arguments.calls, options)
        backend = pipe.backend
    rows = [
        (name, *(f"{stage[kind]:,.2f}" for kind in ("total", "engines", "outside")), f"{stage['share']:.3f} %")
        for name, stage in stages.items()
    ]
    show_table(("stage", "ms", "in engines", "outside", "share of the call"), rows)
    print("\n" + "\n".join(engines))
    results = {
        "bundle": arguments.bundle.name,
        "backend": backend,
        "unet_parameters": parameters,
        **options,
        "milliseconds": stages,
    }
    target = Target("share of the call outside engines", stages["call"]["share"], TARGET, "%")
    finish("loop_overhead", card, results, [target])


if __name__ == "__main__":
    main()
