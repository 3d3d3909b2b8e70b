"""What ports cost while nothing is fed to them: calls of bundles with ports against the bundle without.

    python -m benchmarks.speed.ports BUNDLE --with-ports BUNDLE… [--backend onnxruntime openvino]

All are exported from one checkpoint, the others with `--ports`. Each turn is one guided call of each, with the same
text and noise; all ports are bound to zeros, so latents are the same within 1e-5, which is checked first. Targets: 1 %
more for `control` and `t2i`, 3 % with `ip-adapter`. The last line is JSON.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import (
    Measurement,
    Target,
    add_pipeline_arguments,
    finish,
    interleaved,
    median_ratio,
    show_environment,
    show_table,
    unet_parameters,
)
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.tables import ports_of
from latentrt.runtime.protocols import Bucket, Slots

from .resident import trajectories

AT_MOST = {"ip-adapter": 1.03}  # for all other ports together 1.01
NONE = "no ports"
DIFFERENCE = 1e-5  # of latents, where other operators are fused


def one_call(slots: Slots) -> Callable[[], object]:
    """The first call of what is in slot 0, and its state."""

    def run() -> object:
        slots.call(np.array([0], np.int32))
        return slots.fetch(0, 0).result()

    return run


def costs(
    paths: Sequence[Path], backend: str, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """By the ports of each bundle: relative difference of its latents from the first's, and seconds of its calls."""
    with ExitStack() as stack:
        pipes = [stack.enter_context(Pipeline.load(path, backend=backend, device=arguments.device)) for path in paths]
        names = [", ".join(ports_of(pipe.bundle.graph("denoise"))) or NONE for pipe in pipes]
        model = pipes[0].bundle.manifest.model
        height, width = arguments.height // model.vae_scale_factor, arguments.width // model.vae_scale_factor
        bucket = Bucket(2, height, width, model.text_encoders[0].max_length)
        (wanted,) = trajectories(pipes[0], bucket, 1, steps=20)
        cases: dict[str, Callable[[], object]] = {}
        for name, pipe in zip(names, pipes, strict=True):
            slots = stack.enter_context(closing(pipe.slots(bucket, 1)))
            slots.fill(0, wanted)
            cases[name] = one_call(slots)
        first = {name: np.asarray(call()) for name, call in cases.items()}
        differences = {name: relative_error(latents, first[names[0]]) for name, latents in first.items()}
        if max(differences.values()) > DIFFERENCE:
            raise SystemExit(
                f"latents differ by {max(differences.values()):.1e} while ports are zero: nothing was timed"
            )
        return differences, interleaved(cases, arguments.repetitions, warm_up=2)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure what unfed ports cost.")
    add_pipeline_arguments(parser, repetitions=25)
    parser.add_argument("--with-ports", type=Path, nargs="+", required=True, help="bundles of the same checkpoint")
    arguments = parser.parse_args()
    card = show_environment()
    paths = (arguments.bundle, *arguments.with_ports)
    bundle = Bundle.open(arguments.bundle)
    if ports := ports_of(bundle.graph("denoise")):
        parser.error(f"{arguments.bundle} has the ports {', '.join(ports)}: name the bundle without ports first")
    defaults, parameters = bundle.manifest.defaults, unet_parameters(bundle)
    arguments.height, arguments.width = arguments.height or defaults.height, arguments.width or defaults.width
    print(f"{arguments.bundle.name}: UNet of {parameters / 1e6:,.1f} M parameters", flush=True)
    found: dict[str, Any] = {}
    targets, measurements = [], []
    for backend in arguments.backend:
        differences, seconds = costs(paths, backend, arguments)
        ratios = {name: median_ratio(values, seconds[NONE]) for name, values in seconds.items()}
        rows = [(name, f"{1000 * statistics.median(seconds[name]):,.1f}", f"{ratios[name]:.4f}") for name in ratios]
        show_table((backend, "ms a call", "ratio"), rows)
        found[backend] = {name: {"ratio": ratios[name], "difference": differences[name]} for name in ratios}
        for name, ratio in ratios.items():
            measurements.append(Measurement(f"{arguments.bundle.name}: {backend}: {name}", "s", seconds[name]))
            if name != NONE:
                at_most = max(AT_MOST.get(port, 1.01) for port in name.split(", "))
                targets.append(Target(f"{backend}: {name} over {NONE}", ratio, at_most, "times"))
    size = {"height": arguments.height, "width": arguments.width}
    results = {"model": arguments.bundle.name, "unet_parameters": parameters, **size, "backends": found}
    finish("ports", card, results, targets, measurements)


if __name__ == "__main__":
    main()
