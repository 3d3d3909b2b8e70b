"""The command `latentrt quantize`."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from latentrt.runtime.bundle.manifest import QUANTIZED, QUANTIZED_FOR
from latentrt.runtime.errors import InputError, LatentRTError
from latentrt.runtime.weights import file_and_weight

EXAMPLES = """examples:
  latentrt quantize engines/sd15 engines/sd15-int8 --to int8 --calibrate prompts.txt
  latentrt quantize engines/sd15-fp16 engines/sd15-fp8 --to fp8
  latentrt quantize engines/sd15 out --to int8 --level 2 --calibrate engines/sd15-int8/quantization.safetensors

The ranges of activations are observed while the bundle draws the prompts, one a line; every fourth is left out, and
judges the result. A bundle that is further from its source than --gate allows is not written.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `quantize` to the command line."""
    parser = commands.add_parser(
        "quantize",
        help="make a smaller, faster bundle with weights and activations of 8 bits",
        description="Quantize a bundle to 8 bits, and judge the result before it is written. Needs no PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle to quantize; it stays as it is")
    parser.add_argument("out", type=Path, help="folder of the new bundle")
    parser.add_argument("--to", required=True, choices=QUANTIZED, help="fp8 is for tensorrt")
    parser.add_argument(
        "--for",
        dest="target",
        choices=("cpu", *QUANTIZED_FOR),
        help="default: tensorrt for fp8, else cpu: OpenVINO where it is installed, else ONNX Runtime",
    )
    parser.add_argument(
        "--level",
        type=float,
        default=3.0,
        help="1: convolutions; 2: also feed-forward layers; 2.5: also queries, keys and values; 3: all linear layers, "
        "the default",
    )
    parser.add_argument(
        "--graph",
        action="append",
        default=[],
        metavar="NAME",
        help="repeatable: denoise, the default; text_encoder, vae_decoder, …",
    )
    parser.add_argument(
        "--keep-float", type=int, default=0, metavar="N", help="leave the N most costly layers in float"
    )
    _add_calibration(parser.add_argument_group("calibration"))
    parser.add_argument(
        "--gate",
        default="0.10,0.15",
        metavar="MEAN,WORST",
        help="the most relative error of the guided prediction, in the mean and at any call; default: 0.10,0.15",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        type=file_and_weight,
        help="merge a LoRA first, for good; default weight: 1; repeatable",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT when the new bundle is complete")
    parser.set_defaults(run=run)


def _add_calibration(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="prompts, one a line, like those to come; or the quantization.safetensors of an earlier run",
    )
    group.add_argument("--steps", type=int, help="of each picture; default: the bundle's")
    group.add_argument("--height", type=int, help="pixels; default: the bundle's")
    group.add_argument("--width", type=int, help="pixels; default: the bundle's")


def run(arguments: argparse.Namespace) -> int:
    """Quantize a bundle and print what it cost."""
    try:
        from .observe import read_calibration
        from .options import PROMPTS, QuantizeOptions
        from .quantize import quantize_bundle
    except ImportError as error:
        hint = "pip install 'latentrt[quantize]'"
        raise LatentRTError(f"quantize needs packages that are not installed ({error}): {hint}") from error
    given: Path | None = arguments.calibrate
    earlier = read_calibration(given) if given is not None and given.suffix == ".safetensors" else None
    mean, worst = _gate(arguments.gate)
    options = QuantizeOptions(
        to=arguments.to,
        target=arguments.target or ("tensorrt" if arguments.to == "fp8" else "cpu"),
        level=arguments.level,
        graphs=tuple(dict.fromkeys(arguments.graph)) or ("denoise",),
        prompts=earlier.prompts if earlier else PROMPTS if given is None else _prompts(given),
        calibration=earlier,
        keep_float=arguments.keep_float,
        gate_mean=mean,
        gate_worst=worst,
        steps=arguments.steps,
        height=arguments.height,
        width=arguments.width,
        loras={Path(path): weight for path, weight in arguments.lora},
        overwrite=arguments.overwrite,
    )
    with tqdm(total=0, disable=None, bar_format="{desc:12} {bar} {n_fmt}/{total_fmt} {elapsed}<{remaining}") as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if done == 0:
                bar.reset(total)
                bar.set_description_str(stage)
            bar.update(done - bar.n)

        found = quantize_bundle(arguments.bundle, arguments.out, options, progress=progress)
    print(f"{arguments.out}: {arguments.to} for {options.backend}", *found.lines, sep="\n", file=sys.stdout)
    return 0


def _gate(text: str) -> tuple[float, float]:
    try:
        mean, worst = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--gate is {text!r}; expected two numbers, such as 0.10,0.15") from None
    return mean, worst


def _prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: expected a prompt on each line") from error
    return tuple(line.strip() for line in lines if line.strip())
