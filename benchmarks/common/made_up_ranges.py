"""Quantized bundles whose ranges are made up: for what builds and calls cost, never for pictures.

    python -m benchmarks.common.made_up_ranges BUNDLE OUT --to fp8|int8|int8-weights [--target tensorrt]

To calibrate Stable Diffusion XL takes hours on a CPU. What its engines cost does not depend on ranges: every activation
gets the same one here, layers are chosen and written as `latentrt quantize` does, and nothing is judged.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from latentrt.export.graphs.onnx_files import load_in_full, save_graph
from latentrt.export.quantize.forms import Form, form_of
from latentrt.export.quantize.insert import insert
from latentrt.export.quantize.layers import chosen, find_layers
from latentrt.export.quantize.new_manifest import write_manifest
from latentrt.export.quantize.report import REPORT
from latentrt.export.quantize.temporary import link, take_others
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.manifest import QUANTIZED, QUANTIZED_FOR, Quantization

RANGE = (-8.0, 8.0)  # of all activations


def with_made_up_ranges(source: Path, out: Path, to: str, *, target: str = "tensorrt", level: float = 3.0) -> int:
    """Write a bundle with a quantized `denoise`, and all else linked from its source; return the number of layers.

    The manifest has no goldens and no measured errors, and `out` must not exist.
    """
    bundle, form = Bundle.open(source), form_of(to, target)
    graph = bundle.graph("denoise")
    out.mkdir(parents=True)
    take_others(bundle, out, graph.files, link)
    count = quantize_graph(
        bundle.file(graph.file), out / graph.file, form, level, compact=bundle.manifest.recipe.compact
    )
    (out / REPORT).write_text("{}\n", encoding="utf-8")
    write_manifest(out, bundle.manifest, _quantization(to, target, level, calibrated=form.activation is not None), None)
    return count


def quantize_graph(source: Path, out: Path, form: Form, level: float = 3.0, *, compact: bool = False) -> int:
    """Write a graph with quantized layers; return their number."""
    model = load_in_full(source)
    layers = chosen(find_layers(model.graph), level)
    ends = {str(value.name) for layer in layers for value in (layer.node.inputs[0], *layer.node.outputs) if value}
    insert(model, layers, form, dict.fromkeys(ends, RANGE))
    save_graph(model, out, compact=compact)
    return len(layers)


def _quantization(to: str, target: str, level: float, *, calibrated: bool) -> Quantization:
    nothing = hashlib.sha256().hexdigest()
    return Quantization(
        to=to,
        target=target,
        level=level,
        graphs=("denoise",),
        report=REPORT,
        calibration=REPORT if calibrated else None,
        prompts=0,
        prompts_sha256=nothing,
        source_sha256=nothing,
        gate_mean=1000,
        gate_worst=1000,
        error_mean=1000,
        error_worst=1000,
        psnr=0,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Quantize a bundle with made-up ranges; its pictures are worthless.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path, help="must not exist")
    parser.add_argument("--to", required=True, choices=QUANTIZED)
    parser.add_argument("--target", choices=QUANTIZED_FOR, default="tensorrt", help="default: tensorrt")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already")
    count = with_made_up_ranges(arguments.bundle, arguments.out, arguments.to, target=arguments.target)
    print(f"{arguments.out}: {count} layers, {arguments.to} for {arguments.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
