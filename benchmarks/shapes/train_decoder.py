"""Train the decoder of the model `shapes` further, on latents as the UNet leaves them.

    python -m benchmarks.shapes.train_decoder

The UNet's latents are not those of the encoder: they are a little off everywhere, and outlines wobble where the decoder
takes that for shape. So half of the batches are latents that the UNet drew from captions, for which the decoder learns
the nearest true drawing; a quarter are latents that the UNet has denoised from a low noise level, where a picture's
shapes are still in place; and a quarter have noise of random strength. The encoder stays, and so do the latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.common.paths import SHAPES_CHECKPOINT

from .drawn import drawn_pool
from .networks import SCHEDULER, token_ids
from .train_vae import SCALING_FACTOR, mean_absolute_error, pictures, rate_at, reconstruction_loss, save_half, to_tensor
from .training import Run

STATE = Path.home() / ".cache" / "latentrt" / "shapes-decoder.pt"
RATE = 6e-4
BATCH = 4
POOL = 4000
DRAWN = 4000
EMA_DECAY = 0.995
NOISE = (0.02, 0.15)  # deviation of the added noise, of latents with deviation 1
TIMESTEPS = (20, 260)  # that drafts are denoised from


class Drafts:
    """Latents as the UNet makes them from noised latents of true pictures, in one step."""

    def __init__(self, folder: Path) -> None:
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        with torch.no_grad():
            self.empty = encoder(token_ids(tokenizer, [""])).last_hidden_state
        self.alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod

    @torch.no_grad()
    def __call__(self, latents: Tensor, noise: torch.Generator) -> Tensor:
        """Latents (n, 4, h, w) of deviation 1, at one random timestep each."""
        times = torch.randint(*TIMESTEPS, (len(latents),), generator=noise)
        signal = self.alphas[times].sqrt()[:, None, None, None]
        spread = (1 - self.alphas[times]).sqrt()[:, None, None, None]
        noised = signal * latents + spread * torch.randn(latents.shape, generator=noise)
        velocity = self.unet(noised, times, self.empty.expand(len(latents), -1, -1)).sample
        clean: Tensor = signal * noised - spread * velocity
        return clean


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the decoder of the model `shapes` on latents of its UNet.")
    parser.add_argument("--steps", type=int, default=4000, help="default: 4000; about 0.4 s each on one core")
    parser.add_argument("--pool", type=int, default=POOL, help=f"training pictures; default: {POOL}")
    parser.add_argument("--drawn", type=int, default=DRAWN, help=f"pictures drawn from captions; default: {DRAWN}")
    parser.add_argument("--seed", type=int, default=0, help="of captions, pictures and noise; default: 0")
    parser.add_argument("--state", type=Path, default=STATE, help="default: ~/.cache/latentrt/shapes-decoder.pt")
    parser.add_argument("--out", type=Path, default=SHAPES_CHECKPOINT, help="default: tests/data/shapes")
    options = parser.parse_args()

    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32)
    vae.requires_grad_(False)
    parts = (vae.decoder, vae.post_quant_conv)
    trained = [parameter.requires_grad_() for part in parts for parameter in part.parameters()]
    average = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    run = Run(options.state, options.steps)
    if run.step:
        for parameter, saved in zip(trained, run.state["trained"], strict=True):
            parameter.data.copy_(saved)
        average = run.state["average"]
        optimizer.load_state_dict(run.state["optimizer"])

    def networks() -> dict[str, Any]:
        parameters = [parameter.detach() for parameter in trained]
        return {"trained": parameters, "average": average, "optimizer": optimizer.state_dict()}

    pool, drafts = pictures(options.pool, seed=11 + options.seed), Drafts(options.out)
    drawn_file = options.state.with_name(f"{options.state.stem}-drawn.pt")
    drawn = drawn_pool(drawn_file, options.out, vae, options.drawn, seed=options.seed * 1_000_000)
    noise = torch.Generator().manual_seed(options.seed * 1_000_000 + run.step)
    rng = np.random.default_rng((options.seed, run.step))

    def batch() -> tuple[Tensor, Tensor]:
        """Latents, and the pictures that they should become."""
        if run.step % 2 and len(drawn):
            chosen = rng.integers(len(drawn), size=BATCH)
            return drawn.latents[chosen], to_tensor(drawn.pictures[chosen])
        images = to_tensor(pool[rng.integers(len(pool), size=BATCH)])
        latents = vae.encode(images).latent_dist.mean * SCALING_FACTOR
        if run.step % 4:
            return drafts(latents, noise), images
        strength = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(BATCH, 1, 1, 1, generator=noise)
        return latents + strength * torch.randn(latents.shape, generator=noise), images

    for progress in run.each(networks):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, peak=RATE, warm_up=0.02, fall=0.2)
        with torch.no_grad():
            latents, images = batch()
        loss = reconstruction_loss(vae.decode(latents / SCALING_FACTOR).sample, images)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (run.step + 1) / (run.step + 11))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in trained], 1 - decay)
        run.note(loss.item())
    for parameter, value in zip(trained, average, strict=True):
        parameter.data.copy_(value)
    vae.eval()
    save_half(vae, options.out / "vae")
    error = mean_absolute_error(vae, pictures(200, seed=99))
    print(f"{run}, mean absolute error {error:.4f}")


if __name__ == "__main__":
    main()
