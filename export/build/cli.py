"""The command `latentrt build`."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle import AnyBundle, sizes_text
from latentrt.runtime.errors import InputError

from .ort_graphs import BACKEND as ONNXRUNTIME
from .ort_graphs import DEVICES, REWRITES, build_ort_graphs
from .profiles import SizeRanges, buckets_from_options
from .store import Built
from .trt_engines import Task, build_engines
from .trt_options import HARDWARE, TILING, BuildOptions

EXAMPLES = """examples:
  latentrt build engines/sd15 --backend tensorrt --height 512 --width 512 --batch 1 --batch 4
  latentrt build engines/sd15 --backend tensorrt --height 512:768:1024 --width 512:768:1024
  latentrt build engines/sd15 --backend tensorrt_rtx --compute-capability 8.6 --compute-capability 8.9
  latentrt build engines/sd15 --backend onnxruntime

Sizes are static (512) or a range (min:opt:max). Static sizes run fastest. Repeating a size option builds an engine for
each size; repeating several builds all combinations. onnxruntime rewrites graphs to its own operators, and saves those
with convolutions as it optimizes them for this CPU; they serve all sizes, so only --device, --rewrite, --saved, --graph
and --engines apply.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `build` to the command line."""
    parser = commands.add_parser(
        "build",
        help="build engines for a bundle",
        description="Build engines from a bundle's ONNX files. Existing engines are kept.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument(
        "--backend",
        required=True,
        choices=(*TRT_BACKENDS, ONNXRUNTIME),
        help="tensorrt_rtx and onnxruntime do not need a GPU to build",
    )
    sizes = parser.add_argument_group("sizes")
    for name, text in (
        ("height", "pixels; default: the bundle's"),
        ("width", "pixels; default: the bundle's"),
        ("batch", "images; default: 1"),
        ("groups", "2 with guidance, 1 without; default: 2"),
        ("tokens", "length of the prompt; default: the text encoder's"),
    ):
        sizes.add_argument(f"--{name}", action="append", default=[], metavar="SIZE", help=text)
    _add_builder_options(parser.add_argument_group("builder"))
    parser.add_argument("--device", choices=DEVICES, help="for onnxruntime; default: all")
    others = ", ".join(name for name, rewrite in REWRITES.items() if not rewrite.default)
    parser.add_argument(
        "--rewrite",
        action="append",
        default=[],
        metavar="NAME",
        help=f"for onnxruntime, repeatable: {', '.join(REWRITES)}; default: all but {others}",
    )
    parser.add_argument(
        "--saved",
        action=argparse.BooleanOptionalAction,
        help="for onnxruntime: also save graphs for this CPU, which load faster and have their own copy of the "
        "weights; --no-saved removes them; default: for the device cpu",
    )
    parser.add_argument("--graph", action="append", default=[], help="build only this graph; repeatable")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="store engines here instead of in the bundle")
    parser.set_defaults(run=run)


def _add_builder_options(builder: "argparse._ArgumentGroup") -> None:
    builder.add_argument("--optimization-level", type=int, default=3, metavar="0-5", help="default: 3")
    builder.add_argument("--tiling", choices=TILING, default="none", help="tiles that stay in the L2 cache")
    builder.add_argument("--tiling-l2", type=int, metavar="MIB", help="the part of the L2 cache that tiles may take")
    builder.add_argument(
        "--tactics",
        metavar="LIST",
        help="for tensorrt: where kernels come from, such as edge_mask_convolutions,jit_convolutions; or none",
    )
    builder.add_argument("--timing-iterations", type=int, metavar="N", help="for tensorrt: how often kernels are timed")
    builder.add_argument(
        "--best-of", type=int, default=1, metavar="N", help="for tensorrt: build N times, keep the fastest"
    )
    builder.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        help="allow TF32: faster fp32 with 10-bit mantissas; default: for an fp32 VAE beside a UNet of 16 bits",
    )
    builder.add_argument("--refittable", action="store_true", help="allow LoRA to change the weights")
    builder.add_argument("--strip-weights", action="store_true", help="omit weights; they are loaded from ONNX")
    builder.add_argument(
        "--version-compatible", action="store_true", help="also run with later versions of the library"
    )
    builder.add_argument("--hardware-compatible", choices=HARDWARE, default="none", help="other GPUs, for tensorrt")
    builder.add_argument(
        "--compute-capability", action="append", default=[], metavar="X.Y", help="GPUs, for tensorrt_rtx; repeatable"
    )
    builder.add_argument("--workspace", type=int, metavar="MIB", help="most scratch memory; default: the GPU's memory")


def run(arguments: argparse.Namespace) -> int:
    """Build engines and print a line for each."""
    options = BuildOptions(
        optimization_level=arguments.optimization_level,
        tiling=arguments.tiling,
        tiling_l2_mib=arguments.tiling_l2,
        tactics=_tactics(arguments.tactics),
        timing_iterations=arguments.timing_iterations,
        best_of=arguments.best_of,
        tf32=arguments.tf32,
        refittable=arguments.refittable,
        strip_weights=arguments.strip_weights,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        compute_capabilities=tuple(arguments.compute_capability),
        workspace_mib=arguments.workspace,
    )
    sizes = {name: getattr(arguments, name) for name in ("height", "width", "batch", "groups", "tokens")}
    if arguments.backend == ONNXRUNTIME:
        if options != BuildOptions() or any(sizes.values()):
            raise InputError("--backend onnxruntime has no sizes and no builder options: its graphs serve all sizes")
        _build_ort_graphs(arguments)
    else:
        if arguments.device:
            raise InputError(f"--device is for onnxruntime; {arguments.backend} builds only for NVIDIA GPUs")
        if arguments.rewrite:
            raise InputError(f"--rewrite is for onnxruntime; {arguments.backend} fuses operators by itself")
        if arguments.saved is not None:
            raise InputError(f"--saved is for onnxruntime; engines of {arguments.backend} are always saved")
        _build_trt_engines(arguments, options, sizes)
    return 0


def _tactics(text: str | None) -> tuple[str, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    return tuple(name.strip().lower() for name in text.split(","))


def _build_ort_graphs(arguments: argparse.Namespace) -> None:
    devices = (arguments.device,) if arguments.device else DEVICES
    if arguments.saved and "cpu" not in devices:
        raise InputError("--saved is for the CPU: leave out --device, or give --device cpu")
    added = 0
    for built in build_ort_graphs(
        arguments.bundle,
        devices=devices,
        engines=arguments.engines,
        graphs=arguments.graph,
        rewrites=arguments.rewrite,
        saved=arguments.saved is not False,
    ):
        added += built.size if built.record.saved else 0
        print(_line(built), flush=True)
    if added:
        print(f"saved graphs take {added / 2**20:,.1f} MiB, as they have weights of their own; --no-saved removes them")


def _build_trt_engines(arguments: argparse.Namespace, options: BuildOptions, sizes: dict[str, list[str]]) -> None:
    def buckets(bundle: AnyBundle) -> list[SizeRanges]:
        return buckets_from_options(bundle.manifest, **sizes)

    with tqdm(total=1.0, disable=None, bar_format="{desc:48.48} {bar} {percentage:3.0f}% {elapsed}") as bar:

        def progress(task: Task, phase: str, share: float) -> None:
            bar.n = share
            bar.set_description_str(f"{task.record.graph}: {phase}")

        for built in build_engines(
            arguments.bundle,
            arguments.backend,
            buckets,
            options,
            engines=arguments.engines,
            graphs=arguments.graph,
            progress=progress,
        ):
            bar.write(_line(built), file=sys.stdout)


def _line(built: Built) -> str:
    took = "already built" if built.seconds is None else f"{built.seconds:.1f} s"
    sizes = sizes_text(built.record) or f"any size, {built.record.device}"
    if built.record.saved:
        sizes += ", saved"
    if built.attempts:
        took += f", {min(built.attempts):.3f} ms a run, best of {', '.join(f'{ms:.3f}' for ms in built.attempts)}"
    return f"{built.record.graph:15} {sizes:32} {built.size / 2**20:10,.1f} MiB  {took}"
