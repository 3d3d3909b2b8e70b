"""Configs of each family's public checkpoints, for single files, which contain only weights. Data only.

A row has the pipeline class, the config of each component as in the public `config.json` or `scheduler_config.json`,
and the padding token of each tokenizer; the tokenizers differ in nothing else.
"""

from typing import Any

Config = dict[str, Any]

_TEXT: Config = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
_CLIP_L: Config = {
    **_TEXT,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
_OPENCLIP_H: Config = {
    **_TEXT,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,  # of 24: Stable Diffusion 2 uses the penultimate layer
    "projection_dim": 512,
}
_OPENCLIP_BIG_G: Config = {
    **_TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_SD1_UNET: Config = {**_UNET, "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}
_SD2_UNET: Config = {
    **_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
_SDXL_UNET: Config = {
    **_UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
_REFINER_UNET: Config = {
    **_UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "sample_size": 128,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_SCHEDULER: Config = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_PNDM: Config = {"_class_name": "PNDMScheduler", **_SCHEDULER}
_SDXL_VAE: Config = {**_VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
_SDXL_EULER: Config = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **_SCHEDULER}

PUBLIC_CONFIGS: dict[str, dict[str, Config]] = {
    "sd1": {
        "index": {"_class_name": "StableDiffusionPipeline"},
        "text_encoder": _CLIP_L,
        "unet": _SD1_UNET,
        "vae": {**_VAE, "sample_size": 512},
        "scheduler": _PNDM,
        "tokenizer": {"pad_token": "<|endoftext|>"},
    },
    "sd2-base": {
        "index": {"_class_name": "StableDiffusionPipeline"},
        "text_encoder": _OPENCLIP_H,
        "unet": {**_SD2_UNET, "sample_size": 64},
        "vae": {**_VAE, "sample_size": 512},
        "scheduler": _PNDM,
        "tokenizer": {"pad_token": "!"},
    },
    "sd2-v": {
        "index": {"_class_name": "StableDiffusionPipeline"},
        "text_encoder": _OPENCLIP_H,
        "unet": _SD2_UNET,
        "vae": {**_VAE, "sample_size": 768},
        "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **_SCHEDULER},
        "tokenizer": {"pad_token": "!"},
    },
    "sdxl": {
        "index": {"_class_name": "StableDiffusionXLPipeline"},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_BIG_G,
        "unet": _SDXL_UNET,
        "vae": _SDXL_VAE,
        "scheduler": _SDXL_EULER,
        "tokenizer": {"pad_token": "<|endoftext|>"},
        "tokenizer_2": {"pad_token": "!"},
    },
    "sdxl-refiner": {
        "index": {
            "_class_name": "StableDiffusionXLImg2ImgPipeline",
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        },
        "text_encoder_2": _OPENCLIP_BIG_G,
        "unet": _REFINER_UNET,
        "vae": _SDXL_VAE,
        "scheduler": _SDXL_EULER,
        "tokenizer_2": {"pad_token": "!"},
    },
}
