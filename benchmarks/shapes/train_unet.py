"""Train the text encoder and the UNet of the model `shapes` together, and write the checkpoint `tests/data/shapes`.

    python -m benchmarks.shapes.train_vae && python -m benchmarks.shapes.train_unet

v-prediction on a schedule with zero terminal SNR. Latents are encoded once with the finished autoencoder; a tenth of
the captions is replaced by "" for guidance; the result is the moving average of both networks. Muon updates the UNet's
matrices, AdamW everything else. The learning rate reaches zero at the last step; an interrupted run continues from its
state. `--warm` starts from the checkpoint's networks at half the learning rate, and may be repeated with other seeds;
`--export` writes a checkpoint from the saved state of a training that is still running. A GPU is used where there is
one; its states continue on a CPU and the other way round, with the same draws.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.common.paths import SHAPES_CHECKPOINT

from . import drawings
from .muon import Muon
from .train_vae import SCALING_FACTOR, rate_at, save_half, to_tensor
from .vocabulary import write_tokenizer

STATE = Path.home() / ".cache" / "latentrt" / "shapes-unet.pt"
POOL = 40_000  # training pictures; a state with fewer is filled up
TWO_OBJECTS = 0.8  # share of captions with two objects, which are harder to learn
RATES = {"muon": 2.5e-3, "adamw": 1.5e-3}
BATCHES = (16, 32)  # at first and later: at first more steps are worth more than less noise
SMALL_BATCHES = 1000  # steps with the first batch size
DROPPED_CAPTIONS = 0.1
EXPONENT = 1.7
EMA_DECAY = 0.99  # short, as the falling learning rate averages, too

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def new_text_encoder() -> CLIPTextModel:
    """The text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=64,
        bos_token_id=49_406,
        eos_token_id=49_407,  # with the default, the pooled output would be that of another token
        pad_token_id=49_407,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet2DConditionModel:
    """The UNet with random weights; its residual branches and its output start at zero."""
    unet = UNet2DConditionModel(
        sample_size=drawings.SIDE // 8,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4, 8),  # the number of heads, despite the name
        norm_num_groups=4,  # not more: normalisation over two channels loses the background's colour
    )
    for name, parameter in unet.named_parameters():
        if name.rpartition(".")[0].endswith((".conv2", ".proj_out", "conv_out")):
            nn.init.zeros_(parameter)
    return unet


class Captioned(nn.Module):
    """Text encoder and UNet as one module.

    During training the embedding has only the tokens of the picture language. About thirty of its 49,408 rows ever get
    a gradient, and updating all of them would cost more than updating the UNet.
    """

    def __init__(self, used: Tensor) -> None:
        super().__init__()
        self.text_encoder, self.unet = new_text_encoder(), new_unet()
        self.full = self.text_encoder.get_input_embeddings().weight.shape
        self.register_buffer("used", used)
        self.text_encoder.set_input_embeddings(nn.Embedding(len(used), self.full[1]))
        nn.init.normal_(self.text_encoder.get_input_embeddings().weight, std=0.1)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        hidden: Tensor = self.text_encoder(ids).last_hidden_state
        predicted: Tensor = self.unet(latents, timesteps, hidden).sample
        return predicted

    def load_checkpoint(self, folder: Path) -> None:
        """Load the weights of a checkpoint."""
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        rows = text_encoder.get_input_embeddings().weight.data[self.used]
        text_encoder.set_input_embeddings(nn.Embedding(*rows.shape, _weight=rows))
        self.text_encoder.load_state_dict(text_encoder.state_dict())
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.unet.load_state_dict(unet.state_dict())

    def whole_text_encoder(self) -> CLIPTextModel:
        """The text encoder with all rows of the embedding; tokens outside the picture language are zero."""
        whole = copy.deepcopy(self.text_encoder)
        embedding = nn.Embedding(*self.full)
        nn.init.zeros_(embedding.weight)
        embedding.weight.data[self.used] = self.text_encoder.get_input_embeddings().weight.data
        whole.set_input_embeddings(embedding)
        return whole


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (n, 77)."""
    ids: Tensor = tokenizer(list(captions), padding="max_length", max_length=77, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
def encoded_pool(vae: AutoencoderKL, count: int, *, seed: int) -> tuple[Tensor, list[str]]:
    """Latents (count, 4, 16, 16) of training pictures, with mean 0 and deviation 1, and their captions."""
    rng = np.random.default_rng(seed)
    scenes = list(islice(drawings.training_scenes(rng, two_objects=TWO_OBJECTS), count))
    latents = []
    for at in range(0, count, 50):
        images = to_tensor(drawings.draw(scenes[at : at + 50], rng)).to(vae.device)
        latents.append(vae.encode(images).latent_dist.mean.cpu() * SCALING_FACTOR)
    return torch.cat(latents), [scene.caption() for scene in scenes]


def velocity_loss(
    model: Captioned, clean: Tensor, ids: Tensor, alphas: Tensor, noise: torch.Generator, *, exponent: float
) -> Tensor:
    """The loss of a batch, at random timesteps: uniform for an exponent of 1, more often noisy ones above it.

    Draws are those of the CPU on every device.
    """
    late = torch.rand(len(clean), generator=noise) ** exponent
    timesteps = (len(alphas) * (1 - late)).long().clamp(0, len(alphas) - 1).to(clean.device)
    signal = alphas[timesteps].sqrt()[:, None, None, None]
    spread = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
    epsilon = torch.randn(clean.shape, generator=noise).to(clean.device)
    predicted = model(signal * clean + spread * epsilon, timesteps, ids)
    return nn.functional.mse_loss(predicted, signal * epsilon - spread * clean)


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


def write_checkpoint(model: Captioned, folder: Path) -> None:
    """Write everything but the autoencoder."""
    save_half(model.whole_text_encoder(), folder / "text_encoder")
    save_half(copy.deepcopy(model.unet), folder / "unet")
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    for path, content in (("model_index.json", MODEL_INDEX), ("scheduler/scheduler_config.json", SCHEDULER)):
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")


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
    parser.add_argument("--warm", action="store_true", help="start from the checkpoint's networks, at half the rate")
    parser.add_argument("--export", action="store_true", help="only write a checkpoint from the state")
    options = parser.parse_args()

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(options.seed)
    state: dict[str, Any] = torch.load(options.state, map_location="cpu") if options.state.exists() else {}
    write_tokenizer(options.out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    words = " ".join((*drawings.COLOURS, *drawings.SHAPES, *drawings.RADII[1], "a an and left of on background"))
    model = Captioned(token_ids(tokenizer, [words]).unique())
    if options.export:
        model.load_state_dict(state["average"])
        write_checkpoint(model, options.out)
        print(f"step {state['step']} after {state['spent'] / 60:.0f} minutes written to {options.out}")
        return

    known = len(state.setdefault("captions", []))
    if known < options.pool:
        vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32).eval().to(device)
        latents, captions = encoded_pool(vae, options.pool - known, seed=options.seed + known)
        state["latents"] = torch.cat((state["latents"], latents)) if known else latents
        state["captions"] += captions
        print(f"latents: mean {state['latents'].mean():.3f}, deviation {state['latents'].std():.3f}", flush=True)
    latents = state["latents"].to(device)
    # row numbers of the small embedding instead of ids
    ids = torch.searchsorted(model.used, token_ids(tokenizer, state["captions"]))
    empty = torch.searchsorted(model.used, token_ids(tokenizer, [""]))
    alphas = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod.to(device)

    if options.warm:
        model.load_checkpoint(options.out)
    model.to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = new_optimizers(model)
    step, spent, running = state.get("step", 0), state.get("spent", 0.0), state.get("running", 1.0)
    if step:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
    options.state.parent.mkdir(parents=True, exist_ok=True)

    def save_state() -> None:
        state.update({name: on_cpu(optimizer.state_dict()) for name, optimizer in optimizers.items()})
        state.update(model=on_cpu(model.state_dict()), average=on_cpu(average.state_dict()))
        state.update(step=step, spent=spent, running=running)
        partial = options.state.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(options.state)  # so that --export never reads a partial file

    save_state()
    noise = torch.Generator().manual_seed(options.seed * 1_000_000 + step)
    peaks = {name: rate * (0.5 if options.warm else 1) for name, rate in RATES.items()}
    last = time.monotonic()
    while step < options.steps:
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step / options.steps, peak=peaks[name], warm_up=0.01, fall=0.3)
        batch = options.batch or BATCHES[options.warm or step >= SMALL_BATCHES]
        chosen = torch.randint(len(latents), (batch,), generator=noise)
        kept = torch.rand(batch, 1, generator=noise) >= DROPPED_CAPTIONS
        captions = torch.where(kept, ids[chosen], empty)
        loss = velocity_loss(
            model, latents[chosen.to(device)], captions.to(device), alphas, noise, exponent=options.exponent
        )
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        step += 1
        decay = min(EMA_DECAY, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running += (loss.item() - running) * 0.01
        now = time.monotonic()
        spent, last = spent + now - last, now
        if step % 100 == 0:
            left = (options.steps - step) * spent / step / 60
            print(f"{step:6d}  loss {running:.4f}  {step / spent:.2f} it/s  {left:.1f} min left", flush=True)
        if step % 250 == 0:
            save_state()
    save_state()
    write_checkpoint(average.cpu(), options.out)
    print(f"{step} steps in {spent / 60:.0f} minutes, loss {running:.4f}, checkpoint in {options.out}")


if __name__ == "__main__":
    main()
