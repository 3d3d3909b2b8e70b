"""The networks of the model `shapes`: text encoder, UNet, scheduler, and the checkpoint that they are written to."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import drawings
from .train_vae import save_half
from .vocabulary import write_tokenizer

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


def write_checkpoint(model: Captioned, folder: Path) -> None:
    """Write everything but the autoencoder."""
    save_half(model.whole_text_encoder(), folder / "text_encoder")
    save_half(copy.deepcopy(model.unet), folder / "unet")
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    for path, content in (("model_index.json", MODEL_INDEX), ("scheduler/scheduler_config.json", SCHEDULER)):
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")
