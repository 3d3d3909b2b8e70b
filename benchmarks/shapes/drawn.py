"""Pictures that the model `shapes` draws, each with the true drawing nearest to it.

The judge finds the objects of a picture; the same objects, drawn by the picture language, are what the decoder should
have made of these latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.quality.judge import judge, regions_of

from . import drawings
from .networks import SCHEDULER, token_ids
from .train_vae import SCALING_FACTOR

BATCH = 16
STEPS = 20
GUIDANCE = (1.0, 5.0)  # scales; the bundle's default is 2
TWO_OBJECTS = 0.4
SAVED_EVERY = 400
SHAPES = (*drawings.SHAPES, "star", "square")  # the most detailed shape, and the one whose faults show most


class Drawer:
    """The checkpoint's text encoder and UNet, sampled with DDIM and guidance."""

    def __init__(self, folder: Path) -> None:
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        self.encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.scheduler = DDIMScheduler.from_config(SCHEDULER)

    @torch.no_grad()
    def __call__(self, captions: list[str], scale: float, noise: torch.Generator) -> Tensor:
        """Latents (n, 4, 16, 16) of deviation 1."""
        hidden = self.encoder(token_ids(self.tokenizer, [""] * len(captions) + captions)).last_hidden_state
        latents = torch.randn((len(captions), 4, drawings.SIDE // 8, drawings.SIDE // 8), generator=noise)
        self.scheduler.set_timesteps(STEPS)
        for timestep in self.scheduler.timesteps:
            free, guided = self.unet(torch.cat((latents, latents)), timestep, hidden).sample.chunk(2)
            latents = self.scheduler.step(free + scale * (guided - free), timestep, latents).prev_sample
        return latents


@dataclass(frozen=True, slots=True)
class Pool:
    """Latents (n, 4, 16, 16) of right pictures, the true drawings (n, 128, 128, 3) nearest to them, and captions."""

    latents: Tensor
    pictures: NDArray[np.uint8]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.latents)

    def __add__(self, other: Pool) -> Pool:
        latents, pictures = torch.cat((self.latents, other.latents)), np.concatenate((self.pictures, other.pictures))
        return Pool(latents, pictures, self.captions + other.captions)


def drawn_pool(file: Path, folder: Path, vae: AutoencoderKL, count: int, *, seed: int) -> Pool:
    """A pool of at least `count` pictures of the checkpoint in `folder`, kept in `file`, which it fills up."""
    side = drawings.SIDE
    pool = Pool(torch.empty(0, 4, side // 8, side // 8), np.empty((0, side, side, 3), np.uint8), [])
    if file.exists():
        known = torch.load(file)
        pool = Pool(known["latents"], known["pictures"].numpy(), known["captions"])
    drawer = Drawer(folder)
    while len(pool) < count:
        pool += _drawn(drawer, vae, min(count - len(pool), SAVED_EVERY), seed=seed + len(pool))
        partial = file.with_suffix(".partial")
        pictures = torch.from_numpy(pool.pictures)
        torch.save({"latents": pool.latents, "pictures": pictures, "captions": pool.captions}, partial)
        partial.replace(file)
        print(f"drew {len(pool)} of {count} pictures", flush=True)
    return pool


def _drawn(drawer: Drawer, vae: AutoencoderKL, count: int, *, seed: int) -> Pool:
    """At least `count` pictures of random scenes and guidance scales."""
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    scenes = drawings.training_scenes(rng, two_objects=TWO_OBJECTS, shapes=SHAPES)
    latents: list[Tensor] = []
    captions: list[str] = []
    objects: list[list[drawings.Placed]] = []
    backgrounds: list[str] = []
    while len(latents) < count:
        asked = list(islice(scenes, BATCH))
        drawn = drawer([scene.caption() for scene in asked], float(rng.uniform(*GUIDANCE)), noise)
        for scene, one, picture in zip(asked, drawn, _pictures(vae, drawn), strict=True):
            if judge(picture, scene)["all"]:
                latents.append(one)
                captions.append(scene.caption())
                backgrounds.append(scene.background)
                objects.append([region.placed() for region in regions_of(picture, scene.background)])
    return Pool(torch.stack(latents), drawings.render(objects, backgrounds), captions)


@torch.no_grad()
def _pictures(vae: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    decoded = vae.decode(latents / SCALING_FACTOR).sample.clamp(-1, 1)
    pictures: NDArray[np.uint8] = ((decoded.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    return pictures
