"""Train a ControlNet for the model `shapes` that draws along outlines, and write `tests/data/shapes-edges`.

    python -m benchmarks.shapes.train_control

The checkpoint's networks stay as they are. The ControlNet starts as a copy of the UNet's first half, and learns from
captions that mostly do not name the shapes, so that it has to take them from the edge map. `--warm` starts from the
ControlNet in `--out` instead, and may be repeated with other seeds.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.common.paths import SHAPES_CHECKPOINT, SHAPES_EDGES

from . import drawings
from .networks import SCHEDULER, token_ids
from .train_unet import DROPPED_CAPTIONS, encoded, velocity_loss
from .train_vae import rate_at, save_half
from .training import Run

STATE = Path.home() / ".cache" / "latentrt" / "shapes-control.pt"
POOL = 12_000
RATE = 1e-3
BATCH = 32
TWO_OBJECTS = 0.75  # share of pictures with two objects, whose colours are harder to tell apart without names
NAMED = 0.25  # share of captions that name the shapes
EXPONENT = 1.7  # colours and shapes are decided in noisy calls
HINT_CHANNELS = (16, 16, 32, 32)
EMA_DECAY = 0.99


class Controlled(nn.Module):
    """The checkpoint's text encoder and UNet, which stay, and a ControlNet `net`."""

    def __init__(self, folder: Path, net: Path | None = None) -> None:
        """Load the checkpoint in `folder`, and a ControlNet to start from."""
        super().__init__()
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.requires_grad_(False)
        if net is None:
            self.net = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=HINT_CHANNELS)
        else:
            self.net = ControlNetModel.from_pretrained(net, torch_dtype=torch.float32)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, hints: Tensor) -> Tensor:
        hidden = self.text_encoder(ids).last_hidden_state
        down, middle = self.net(latents, timesteps, hidden, hints, return_dict=False)
        predicted: Tensor = self.unet(
            latents,
            timesteps,
            hidden,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return predicted


def placed_to_learn(scene: drawings.Scene, rng: np.random.Generator) -> list[drawings.Placed]:
    """The objects of a scene, from left to right as in the caption where it leaves open which outline has which colour.

    Learned from both orders, such a caption would give both objects the mean of their colours, or one of them.
    """
    things = drawings.placed(scene, rng)
    if all(drawings.has_size(thing, asked, len(things)) for thing in things for asked in scene.objects):
        things = drawings.placed(replace(scene, relation="left of"), rng)
    return things


def hints_of(scenes: list[list[drawings.Placed]]) -> Tensor:
    """Edge maps (n, 3, 128, 128) in [0, 1]."""
    maps: NDArray[np.uint8] = np.stack([drawings.outlines(things) for things in scenes])
    return torch.from_numpy(maps)[:, None].expand(-1, 3, -1, -1).float() / 255


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train a ControlNet of edge maps for the model `shapes`.")
    parser.add_argument("--steps", type=int, default=3000, help="default: 3000; about 0.6 s each on one core")
    parser.add_argument("--pool", type=int, default=POOL, help=f"training pictures; default: {POOL}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"default: {BATCH}")
    parser.add_argument("--seed", type=int, default=17, help="of pictures and noise; default: 17")
    parser.add_argument("--warm", action="store_true", help="start from the ControlNet in --out")
    parser.add_argument("--state", type=Path, default=STATE, help="default: ~/.cache/latentrt/shapes-control.pt")
    parser.add_argument("--checkpoint", type=Path, default=SHAPES_CHECKPOINT, help="default: tests/data/shapes")
    parser.add_argument("--out", type=Path, default=SHAPES_EDGES, help="default: tests/data/shapes-edges")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    run = Run(options.state, options.steps)
    model = Controlled(options.checkpoint, options.out if options.warm else None)
    average = copy.deepcopy(model.net).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    if "net" in run.state:
        model.net.load_state_dict(run.state["net"])
        average.load_state_dict(run.state["average"])
        optimizer.load_state_dict(run.state["optimizer"])

    rng = np.random.default_rng(options.seed)
    scenes = list(islice(drawings.training_scenes(rng, two_objects=TWO_OBJECTS), options.pool))
    things = [placed_to_learn(scene, rng) for scene in scenes]
    if "latents" not in run.state:
        vae = AutoencoderKL.from_pretrained(options.checkpoint / "vae", torch_dtype=torch.float32).eval()
        grounds = [scene.background for scene in scenes]
        parts = (slice(at, at + 50) for at in range(0, options.pool, 50))
        run.state["latents"] = torch.cat([encoded(vae, drawings.render(things[p], grounds[p])) for p in parts])
    latents: Tensor = run.state["latents"]
    tokenizer = CLIPTokenizer.from_pretrained(options.checkpoint / "tokenizer")
    captions = [scene.caption() for scene in scenes]
    named = token_ids(tokenizer, captions)
    unnamed = token_ids(tokenizer, [drawings.without_shapes(caption) for caption in captions])
    empty = token_ids(tokenizer, [""])
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod
    noise = torch.Generator().manual_seed(options.seed * 1_000_000 + run.step)

    def networks() -> dict[str, Any]:
        return {
            "net": model.net.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }

    for progress in run.each(networks):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, peak=RATE, warm_up=0.02, fall=0.3)
        chosen = torch.randint(len(latents), (options.batch,), generator=noise)
        ids = torch.where(torch.rand(options.batch, 1, generator=noise) < NAMED, named[chosen], unnamed[chosen])
        ids = torch.where(torch.rand(options.batch, 1, generator=noise) < DROPPED_CAPTIONS, empty, ids)
        hints = hints_of([things[one] for one in chosen.tolist()])
        loss = velocity_loss(
            lambda x, t, c, hints=hints: model(x, t, c, hints),
            latents[chosen],
            ids,
            alphas,
            noise,
            exponent=EXPONENT,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (run.step + 1) / (run.step + 11))
        torch._foreach_lerp_(list(average.parameters()), list(model.net.parameters()), 1 - decay)
        run.note(loss.item())
    save_half(average, options.out)
    print(f"{run}, checkpoint in {options.out}")


if __name__ == "__main__":
    main()
