"""Quantize a model of optimum-intel to int8 with prompts of one's own, offline.

    python -m benchmarks.peers.quantize_openvino MODEL TARGET --mode full|hybrid --prompts FILE --size 512

`optimum-cli` quantizes activations only with data sets of the Hugging Face hub; this calls what it calls. `hybrid` is
optimum-intel's usual way for Stable Diffusion: weights of linear layers, and weights and activations of convolutions.
`full` also quantizes the activations of linear layers. All other models have their weights in int8. Activations are
those of the UNet calls of short pictures, as `latentrt quantize` is given them. Runs in the environment
`openvino-export`.
"""

import argparse
import shutil
from pathlib import Path

from optimum.intel import (
    OVConfig,
    OVPipelineForText2Image,
    OVQuantizationConfig,
    OVQuantizer,
    OVWeightQuantizationConfig,
)

STEPS = 10  # of a picture


def quantize(model: Path, target: Path, mode: str, prompts: list[str], size: int) -> None:
    """Write the quantized model to the new folder `target`. `size`: pixels of each side."""
    data = {"dataset": prompts, "num_samples": STEPS * len(prompts)}
    config = (
        OVQuantizationConfig(bits=8, **data)
        if mode == "full"
        else OVWeightQuantizationConfig(bits=8, quant_method="hybrid", **data)
    )
    pipe = OVPipelineForText2Image.from_pretrained(model, compile=False)
    # The quantizer draws with 50 steps, in the size that the UNet was trained for.
    set_timesteps = pipe.scheduler.set_timesteps
    pipe.scheduler.set_timesteps = lambda _, **options: set_timesteps(STEPS, **options)
    pipe.unet.config["sample_size"] = size // pipe.vae_scale_factor
    OVQuantizer(pipe).quantize(ov_config=OVConfig(quantization_config=config), save_directory=target)
    for file in model.glob("tokenizer*/openvino_*"):  # the quantizer leaves them out
        shutil.copyfile(file, target / file.relative_to(model))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Quantize a model of optimum-intel with prompts of one's own.")
    parser.add_argument("model", type=Path, help="folder that optimum-intel exported in fp32")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--mode", choices=("full", "hybrid"), required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="file with a prompt a line")
    parser.add_argument("--size", type=int, required=True, help="pixels of each side")
    arguments = parser.parse_args()
    prompts = arguments.prompts.read_text(encoding="utf-8").splitlines()
    quantize(arguments.model, arguments.target, arguments.mode, prompts, arguments.size)


if __name__ == "__main__":
    main()
