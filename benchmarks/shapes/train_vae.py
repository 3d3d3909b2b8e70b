"""Trains the 8x autoencoder of the model `shapes` (diffusers' `AutoencoderKL`, 4 latent channels) on drawn pictures.

    python tests/shapes/train_vae.py

It starts as a thumbnail: the residual path averages the colours of 8x8 pixels going in and repeats them coming out, so
that training has edges to learn and no colours. Batches are small: on a CPU more steps are worth more than better
gradients. First 64x64 crops, then whole pictures. Afterwards the latents are normalised exactly: a shift and a scale
per channel are folded into `quant_conv` and `post_quant_conv`, so that `scaling_factor` (0.18215 as in SD 1.x: whoever
forgets it sees it) brings them to mean 0 and standard deviation 1. At last the decoder goes on alone, from latents with
a little noise; a diffusion model on the latents can be trained at the same time.

The budget is time, not steps: the learning rate reaches zero at its end on any machine. On one of two shared CPU cores:
2164 steps for all of it and 1074 for the decoder, 38 minutes; mean absolute error 0.0035 of [0, 1].
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

CHECKPOINT = Path(__file__).resolve().parents[2] / "tests" / "data" / "shapes"
STATE = Path.home() / ".cache" / "latentrt" / "shapes-vae"
SCALING_FACTOR = 0.18215
RATE = 1.5e-3
NOISE = 0.05  # on latents of deviation 1, for the decoder's training: a diffusion model does not hit them exactly
KL_WEIGHT = 1.5e-4  # per latent element; with much more, the channel beside the colours stays unused
Loss = Callable[[AutoencoderKL, Tensor, torch.Generator], Tensor]
BATCH = 8
CROP = 64
CROPS_UNTIL = 0.7  # share of the time spent on crops
POOL = 4000


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        # In groups of two channels, as 8 groups of 16 would be, a normalisation forgets the colour of a flat picture.
        norm_num_groups=2,
        sample_size=drawings.SIDE,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL) -> None:
    """Lets channels 0-2 carry the colours along the residual path, 5-7 their negatives, and 3 and 4 the constants +-6.

    The constants dominate the variance of the group, so that its normalisation is nearly one fixed scale, undone by its
    weights; and silu(x) - silu(-x) = x. So the whole is nearly linear at first: averages in, repetition out.
    """
    colours, constant = range(3), 6.0
    encoder, decoder = vae.encoder, vae.decoder
    blocks = [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]
    for resnet in (resnet for block in blocks for resnet in block.resnets):
        resnet.conv2.weight.zero_()
        resnet.conv2.bias.zero_()
        if resnet.conv_shortcut is not None:
            _set_path(resnet.conv_shortcut, ((0, 0),), 1.0)
    for block in encoder.down_blocks[:-1]:
        _set_path(block.downsamplers[0].conv, ((0, 0), (0, 1), (1, 0), (1, 1)), 0.25)
    for block in decoder.up_blocks[:-1]:
        _set_path(block.upsamplers[0].conv, ((1, 1),), 1.0)
    for conv in (encoder.conv_in, decoder.conv_in):
        conv.weight[:8] = 0
        conv.bias[:8] = torch.tensor((0, 0, 0, constant, -constant, 0, 0, 0))
        for colour in colours:
            conv.weight[colour, colour, 1, 1] = 1
            conv.weight[5 + colour, colour, 1, 1] = -1
    for half in (encoder, decoder):
        channels = half.conv_norm_out.num_channels
        half.conv_norm_out.weight[:8] = (2 * (constant**2 + 1.5) / (channels / 2)) ** 0.5
        half.conv_out.weight[:3] *= 0.1
        half.conv_out.bias[:3] = 0
        for colour in colours:
            half.conv_out.weight[colour, :8] = 0
            half.conv_out.weight[colour, colour, 1, 1] = 1
            half.conv_out.weight[colour, 5 + colour, 1, 1] = -1
    vae.quant_conv.weight[:] = torch.eye(8)[:, :, None, None]
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[:4] = 0
    vae.quant_conv.bias[4:] = -4  # the logarithm of the variance: little noise at first
    vae.post_quant_conv.weight[:] = torch.eye(4)[:, :, None, None]
    vae.post_quant_conv.bias.zero_()


def _set_path(conv: torch.nn.Conv2d, taps: tuple[tuple[int, int], ...], weight: float) -> None:
    """Channels 0-7 of the output become the weighted sum of the same channels at `taps`."""
    conv.weight[:8] = 0
    conv.bias[:8] = 0
    for row, column in taps:
        for channel in range(8):
            conv.weight[channel, channel, row, column] = weight


def pictures(count: int, *, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    scenes = list(islice(drawings.training_scenes(rng, two_objects=0.4), count))
    return np.concatenate([drawings.draw(scenes[at : at + 50], rng) for at in range(0, count, 50)])


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) bytes to (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def batches(pool: NDArray[np.uint8], rng: np.random.Generator, *, crops: bool) -> Iterator[Tensor]:
    while True:
        if crops:
            chosen = rng.integers(len(pool), size=3 * BATCH)
            corners = rng.integers(drawings.SIDE - CROP + 1, size=(3 * BATCH, 2))
            cut = np.stack([pool[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(chosen, corners, strict=True)])
            edges = np.abs(np.diff(cut.astype(np.int16), axis=1)).sum(axis=(1, 2, 3))
            yield to_tensor(cut[edges.argsort()[-BATCH:]])  # a flat crop teaches nothing
        else:
            yield to_tensor(pool[rng.integers(len(pool), size=BATCH // 4)])


def reconstruction_loss(drawn: Tensor, images: Tensor) -> Tensor:
    error = drawn - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()  # difference of gradients
    return error.abs().mean() + edges


def vae_loss(vae: AutoencoderKL, images: Tensor, noise: torch.Generator) -> Tensor:
    mean, logvar = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(vae.decoder(vae.post_quant_conv(latents)), images) + KL_WEIGHT * kl


def decoder_loss(vae: AutoencoderKL, images: Tensor, noise: torch.Generator) -> Tensor:
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.sample(noise)
    return reconstruction_loss(vae.decoder(vae.post_quant_conv(latents)), images)


def rate_at(progress: float, *, peak: float, warm_up: float, fall: float) -> float:
    """Linear warm-up over the share `warm_up` of the training, and from `fall` on half a cosine to zero."""
    if progress < fall:
        return peak * min(1.0, progress / warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - fall) / (1 - fall))))


@torch.no_grad()
def normalise(vae: AutoencoderKL, pool: NDArray[np.uint8]) -> None:
    """Folds mean and deviation per channel into the 1x1 convolutions around the latents; decoded pictures stay.

    The posterior's deviation becomes NOISE everywhere, what the decoder then learns to live with.
    """
    latents = torch.cat([vae.encode(to_tensor(pool[at : at + 20])).latent_dist.mean for at in range(0, len(pool), 20)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * deviation)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.weight[4:] = 0
    quant.bias[4:] = 2 * math.log(NOISE / SCALING_FACTOR)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


@torch.no_grad()
def mean_absolute_error(vae: AutoencoderKL, images: NDArray[np.uint8]) -> float:
    """Of pictures in [0, 1], encoded to the mean and decoded again."""
    errors = []
    for at in range(0, len(images), 20):
        batch = to_tensor(images[at : at + 20])
        drawn = vae.decode(vae.encode(batch).latent_dist.mean).sample
        errors.append((drawn.clamp(-1, 1) - batch).abs().mean().item() / 2)
    return float(np.mean(errors))


def save_half(model: Any, folder: Path) -> None:
    """Writes a model of diffusers or transformers as fp16 safetensors, without traces of this machine in its config."""
    model.half().save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # temporary files that become these are private
    model.float()


def train(
    vae: AutoencoderKL, loss_of: Loss, pool: NDArray[np.uint8], *, state_path: Path, minutes: float
) -> tuple[int, float]:
    """Trains what asks for gradients; returns steps and minutes. Resumes from `state_path`."""
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    step, spent, running, budget = 0, 0.0, 0.0, minutes * 60
    if state_path.exists():
        state = torch.load(state_path)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    state_path.parent.mkdir(parents=True, exist_ok=True)

    def save_state() -> None:
        networks = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**networks, "step": step, "spent": spent}, state_path)

    rng, noise = np.random.default_rng(step), torch.Generator().manual_seed(step)
    cropped, whole = batches(pool, rng, crops=True), batches(pool, rng, crops=False)
    last = time.monotonic()
    while spent < budget:
        progress = spent / budget
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, peak=RATE, warm_up=0.02, fall=0.02)
        loss = loss_of(vae, next(cropped if progress < CROPS_UNTIL else whole), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        running += (loss.item() - running) * max(0.02, 1 / step)
        now = time.monotonic()
        spent, last = spent + now - last, now
        if step % 100 == 0:
            left = (budget - spent) / 60
            print(f"{step:6d}  loss {running:.4f}  {step / spent:.2f} it/s  {left:.1f} min left", flush=True)
        if step % 500 == 0:
            save_state()
    save_state()
    return step, spent / 60


def main() -> None:
    parser = argparse.ArgumentParser(description="train the autoencoder of the model `shapes`")
    parser.add_argument("--minutes", type=float, default=26, help="time to train all of it, over all runs")
    parser.add_argument("--decoder-minutes", type=float, default=12, help="time to train the decoder alone, afterwards")
    parser.add_argument("--state", type=Path, default=STATE, help="file to resume from and to save to")
    parser.add_argument("--out", type=Path, default=CHECKPOINT / "vae")
    options = parser.parse_args()

    torch.manual_seed(0)
    vae = new_vae()
    start_as_thumbnail(vae)
    pool = pictures(POOL, seed=1)
    stages = (("all", vae_loss, options.minutes), ("decoder", decoder_loss, options.decoder_minutes))
    for name, loss_of, minutes in stages:
        if name == "decoder":
            normalise(vae, pool[:600])
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        state = options.state.with_name(f"{options.state.name}-{name}.pt")
        step, spent = train(vae, loss_of, pool, state_path=state, minutes=minutes)
        print(f"{name}: {step} steps in {spent:.0f} minutes")
    vae.eval()
    save_half(vae, options.out)
    print(f"mean absolute error {mean_absolute_error(vae, pictures(200, seed=99)):.4f}; fp16 weights in {options.out}")


if __name__ == "__main__":
    main()
