"""What ports cost while nothing is fed to them: calls of bundles with ports against the bundle without.

    python -m benchmarks.speed.ports BUNDLE WITH_PORTS… [--backend onnxruntime] [--height H] [--width W]

All are exported from one checkpoint, WITH_PORTS with `--ports`. Each turn is one guided call of each, with the same
text and noise; all ports are bound to zeros, so latents are the same within 1e-5, which is checked first. Targets: 1 %
more for `control` and `t2i`, 3 % with `ip-adapter`. The last line is JSON.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from benchmarks.common.harness import (
    Target,
    finish,
    interleaved,
    median_ratio,
    show_environment,
    show_table,
    unet_parameters,
)
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.tables import ports_of
from latentrt.runtime.protocols import Bucket, Slots

from .resident import trajectories

AT_MOST = {"ip-adapter": 1.03}  # for all other ports together 1.01
DIFFERENCE = 1e-5  # of latents, where other operators are fused


def one_call(slots: Slots) -> Callable[[], object]:
    """The first call of what is in slot 0, and its state."""

    def run() -> object:
        slots.call(np.int32([0]))
        return slots.fetch(0, 0).result()

    return run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure what unfed ports cost.")
    parser.add_argument("bundle", type=Path, help="exported without ports")
    parser.add_argument("with_ports", type=Path, nargs="+", help="exported from the same checkpoint with ports")
    parser.add_argument("--backend", default="onnxruntime", help="default: onnxruntime")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--height", type=int, default=256, help="pixels; default: 256")
    parser.add_argument("--width", type=int, default=256, help="pixels; default: 256")
    parser.add_argument("--repetitions", type=int, default=15, help="default: 15")
    arguments = parser.parse_args()
    card = show_environment()
    with ExitStack() as stack:
        paths = (arguments.bundle, *arguments.with_ports)
        where = {"backend": arguments.backend, "device": arguments.device}
        pipes = [stack.enter_context(Pipeline.load(path, **where)) for path in paths]
        names = ["without ports", *(", ".join(ports_of(pipe.bundle.graph("denoise"))) for pipe in pipes[1:])]
        factor = pipes[0].bundle.manifest.model.vae_scale_factor
        facts = pipes[0].bundle.manifest.model.text_encoders[0]
        bucket = Bucket(2, arguments.height // factor, arguments.width // factor, facts.max_length)
        (wanted,) = trajectories(pipes[0], bucket, 1, steps=20)
        cases: dict[str, Callable[[], object]] = {}
        first = []
        for name, pipe in zip(names, pipes, strict=True):
            slots = stack.enter_context(closing(pipe.slots(bucket, 1)))
            slots.fill(0, wanted)
            cases[name] = one_call(slots)
            first.append(cases[name]())
        differences = [relative_error(np.asarray(one), np.asarray(first[0])) for one in first]
        if max(differences) > DIFFERENCE:
            raise SystemExit(f"latents differ by {max(differences):.1e} while ports are zero: nothing was timed")
        parameters = unet_parameters(pipes[0].bundle)
        print(f"{arguments.bundle.name}: UNet of {parameters / 1e6:,.1f} M parameters, {pipes[0].backend}", flush=True)
        seconds = interleaved(cases, arguments.repetitions, warm_up=2)
        backend = pipes[0].backend
    ratios = {name: median_ratio(seconds[name], seconds[names[0]]) for name in names}
    rows = [(name, f"{1000 * statistics.median(seconds[name]):,.1f}", f"{ratios[name]:.4f}") for name in names]
    show_table(("", "ms a call", "ratio"), rows)
    targets = [
        Target(f"{name} over none", ratios[name], max(AT_MOST.get(port, 1.01) for port in name.split(", ")), "times")
        for name in names[1:]
    ]
    size = {"height": arguments.height, "width": arguments.width}
    results = {"bundle": arguments.bundle.name, "backend": backend, "unet_parameters": parameters, **size}
    finish("ports", card, results | {"differences": differences, "ratios": ratios, "seconds": seconds}, targets)


if __name__ == "__main__":
    main()
