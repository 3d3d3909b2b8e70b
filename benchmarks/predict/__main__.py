"""Predict what a bundle needs on GPUs that are not at hand.

    python -m benchmarks.predict BUNDLE [--gpu h100] [--batch 1] [--groups 2] [--height H] [--width W] [--steps N]
    python -m benchmarks.predict --published         # the model's error, where figures are public
    python -m benchmarks.predict --record FOLDER     # FOLDER has the bundles sd15, sd21 and sdxl in float16

Engines of TensorRT for one size are assumed, for graphs in float16 or bfloat16. Every figure is a prediction: see
docs/gpu.md for its error. The last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.common.harness import finish, show_environment, show_table
from latentrt.runtime import Bundle

from .gpus import GPUS, measured
from .layers import graphs_of
from .model import seconds
from .published import PUBLISHED, read_layers, record_layers


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Predict the milliseconds of a bundle on a GPU.")
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--gpu", action="append", choices=tuple(GPUS), help="repeatable; default: all")
    for name, default in (("batch", 1), ("groups", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    for name in ("height", "width"):
        parser.add_argument(f"--{name}", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--steps", type=int, help="calls of the UNet; default: the bundle's")
    parser.add_argument("--rates", type=Path, metavar="SUMMARY", help="of the GPU check on the one --gpu")
    parser.add_argument("--published", action="store_true", help="compare with published figures instead")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="renew the layers that --published reads")
    options = parser.parse_args()
    if options.record:
        record_layers(options.record)
    elif options.published:
        show_published()
    elif options.bundle is None:
        parser.error("expected a BUNDLE, --published or --record FOLDER")
    elif options.rates and len(options.gpu or ()) != 1:
        parser.error("--rates is for one GPU: pass one --gpu, the one that the check ran on")
    else:
        predict(options)


def predict(options: argparse.Namespace) -> None:
    """Print milliseconds of a call, of the decoder and of a picture, and pictures a second, by GPU."""
    card = show_environment()
    defaults = Bundle.open(options.bundle).manifest.defaults
    height, width = options.height or defaults.height, options.width or defaults.width
    steps = options.steps or defaults.num_inference_steps
    graphs = graphs_of(options.bundle, height, width, options.batch, options.groups)
    rows, results = [], {}
    for key in options.gpu or GPUS:
        gpu = measured(GPUS[key], options.rates) if options.rates else GPUS[key]
        times = {name: 1000 * seconds(layers, gpu) for name, layers in graphs.items()}
        total = sum(times.values()) + (steps - 1) * times["denoise"]
        rate = 1000 * options.batch / total
        results[key] = {"ms": times, "total_ms": total, "images_per_second": rate}
        figures = (times["denoise"], times["vae_decoder"], total, rate)
        rows.append((gpu.name, *(f"{figure:,.2f}" for figure in figures)))
    print(f"\npredicted: {width}x{height}, batch {options.batch}, groups {options.groups}, {steps} calls")
    show_table(("GPU", "ms a call", "ms of the decoder", "ms in all", "images/s"), rows)
    sizes = {"height": height, "width": width, "batch": options.batch, "groups": options.groups, "steps": steps}
    finish("predict", card, {"bundle": options.bundle.name, "sizes": sizes, "gpus": results})


def show_published() -> None:
    """Print published and predicted milliseconds, and the mean error of those that nothing was fitted to."""
    layers = read_layers()
    rows, errors = [], []
    for figure in PUBLISHED:
        predicted = figure.predicted(layers)
        error = predicted / figure.milliseconds - 1
        what = f"{figure.calls} calls" * bool(figure.calls) + ", " * (bool(figure.calls) and figure.decoded)
        rows.append(
            (
                f"{GPUS[figure.gpu].name}, {figure.model} {figure.pixels}",
                f"{figure.batch} x {figure.groups}",
                what + "decoder" * figure.decoded,
                f"{figure.milliseconds:,.1f}",
                f"{predicted:,.1f}",
                f"{error:+.0%}",
                figure.source + ", fitted" * figure.fitted,
            )
        )
        if not figure.fitted:
            errors.append(abs(error))
    show_table(("figure", "batch x groups", "what", "published ms", "predicted ms", "error", "source"), rows)
    print(
        f"\n{len(errors)} figures that nothing was fitted to: mean error {statistics.mean(errors):.0%}, "
        f"largest {max(errors):.0%}"
    )


if __name__ == "__main__":
    main()
