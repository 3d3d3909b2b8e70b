"""The command `latentrt export-control`."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from latentrt.runtime.errors import LatentRTError

EXAMPLES = """examples:
  latentrt export-control ./sd-controlnet-canny controls/canny
  latentrt export-control ./control_v11p_sd15_openpose.safetensors controls/openpose
  latentrt export-control diffusers/controlnet-depth-sdxl-1.0 controls/depth-sdxl --precision fp16
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export-control` to the command line."""
    parser = commands.add_parser(
        "export-control",
        help="convert a ControlNet or an adapter to a control bundle",
        description="Convert a ControlNet, a T2I-Adapter, an IP-Adapter or its image encoder to a control bundle, "
        "which steers every checkpoint of its family that was exported with --ports. The source is a folder in the "
        "diffusers format, a single file, or a Hugging Face Hub id; what it is follows from its config or its tensors. "
        "Code in it is never executed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder with config.json, .safetensors file, or org/name[@revision]")
    parser.add_argument("out", type=Path, help="folder of the new bundle, for example controls/canny")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp16",
        help="that of the checkpoint's bundle; default: fp16",
    )
    parser.add_argument("--opset", type=int, choices=(23, 18), default=23, help="ONNX opset; default: 23")
    parser.add_argument("--config", metavar="PATH", help="config.json for a single file of an unusual shape")
    parser.add_argument("--allow-pickle", action="store_true", help="also open .bin, .ckpt and .pt; loads only tensors")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT when the new bundle is complete")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export a control bundle and print its folder, kind, number of graphs and size."""
    try:
        from latentrt.export.checkpoint.checkpoint import quiet_libraries

        from .source import ControlSource
        from .write import STAGES, ControlOptions, export_control
    except ImportError as error:
        hint = "pip install 'latentrt[export]'"
        raise LatentRTError(f"export needs packages that are not installed ({error}): {hint}") from error
    source = ControlSource(arguments.source, config=arguments.config, allow_pickle=arguments.allow_pickle)
    options = ControlOptions(arguments.precision, arguments.opset, arguments.overwrite)
    quiet_libraries()
    with tqdm(total=len(STAGES), disable=None, bar_format="{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}") as bar:

        def progress(stage: str) -> None:
            bar.update(STAGES.index(stage) - bar.n)
            bar.set_description_str(stage)

        bundle = export_control(source, arguments.out, options, progress=progress)
        bar.update(len(STAGES) - bar.n)
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files.values())
    graphs = f"{len(manifest.graphs)} graph{'s' if len(manifest.graphs) > 1 else ''}"
    print(f"{arguments.out}: {manifest.kind}, {graphs}, {size / 2**20:,.1f} MiB", file=sys.stdout)
    return 0
