"""The command `latentrt export`."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

from latentrt.runtime.errors import LatentRTError

EXAMPLES = """examples:
  latentrt export ./stable-diffusion-v1-5 engines/sd15
  latentrt export ./my-finetune engines/mine --precision fp32 --opset 18
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the command line."""
    parser = commands.add_parser(
        "export",
        help="convert a checkpoint to a bundle",
        description="Convert a Stable Diffusion checkpoint (a folder in the diffusers format) to a bundle.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder with model_index.json")
    parser.add_argument("out", type=Path, help="the bundle to write, for example engines/sd15")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: fp16")
    parser.add_argument(
        "--vae-precision",
        choices=("fp32", "fp16", "bf16"),
        help="default: as --precision, but fp32 for SDXL's VAE, which overflows in fp16",
    )
    parser.add_argument("--opset", type=int, choices=(23, 18), default=23, help="ONNX opset; 18 for older runtimes")
    parser.add_argument("--compact", action="store_true", help="store fp32 weights that fp16 holds exactly as fp16")
    parser.add_argument("--steps", type=int, help="default number of steps of the bundle")
    parser.add_argument("--guidance-scale", type=float, help="default guidance scale of the bundle")
    parser.add_argument("--golden-prompt", help="prompt of the golden picture")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT once the new bundle is complete")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export; prints where the bundle is."""
    try:
        from .checkpoint import quiet_libraries
        from .write import STAGES, ExportOptions, export_bundle
    except ImportError as error:
        hint = "pip install 'latentrt[export]'"
        raise LatentRTError(f"export needs packages that are not installed ({error}): {hint}") from error
    chosen = {
        "precision": arguments.precision,
        "vae_precision": arguments.vae_precision,
        "opset": arguments.opset,
        "compact": arguments.compact,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "overwrite": arguments.overwrite,
    }
    if arguments.golden_prompt is not None:
        chosen["golden_prompt"] = arguments.golden_prompt
    quiet_libraries()
    interrupt_on_termination()
    with tqdm(total=len(STAGES), disable=None, bar_format="{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}") as bar:

        def progress(stage: str) -> None:
            bar.update(STAGES.index(stage) - bar.n)
            bar.set_description_str(stage)

        bundle = export_bundle(arguments.checkpoint, arguments.out, ExportOptions(**chosen), progress=progress)
        bar.update(len(STAGES) - bar.n)
    size = sum(f.size for f in bundle.manifest.files.values())
    print(f"{arguments.out}: {len(bundle.manifest.graphs)} graphs, {size / 2**20:,.1f} MiB", file=sys.stdout)
    return 0


def interrupt_on_termination() -> None:
    """From now on a termination of this process cleans up like an interrupt."""
    signal.signal(signal.SIGTERM, _raise_interrupt)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
