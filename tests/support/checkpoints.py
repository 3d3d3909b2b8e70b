"""Small random checkpoints of every family, as folders in the diffusers format."""

import json
from pathlib import Path
from typing import Any

import torch

VOCABULARY = Path(__file__).parent.parent / "data" / "shapes" / "tokenizer"

_EPSILON = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "clip_sample": False}
_VELOCITY = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False}
_EULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"}
_TURBO = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
_LCM = {
    "_class_name": "LCMScheduler",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "original_inference_steps": 50,
}
# As in Playground 2.5.
_EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sample_max_value": 1.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}
_EDM_VAE = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    "scaling_factor": 0.5,
}
_CLIP_L = {"hidden_act": "quick_gelu", "pad_token_id": 49407}
# As in the real config: with this eos, transformers pools the token with the largest id.
_CLIP_G = {"hidden_act": "gelu", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "projection_dim": 24}
_SD1_UNET = {"attention_head_dim": 2, "use_linear_projection": False}
_SDXL_UNET = {
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
    "transformer_layers_per_block": [1, 2],
    "cross_attention_dim": 72,
}

_REFINER_UNET = _SDXL_UNET | {"cross_attention_dim": 40, "projection_class_embeddings_input_dim": 24 + 5 * 8}

# The differences between families. Widths are small; everything else is as in the real models.
FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": {"text": _CLIP_L, "unet": _SD1_UNET, "scheduler": _EPSILON},
    "sd2": {
        "text": {"hidden_act": "gelu", "pad_token_id": 0},
        "unet": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
        "scheduler": _VELOCITY,
    },
    "sd1-inpaint": {
        "class": "StableDiffusionInpaintPipeline",
        "text": _CLIP_L,
        "unet": _SD1_UNET | {"in_channels": 9},
        "scheduler": _EPSILON,
    },
    "lcm": {
        "class": "LatentConsistencyModelPipeline",
        "text": _CLIP_L,
        "unet": _SD1_UNET | {"time_cond_proj_dim": 32},
        "scheduler": _LCM,
    },
    "sdxl": {
        "class": "StableDiffusionXLPipeline",
        "text": _CLIP_L,
        "text_2": _CLIP_G,
        "unet": _SDXL_UNET,
        "scheduler": _EULER,
    },
    "sdxl-turbo": {
        "class": "StableDiffusionXLPipeline",
        "text": _CLIP_L,
        "text_2": _CLIP_G,
        "unet": _SDXL_UNET,
        "scheduler": _TURBO,
    },
    "sdxl-edm": {
        "class": "StableDiffusionXLPipeline",
        "text": _CLIP_L,
        "text_2": _CLIP_G,
        "unet": _SDXL_UNET,
        "vae": _EDM_VAE,
        "scheduler": _EDM,
        "betas": {},
    },
    # With an AutoencoderTiny, as TAESD.
    "sd1-taesd": {"text": _CLIP_L, "unet": _SD1_UNET, "scheduler": _EPSILON, "vae_class": "AutoencoderTiny"},
    "sd1-inpaint-taesd": {
        "class": "StableDiffusionInpaintPipeline",
        "text": _CLIP_L,
        "unet": _SD1_UNET | {"in_channels": 9},
        "scheduler": _EPSILON,
        "vae_class": "AutoencoderTiny",
        "vae": {"scaling_factor": 0.7},  # other than the real one's 1, so that tests would notice
    },
    "sdxl-taesd": {
        "class": "StableDiffusionXLPipeline",
        "text": _CLIP_L,
        "text_2": _CLIP_G,
        "unet": _SDXL_UNET,
        "scheduler": _EULER,
        "vae_class": "AutoencoderTiny",
    },
    "sdxl-refiner": {
        "class": "StableDiffusionXLImg2ImgPipeline",
        "text_2": _CLIP_G,
        "unet": _REFINER_UNET,
        "scheduler": _EULER,
        "index": {
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
        },
    },
    "sdxl-inpaint": {
        "class": "StableDiffusionXLInpaintPipeline",
        "text": _CLIP_L,
        "text_2": _CLIP_G,
        "unet": _SDXL_UNET | {"in_channels": 9},
        "scheduler": _EULER,
    },
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_OFFSETS = {"steps_offset": 1, "set_alpha_to_one": False}


def tiny_checkpoint(
    folder: Path, family: str = "sd1", seed: int = 0, *, tinier: bool = False, stages: int | None = None
) -> Path:
    """Write a random fp32 checkpoint with 16x16 latents and VAE factor 4 to `folder`; returns `folder`.

    Args:
        family: a key of `FAMILIES`.
        tinier: faster to export: cross-attention only in the middle block, two text layers, VAE factor 2.
        stages: of the VAE, whose factor is 2 ** (stages - 1); None is 2 or 3.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    facts = FAMILIES[family]
    torch.manual_seed(seed)
    layers = 2 if tinier and "text_2" not in facts else 3  # SDXL does not use the last layer
    ids = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    small = {"intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    text = None
    if "text" in facts:
        text = CLIPTextModel(CLIPTextConfig(hidden_size=32, **{**ids, **small, **facts["text"]}))
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D" if tinier else "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D" if tinier else "CrossAttnUpBlock2D"),
        norm_num_groups=16,
        **{"cross_attention_dim": 32, **facts["unet"]},
    )
    channels = (16, *(32,) * ((stages or (2 if tinier else 3)) - 1))
    if facts.get("vae_class") == "AutoencoderTiny":
        vae = tiny_vae(len(channels), seed, **facts.get("vae", {}))
    else:
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=32 if tinier else 64,
            **{"scaling_factor": 0.13025 if "text_2" in facts else 0.18215, **facts.get("vae", {})},
        )
    modules = [unet, vae] if text is None else [text, unet, vae]
    index: dict[str, Any] = {}
    if "text_2" in facts:
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=40, **{**ids, **small, **facts["text_2"]}))
        modules.append(text_2)
        _write_tokenizer(folder / "tokenizer_2", pad="!")
        index = {
            "force_zeros_for_empty_prompt": True,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    for module in modules:
        if module is not vae or "vae_class" not in facts:
            _spread(module, seed)
    if "text_2" in facts:
        text_2.save_pretrained(folder / "text_encoder_2")
    if text is not None:
        text.save_pretrained(folder / "text_encoder")
        pad = "<|endoftext|>" if facts["text"]["pad_token_id"] == 49407 else "!"
        _write_tokenizer(folder / "tokenizer", pad=pad)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler = {**facts["scheduler"], **facts.get("betas", {**_BETAS, **_OFFSETS})}
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    if "text_2" not in facts:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    index |= {
        "_class_name": facts.get("class", "StableDiffusionPipeline"),
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", facts.get("vae_class", "AutoencoderKL")],
        **facts.get("index", {}),
    }
    _write(folder / "model_index.json", index)
    return folder


def tiny_vae(stages: int, seed: int, *, width: int = 16, **config: Any) -> Any:
    """A random `AutoencoderTiny` of the factor 2 ** (stages - 1), whose latents and pictures have some contrast."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    widths, blocks = (width,) * stages, (1,) + (2,) * (stages - 1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        **config,
    )
    _spread(vae, seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 4:
                parameter *= 1.6
        vae.encoder.layers[-1].weight *= 8
        vae.decoder.layers[-1].bias += 0.5  # pictures are from 0 to 1 there
    return vae


def _spread(module: torch.nn.Module, seed: int) -> None:
    """Randomize norms and biases: their initial values are all 0 or 1, so that tests would not notice swaps."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def _write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((VOCABULARY / name).read_bytes())
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**tokens, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    _write(folder / "tokenizer_config.json", config)


def _write(file: Path, data: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
