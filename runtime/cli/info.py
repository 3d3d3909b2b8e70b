"""`latentrt info`: print the contents of a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentrt.runtime.bundle import AnyBundle, ControlBundle


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info", help="show the contents of a bundle", description="Show the graphs, sizes and engines of a bundle."
    )
    parser.add_argument("path", type=Path, nargs="?", help="the bundle's folder; default: the embedded model")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from latentrt.runtime.bundle import ControlBundle, open_bundle
    from latentrt.runtime.bundle.sizes import port_bytes
    from latentrt.runtime.cpu_hints import cpu_hints
    from latentrt.runtime.gpu.device import has_driver
    from latentrt.runtime.pipeline import embedded_bundle

    bundle = open_bundle(arguments.path or embedded_bundle())
    if isinstance(bundle, ControlBundle):
        _print_control(bundle)
        _print_graphs(bundle)
        return 0
    manifest = bundle.manifest
    model, recipe, defaults = manifest.model, manifest.recipe, manifest.defaults
    print(
        f"{bundle.path}: {manifest.checkpoint.name} ({model.family}, {model.prediction_type}), {recipe.precision}"
        + (f", VAE {recipe.vae_precision}" if recipe.vae_precision != recipe.precision else "")
    )
    print(f"checkpoint  sha256 {manifest.checkpoint.sha256[:16]}…, exported by latentrt {manifest.producer.latentrt}")
    if (quantized := recipe.quantization) is not None:
        print(
            f"quantized   {', '.join(quantized.graphs)}: {quantized.to} for {quantized.target}, level "
            f"{quantized.level:g}; error {quantized.error_mean:.3f} in the mean, {quantized.error_worst:.3f} at worst"
        )
    if recipe.ports:
        at = f"{defaults.width}x{defaults.height}"
        sizes = (f"{port} {size / 2**20:,.1f} MiB" for port, size in port_bytes(manifest).items())
        print(f"ports       {', '.join(sizes)} for an image of {at} that uses them")
    print(
        f"defaults    {defaults.width}x{defaults.height}, {defaults.num_inference_steps} steps, guidance "
        f"{defaults.guidance_scale:g}, {bundle.read_json(manifest.scheduler).get('_class_name')}"
    )
    _print_graphs(bundle)
    if hints := [] if has_driver() else list(cpu_hints(manifest)):
        print("", *hints, sep="\n")
    return 0


def _print_control(bundle: "ControlBundle") -> None:
    manifest = bundle.manifest
    print(f"{bundle.path}: {manifest.checkpoint.name} ({manifest.kind}), {manifest.recipe.precision}")
    print(f"source      sha256 {manifest.checkpoint.sha256[:16]}…, exported by latentrt {manifest.producer.latentrt}")
    if manifest.control_types:
        print(f"control     {manifest.control_types} kinds of pictures, one in each call: control_mode")


def _print_graphs(bundle: "AnyBundle") -> None:
    from latentrt.runtime.bundle import sizes_text, types_text
    from latentrt.runtime.bundle.manifest import INSTRUCTIONS

    manifest = bundle.manifest
    print(f"\n{'graph':15} {'MiB':>9}  {'outputs'}")
    for name, graph in manifest.graphs.items():
        size = sum(f.size for path, f in manifest.files.items() if path in graph.files)
        outputs = [f"{o.name} {o.dtype} ({', '.join(map(str, o.shape))})" for o in graph.outputs]
        more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
        print(f"{name:15} {size / 2**20:9,.1f}  {', '.join(outputs[:2])}{more}")
    print(f"\nengines: {len(manifest.engines) or 'none; the graphs run on OpenVINO or ONNX Runtime'}")
    for engine in manifest.engines:
        capabilities = ", ".join(engine.compute_capabilities)
        where = engine.device or f"compute capability {capabilities}"
        if engine.saved:
            where += f", saved for {engine.options[INSTRUCTIONS]}"
        kind = f"{engine.backend} {engine.version}, {where}, {types_text(engine)}"
        print(f"  {engine.graph:15} {sizes_text(engine) or 'any size':32} {kind}")
