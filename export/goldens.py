"""Generate the golden outputs of a bundle with PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.families import extra_channels, time_inputs
from latentrt.export.graphs.unet import UNetGraph
from latentrt.export.graphs.vae import VAEDecoderGraph
from latentrt.runtime.bundle import Defaults, Golden, Model, TextEncoder
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.text import Tokenizer

from .model_facts import golden_scheduler

Array = NDArray[Any]
GOLDEN_FILE = "golden/golden.safetensors"
# Limits for a runtime that replays the golden: relative errors of embedding and latents, PSNR of the image in dB.
GOLDEN_LIMITS = {"fp32": (1e-3, 1e-3, 50.0), "fp16": (3e-2, 1e-1, 30.0), "bf16": (1e-1, 3e-1, 20.0)}
# UNets with more parameters than this make a small golden, to keep the export to a few minutes.
LARGE = 100_000_000
_EMBEDDING_SLICE = 16


def as_tuple(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A module's outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Results of the parity process: the golden's record, and the linear map from latents to RGB, (C + 1, 3)."""

    golden: Golden
    latent_rgb: tuple[tuple[float, ...], ...]


class GoldenMaker:
    """Generates one image with PyTorch's modules and records the intermediate results that a runtime must reproduce."""

    def __init__(self, checkpoint: Checkpoint, model: Model, defaults: Defaults, prompt: str) -> None:
        self.checkpoint, self.model, self.defaults, self.prompt = checkpoint, model, defaults, prompt
        self.arrays: dict[str, Array] = {}
        self.size, self.steps = (defaults.height, defaults.width), defaults.num_inference_steps
        distilled = checkpoint.configs["unet"].get("time_cond_proj_dim") is not None
        self.scale = 1.0 if distilled else defaults.guidance_scale
        self.hidden: list[Array] = []
        self.time_inputs: dict[str, Array] = {}

    def encode(self, text_encoder: torch.nn.Module, facts: TextEncoder, folder: Path) -> None:
        """Record token ids (2, 77) of [negative, positive] prompt, and the first channels of the UNet's text input."""
        suffix = facts.graph.removeprefix("text_encoder")
        ids = Tokenizer.from_file(folder / facts.tokenizer, facts).encode(["", self.prompt]).ids
        states, *pooled = as_tuple(text_encoder(torch.from_numpy(ids)))
        self.hidden.append(states[:, 0].numpy())
        self.time_inputs.update(("pooled", value.numpy()) for value in pooled)
        self.arrays[f"input_ids{suffix}"] = ids
        self.arrays[f"embedding{suffix}"] = np.ascontiguousarray(self.hidden[-1][:, :, :_EMBEDDING_SLICE])

    def denoise(self, unet: Any, *, small: bool) -> None:
        """Record noise, plan and final latents; `small` takes 4 steps at a small size."""
        if small:
            stride = 2 ** (len(self.checkpoint.configs["unet"]["down_block_types"]) - 1)
            factor = self.model.vae_scale_factor
            self.size, self.steps = (stride * factor, 2 * stride * factor), 4
        plan = self._plan()
        height, width = (side // self.model.vae_scale_factor for side in self.size)
        generator = TorchGenerator(0)
        shape = (self.model.latent_channels, height, width)
        noise = np.stack([generator.randn(shape) for _ in range(1 + int(plan.draws.sum()))])
        draws = iter(noise[1:])
        scale = self.scale
        weights = np.array([1 - scale, scale] if scale > 1 else [0, 1], np.float32)
        more = self._other_inputs(height, width)
        own = {name: torch.from_numpy(np.broadcast_to(a, (2, *a.shape[1:])).copy()) for name, a in more.items()}
        own["hidden_states"] = torch.from_numpy(np.concatenate(self.hidden, 2))

        def predict(x: Array, timestep: np.float32) -> Array:
            moment = torch.full((2,), float(timestep))
            outputs = UNetGraph(unet)(sample=torch.from_numpy(np.stack([x, x])), timesteps=moment, **own)
            return np.tensordot(weights, outputs.numpy(), 1)

        self.arrays |= {f"input.{name}": array for name, array in more.items()}
        self.arrays |= {"noise": noise, "latents": plan.replay(predict, noise[0], draw=lambda: next(draws))}
        self.arrays |= {f"plan.{name}": array for name, array in plan.to_arrays().items()}

    def _other_inputs(self, height: int, width: int) -> dict[str, Array]:
        """The UNet's other inputs: pooled text and sizes (SDXL), guidance (distilled models), inpainting channels.

        Inputs that no recorded value provides are random.
        """
        config, factor = self.checkpoint.configs["unet"], self.model.vae_scale_factor
        random = np.random.default_rng(5)
        size = [height * factor, width * factor]
        family = self.checkpoint.family
        ids = [[*size, 0, 0, *end] for end in ([[2.5], [6.0]] if family.aesthetic_score else [size, size])]
        made: dict[str, Array] = {**self.time_inputs, "time_ids": np.array(ids, np.float32)}
        of_time = time_inputs(config, family.time_ids)
        found = {i.name: made.get(i.name, random.uniform(-1, 1, (2, *i.shape))) for i in of_time}
        if extra := extra_channels(config):
            found["extra"] = random.standard_normal((1, extra, height, width))
        return {name: array.astype(np.float32) for name, array in found.items()}

    def _plan(self) -> Plan:
        config, _ = golden_scheduler(self.checkpoint.configs["scheduler"], self.steps)
        return Plan.from_config(config, self.steps)

    def decode(self, vae: Any, name: str = "image") -> None:
        """Record the decoded image, (8h, 8w, 3) uint8."""
        images, _ = VAEDecoderGraph(vae)(torch.from_numpy(self.arrays["latents"][None]))
        self.arrays[name] = images[0].numpy()

    def write(self, folder: Path, limits: tuple[float, float, float]) -> Golden:
        """Write the recorded arrays; returns the manifest's entry."""
        (folder / GOLDEN_FILE).parent.mkdir()
        save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, folder / GOLDEN_FILE)
        return Golden(GOLDEN_FILE, self.prompt, "", 0, *self.size, self.steps, self.scale, *limits)
