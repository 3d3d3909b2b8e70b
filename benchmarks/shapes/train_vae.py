"""Train the 8x autoencoder of the model `shapes` (diffusers' `AutoencoderKL`, 4 latent channels) on drawn pictures.

    python -m benchmarks.shapes.train_vae

It is initialised as a thumbnail: the encoder's residual path averages the colours of 8x8 pixels, the decoder's repeats
them, so that training has to learn edges and not colours. Batches are small, as on a CPU more steps are worth more than
less noisy gradients. Training starts with 64x64 crops and ends with whole pictures. Then the latents are normalised: a
shift and a scale per channel are folded into `quant_conv` and `post_quant_conv`, so that `scaling_factor` gives them
mean 0 and standard deviation 1. The factor is that of SD 1.x, 0.18215: were it 1, code that forgets it would go
unnoticed. Finally the decoder is trained alone, on latents with a little noise; the UNet can be trained meanwhile.

The budget is in minutes and not in steps, so that the learning rate reaches zero at its end on any machine. One of two
shared CPU cores made 2164 steps for both networks and 1074 for the decoder in 38 minutes; the mean absolute error is
0.0035 of [0, 1].
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

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common.paths import SHAPES_CHECKPOINT

from . import drawings

STATE = Path.home() / ".cache" / "latentrt" / "shapes-vae"
SCALING_FACTOR = 0.18215
RATE = 1.5e-3
NOISE = 0.05  # added to latents of deviation 1 when the decoder is trained, as the UNet does not hit them exactly
KL_WEIGHT = 1.5e-4  # per latent element; with much more, the channel that is not a colour stays unused
Loss = Callable[[AutoencoderKL, Tensor, torch.Generator], Tensor]
BATCH = 8
CROP = 64
CROPS_UNTIL = 0.7  # share of the time with crops
POOL = 4000  # training pictures


def new_vae() -> AutoencoderKL:
    """The autoencoder with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        # Not more: normalisation over groups of two channels loses the colour of a flat picture.
        norm_num_groups=2,
        sample_size=drawings.SIDE,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL) -> None:
    """Make channels 0-2 carry the colours along the residual path, 5-7 their negatives, and 3 and 4 the constants +-6.

    The constants dominate the variance of their group, so its normalisation is close to a fixed scale, which its
    weights undo. As silu(x) - silu(-x) = x, the networks are nearly linear at first: one averages, the other repeats.
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
    vae.quant_conv.bias[4:] = -4  # logarithm of the variance: little noise at first
    vae.post_quant_conv.weight[:] = torch.eye(4)[:, :, None, None]
    vae.post_quant_conv.bias.zero_()


def _set_path(conv: torch.nn.Conv2d, taps: tuple[tuple[int, int], ...], weight: float) -> None:
    """Make channels 0-7 of the output the weighted sum of the same input channels at `taps`."""
    conv.weight[:8] = 0
    conv.bias[:8] = 0
    for row, column in taps:
        for channel in range(8):
            conv.weight[channel, channel, row, column] = weight


def pictures(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Drawings (n, 128, 128, 3) of random scenes."""
    rng = np.random.default_rng(seed)
    scenes = list(islice(drawings.training_scenes(rng, two_objects=0.4), count))
    return np.concatenate([drawings.draw(scenes[at : at + 50], rng) for at in range(0, count, 50)])


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Convert (n, h, w, 3) in bytes to (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def batches(pool: NDArray[np.uint8], rng: np.random.Generator, *, crops: bool) -> Iterator[Tensor]:
    """An endless stream of random batches: crops with many edges, or a quarter as many whole pictures."""
    while True:
        if crops:
            chosen = rng.integers(len(pool), size=3 * BATCH)
            corners = rng.integers(drawings.SIDE - CROP + 1, size=(3 * BATCH, 2))
            cut = np.stack([pool[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(chosen, corners, strict=True)])
            edges = np.abs(np.diff(cut.astype(np.int16), axis=1)).sum(axis=(1, 2, 3))
            yield to_tensor(cut[edges.argsort()[-BATCH:]])  # nothing is learned from flat crops
        else:
            yield to_tensor(pool[rng.integers(len(pool), size=BATCH // 4)])


def reconstruction_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their gradients."""
    error = drawn - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + edges


def vae_loss(vae: AutoencoderKL, images: Tensor, noise: torch.Generator) -> Tensor:
    """The loss for encoder and decoder."""
    mean, logvar = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(vae.decoder(vae.post_quant_conv(latents)), images) + KL_WEIGHT * kl


def decoder_loss(vae: AutoencoderKL, images: Tensor, noise: torch.Generator) -> Tensor:
    """The loss for the decoder alone."""
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.sample(noise)
    return reconstruction_loss(vae.decoder(vae.post_quant_conv(latents)), images)


def rate_at(progress: float, *, peak: float, warm_up: float, fall: float) -> float:
    """The learning rate: linear warm-up until `warm_up`, half a cosine to zero from `fall`, as shares of the time."""
    if progress < fall:
        return peak * min(1.0, progress / warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - fall) / (1 - fall))))


@torch.no_grad()
def normalise(vae: AutoencoderKL, pool: NDArray[np.uint8]) -> None:
    """Fold mean and deviation per channel into the 1x1 convolutions around the latents; decoded pictures do not change.

    The posterior's deviation becomes `NOISE` everywhere, which the decoder is then trained with.
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
    """The error of pictures in [0, 1] that are encoded to the mean and decoded."""
    errors = []
    for at in range(0, len(images), 20):
        batch = to_tensor(images[at : at + 20])
        drawn = vae.decode(vae.encode(batch).latent_dist.mean).sample
        errors.append((drawn.clamp(-1, 1) - batch).abs().mean().item() / 2)
    return float(np.mean(errors))


def save_half(model: Any, folder: Path) -> None:
    """Write a model of diffusers or transformers as fp16 safetensors, without local paths in its config."""
    model.half().save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # temporary files, which these were, are private
    model.float()


def train(
    vae: AutoencoderKL, loss_of: Loss, pool: NDArray[np.uint8], *, state_path: Path, minutes: float
) -> tuple[int, float]:
    """Train the parameters that require gradients, resuming from `state_path`; return steps and minutes."""
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
    """The command."""
    parser = argparse.ArgumentParser(description="Train the autoencoder of the model `shapes`.")
    parser.add_argument("--minutes", type=float, default=26, help="total time for both networks; default: 26")
    parser.add_argument("--decoder-minutes", type=float, default=12, help="then for the decoder alone; default: 12")
    parser.add_argument("--pool", type=int, default=POOL, help=f"training pictures; default: {POOL}")
    parser.add_argument("--state", type=Path, default=STATE, help="prefix; default: ~/.cache/latentrt/shapes-vae")
    parser.add_argument("--out", type=Path, default=SHAPES_CHECKPOINT / "vae", help="default: tests/data/shapes/vae")
    options = parser.parse_args()

    torch.manual_seed(0)
    vae = new_vae()
    start_as_thumbnail(vae)
    pool = pictures(options.pool, seed=1)
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
