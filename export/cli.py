"""The command `latentrt export`."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from latentrt.export.checkpoint.source import PREDICTION_TYPES, Source, embedding_from_text, lora_from_text
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.errors import LatentRTError

EXAMPLES = """examples:
  latentrt export ./stable-diffusion-v1-5 engines/sd15
  latentrt export ./my-finetune engines/mine --precision fp32 --opset 18
  latentrt export ./dreamy.safetensors engines/dreamy --vae ./vae-ft-mse.safetensors --lora ink.safetensors:0.6
  latentrt export ./stable-diffusion-v1-5 engines/sd15 --preview-vae ./taesd_decoder.safetensors
  latentrt export ./sd2-base.safetensors engines/sd2 --prediction-type epsilon
  latentrt export stable-diffusion-v1-5/stable-diffusion-v1-5 engines/sd15 --embedding cat-toy.safetensors
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the command line."""
    parser = commands.add_parser(
        "export",
        help="convert a checkpoint to a bundle",
        description="Convert a Stable Diffusion checkpoint to a bundle. The checkpoint is a folder in the diffusers "
        "format, a single file in the original format, or a Hugging Face Hub id. Code in it is never executed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="folder with model_index.json, .safetensors file, or org/name[@revision]")
    parser.add_argument("out", type=Path, help="folder of the new bundle, for example engines/sd15")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: fp16")
    parser.add_argument(
        "--vae-precision",
        choices=("fp32", "fp16", "bf16"),
        help="default: same as --precision, but fp32 for SDXL's VAE, which overflows in fp16",
    )
    parser.add_argument("--opset", type=int, choices=(23, 18), default=23, help="ONNX opset; default: 23")
    parser.add_argument("--compact", action="store_true", help="store fp32 weights as fp16 where exact")
    parser.add_argument("--steps", type=int, help="default number of steps of the bundle")
    parser.add_argument("--guidance-scale", type=float, help="default guidance scale of the bundle")
    parser.add_argument("--golden-prompt", help="prompt of the golden image")
    parser.add_argument(
        "--ports",
        metavar="NAME,…",
        default="",
        help=f"optional inputs of the UNet for ControlNets and adapters: {', '.join(PORTS)}; they change nothing where "
        "they are not used",
    )
    parser.add_argument(
        "--no-plans",
        action="store_true",
        help="leave out the plans of ten schedulers, about 1 MB, which programs in C and C++ need; `latentrt plans` "
        "adds some later",
    )
    _add_source(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT when the new bundle is complete")
    parser.set_defaults(run=run)


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options that complete or modify the checkpoint."""
    parser.add_argument("--vae", metavar="PATH", help="folder or file of a VAE that replaces the checkpoint's")
    parser.add_argument(
        "--preview-vae",
        metavar="PATH",
        help="folder or file of a TAESD (AutoencoderTiny), whose decoder shows unfinished pictures",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        type=lora_from_text,
        help="merge a LoRA permanently; default weight: 1; repeatable",
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[:WORD]",
        type=embedding_from_text,
        help="add a textual inversion as WORD; default: the word in the file, else the file name; repeatable",
    )
    parser.add_argument(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="default: read from the checkpoint; for a single file without this information, v_prediction for Stable "
        "Diffusion 2 (its 512-pixel base model needs epsilon), else epsilon",
    )
    parser.add_argument(
        "--config", metavar="FOLDER", help="diffusers folder with configs and tokenizer for a single file"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="also open .bin, .ckpt and .pt; loads only tensors")


def run(arguments: argparse.Namespace) -> int:
    """Export a bundle and print its folder, number of graphs and size."""
    try:
        from latentrt.export.checkpoint.checkpoint import quiet_libraries

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
        "ports": tuple(filter(None, arguments.ports.split(","))),
        "plans": not arguments.no_plans,
        "overwrite": arguments.overwrite,
    }
    if arguments.golden_prompt is not None:
        chosen["golden_prompt"] = arguments.golden_prompt
    source = Source(
        checkpoint=arguments.checkpoint,
        config=arguments.config,
        prediction_type=arguments.prediction_type,
        vae=arguments.vae,
        preview_vae=arguments.preview_vae,
        loras=tuple(arguments.lora),
        embeddings=tuple(arguments.embedding),
        allow_pickle=arguments.allow_pickle,
    )
    quiet_libraries()
    with tqdm(total=len(STAGES), disable=None, bar_format="{desc:24} {bar} {n_fmt}/{total_fmt} {elapsed}") as bar:

        def progress(stage: str) -> None:
            bar.update(STAGES.index(stage) - bar.n)
            bar.set_description_str(stage)

        bundle = export_bundle(source, arguments.out, ExportOptions(**chosen), progress=progress)
        bar.update(len(STAGES) - bar.n)
    size = sum(f.size for f in bundle.manifest.files.values())
    print(f"{arguments.out}: {len(bundle.manifest.graphs)} graphs, {size / 2**20:,.1f} MiB", file=sys.stdout)
    return 0
