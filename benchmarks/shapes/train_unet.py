"""Train the text encoder and the UNet of the model `shapes` together, and write the checkpoint `tests/data/shapes`.

    python -m benchmarks.shapes.train_vae && python -m benchmarks.shapes.train_unet

v-prediction on a schedule with zero terminal SNR. Latents are encoded once with the finished autoencoder; a tenth of
the captions is replaced by "" for guidance; the result is the moving average of both networks. Muon updates the UNet's
matrices, AdamW everything else. The learning rate reaches zero at the last step; an interrupted run continues from its
state. `--warm` starts from the checkpoint's networks at half the learning rate, and may be repeated with other seeds.
With `--drawn N`, half of each batch are pictures that the checkpoint drew, noised again: what they should become is the
nearest true drawing, so that late calls mend what earlier ones left crooked.
`--export` writes a checkpoint from the saved state of a training that is still running. A GPU is used where there is
one; its states continue on a CPU and the other way round, with the same draws.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from benchmarks.common.paths import SHAPES_CHECKPOINT

from . import drawings
from .drawn import drawn_pool
from .muon import Muon
from .networks import SCHEDULER, Captioned, token_ids, write_checkpoint
from .train_vae import SCALING_FACTOR, rate_at, to_tensor
from .training import Run
from .vocabulary import write_tokenizer

STATE = Path.home() / ".cache" / "latentrt" / "shapes-unet.pt"
POOL = 40_000  # training pictures; a state with fewer is filled up
TWO_OBJECTS = 0.8  # share of captions with two objects, which are harder to learn
RATES = {"muon": 2.5e-3, "adamw": 1.5e-3}
BATCHES = (16, 32)  # at first and later: at first more steps are worth more than less noise
SMALL_BATCHES = 1000  # steps with the first batch size
DROPPED_CAPTIONS = 0.1
DRAWN_SHARE = 0.5  # of a batch, of pictures that the checkpoint drew
CORRECTED = (40, 600)  # timesteps at which it is decided how true outlines are, not which shapes are where
EXPONENT = 1.7
EMA_DECAY = 0.99  # short, as the falling learning rate averages, too


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """Latents (n, 4, 16, 16) of pictures, with mean 0 and deviation 1."""
    parts = [vae.encode(to_tensor(images[at : at + 50]).to(vae.device)) for at in range(0, len(images), 50)]
    return torch.cat([part.latent_dist.mean.cpu() for part in parts]) * SCALING_FACTOR


def encoded_pool(vae: AutoencoderKL, count: int, *, seed: int) -> tuple[Tensor, list[str]]:
    """Latents (count, 4, 16, 16) of training pictures, and their captions."""
    rng = np.random.default_rng(seed)
    scenes = list(islice(drawings.training_scenes(rng, two_objects=TWO_OBJECTS), count))
    latents = [encoded(vae, drawings.draw(scenes[at : at + 50], rng)) for at in range(0, count, 50)]
    return torch.cat(latents), [scene.caption() for scene in scenes]


def velocity_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    clean: Tensor,
    ids: Tensor,
    alphas: Tensor,
    noise: torch.Generator,
    *,
    exponent: float,
    drawn: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, at random timesteps: uniform for an exponent of 1, more often noisy ones above it.

    Where the first of `clean` have `drawn` latents beside them, the noise is added to these, and timesteps are those of
    `CORRECTED`. Draws are those of the CPU on every device.
    """
    late = torch.rand(len(clean), generator=noise) ** exponent
    timesteps = (len(alphas) * (1 - late)).long().clamp(0, len(alphas) - 1)
    noised = clean
    if drawn is not None:
        timesteps[: len(drawn)] = torch.randint(*CORRECTED, (len(drawn),), generator=noise)
        noised = torch.cat((drawn, clean[len(drawn) :]))
    timesteps = timesteps.to(clean.device)
    signal = alphas[timesteps].sqrt()[:, None, None, None]
    spread = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
    noised = signal * noised + spread * torch.randn(clean.shape, generator=noise).to(clean.device)
    return nn.functional.mse_loss(model(noised, timesteps, ids), (signal * noised - clean) / spread)


def new_optimizers(model: Captioned) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the UNet, AdamW for all other parameters."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inner = name.startswith("unet.") and not any(part in name for part in ("conv_in", "conv_out", "time_emb"))
        (matrices if inner and parameter.ndim > 1 else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=RATES["adamw"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return {"muon": Muon(matrices, RATES["muon"]), "adamw": adamw}


def on_cpu(value: Any) -> Any:
    """A state with its tensors on the CPU, so that it can be loaded without a GPU."""
    match value:
        case Tensor():
            return value.cpu()
        case dict():
            return {name: on_cpu(item) for name, item in value.items()}
    return value


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the text encoder and the UNet of the model `shapes`.")
    parser.add_argument("--steps", type=int, default=9000, help="default: 9000; about 0.6 s each on one core")
    parser.add_argument("--pool", type=int, default=POOL, help=f"training pictures; default: {POOL}")
    parser.add_argument("--seed", type=int, default=7, help="of the training pictures and the noise; default: 7")
    parser.add_argument(
        "--exponent",
        type=float,
        default=EXPONENT,
        help=f"above 1, noisy timesteps come more often, which decide what is drawn and where; default: {EXPONENT}",
    )
    parser.add_argument("--state", type=Path, default=STATE, help="default: ~/.cache/latentrt/shapes-unet.pt")
    parser.add_argument("--out", type=Path, default=SHAPES_CHECKPOINT, help="must have vae; default: tests/data/shapes")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU where there is one")
    parser.add_argument("--batch", type=int, help=f"default: {BATCHES[0]}, and {BATCHES[1]} later")
    parser.add_argument("--drawn", type=int, default=0, help="pictures of the checkpoint to correct; default: 0")
    parser.add_argument("--warm", action="store_true", help="start from the checkpoint's networks, at half the rate")
    parser.add_argument("--export", action="store_true", help="only write a checkpoint from the state")
    options = parser.parse_args()

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(options.seed)
    run = Run(options.state, options.steps)
    state = run.state
    write_tokenizer(options.out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    words = " ".join((*drawings.COLOURS, *drawings.SHAPES, *drawings.RADII[1], "a an and left of on background"))
    model = Captioned(token_ids(tokenizer, [words]).unique())
    if options.export:
        model.load_state_dict(state["average"])
        write_checkpoint(model, options.out)
        print(f"step {run.step} after {run.spent / 60:.0f} minutes written to {options.out}")
        return

    known = len(state.setdefault("captions", []))
    if known < options.pool:
        vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32).eval().to(device)
        latents, captions = encoded_pool(vae, options.pool - known, seed=options.seed + known)
        state["latents"] = torch.cat((state["latents"], latents)) if known else latents
        state["captions"] += captions
        print(f"latents: mean {state['latents'].mean():.3f}, deviation {state['latents'].std():.3f}", flush=True)
    latents = state["latents"].to(device)
    drawn, nearest, drawn_ids = None, None, None
    if options.drawn:
        vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32).eval()
        file = options.state.with_name(f"{options.state.stem}-drawn.pt")
        pool = drawn_pool(file, options.out, vae, options.drawn, seed=options.seed * 1_000_000)
        drawn, nearest = pool.latents.to(device), encoded(vae, pool.pictures).to(device)
        drawn_ids = torch.searchsorted(model.used, token_ids(tokenizer, pool.captions))
    # row numbers of the small embedding instead of ids
    ids = torch.searchsorted(model.used, token_ids(tokenizer, state["captions"]))
    empty = torch.searchsorted(model.used, token_ids(tokenizer, [""]))
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod.to(device)

    if options.warm:
        model.load_checkpoint(options.out)
    model.to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = new_optimizers(model)
    if run.step:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])

    def networks() -> dict[str, Any]:
        parts = {"model": model, "average": average, **optimizers}
        return {name: on_cpu(part.state_dict()) for name, part in parts.items()}

    noise = torch.Generator().manual_seed(options.seed * 1_000_000 + run.step)
    peaks = {name: rate * (0.5 if options.warm else 1) for name, rate in RATES.items()}
    for progress in run.each(networks):
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate_at(progress, peak=peaks[name], warm_up=0.01, fall=0.3)
        batch = options.batch or BATCHES[options.warm or run.step >= SMALL_BATCHES]
        chosen = torch.randint(len(latents), (batch,), generator=noise)
        clean, captions, corrected = latents[chosen.to(device)], ids[chosen], None
        if drawn is not None:
            some = torch.randint(len(drawn), (int(batch * DRAWN_SHARE),), generator=noise)
            corrected = drawn[some.to(device)]
            clean[: len(some)], captions[: len(some)] = nearest[some.to(device)], drawn_ids[some]
        kept = torch.rand(batch, 1, generator=noise) >= DROPPED_CAPTIONS
        captions = torch.where(kept, captions, empty).to(device)
        loss = velocity_loss(model, clean, captions, alphas, noise, exponent=options.exponent, drawn=corrected)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        decay = min(EMA_DECAY, (run.step + 1) / (run.step + 11))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        run.note(loss.item())
    write_checkpoint(average.cpu(), options.out)
    print(f"{run}, checkpoint in {options.out}")


if __name__ == "__main__":
    main()
