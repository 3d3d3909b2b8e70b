"""The floating-point operations and bytes of a bundle's graphs at given sizes.

    python -m benchmarks.common.onnx_cost BUNDLE [--batch 1] [--groups 2] [--height H] [--width W] [--tokens 77]

`latentrt.export.build.onnx_cost` counts them. The last line is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from latentrt.export.build.onnx_cost import Cost, cost_of
from latentrt.runtime import Bundle

from .harness import finish, show_environment, show_table


def bundle_costs(bundle: Bundle, sizes: Mapping[str, int]) -> dict[str, Cost]:
    """The cost of one run of each graph, for a picture of one prompt. `sizes` has B, G, h, w and S of `denoise`."""
    groups, rows = {"n": sizes["G"]}, {"n": sizes["B"] * sizes["G"]}
    more = {"text_encoder": groups, "context": rows, "time": rows, "denoise": {}, "vae_decoder": {}}
    return {name: cost_of(bundle.file(bundle.graph(name).file), {**sizes, **added}) for name, added in more.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Count the operations and bytes of a bundle's graphs.")
    parser.add_argument("bundle", type=Path)
    for name, default in (("batch", 1), ("groups", 2), ("tokens", 77)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    for name in ("height", "width"):
        parser.add_argument(f"--{name}", type=int, help="pixels; default: the bundle's")
    arguments = parser.parse_args()
    card = show_environment()
    bundle = Bundle.open(arguments.bundle)
    defaults, factor = bundle.manifest.defaults, bundle.manifest.model.vae_scale_factor
    sizes = {
        "B": arguments.batch,
        "G": arguments.groups,
        "h": (arguments.height or defaults.height) // factor,
        "w": (arguments.width or defaults.width) // factor,
        "S": arguments.tokens,
    }
    costs = bundle_costs(bundle, sizes)
    rows, results = [], {}
    for name, cost in costs.items():
        numbers = (sum(cost.flops.values()) / 1e9, cost.weights / 1e6, cost.edges / 1e6, cost.activations / 1e6)
        rows.append((name, *(f"{number:,.2f}" for number in numbers)))
        results[name] = {"flops": cost.flops, "weights": cost.weights, "edges": cost.edges}
        results[name]["activations"] = cost.activations
    show_table(("graph", "GFLOP", "MB of weights", "MB in and out", "MB of activations"), rows)
    finish("onnx_cost", card, {"bundle": bundle.path.name, "sizes": sizes, "graphs": results}, [])


if __name__ == "__main__":
    main()
