"""What diffusers' pipelines mend in old configs when they are made, compared with those pipelines."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import UNet2DConditionModel
from support.checkpoints import tiny_checkpoint

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.pipeline_mends import sample_size_of, scheduler_of
from latentrt.runtime import CheckpointError
from latentrt.runtime.scheduler import Plan

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIPELINES = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]
PIPELINES += ["StableDiffusionXLPipeline", "LatentConsistencyModelPipeline"]
KEYS = ("steps_offset", "clip_sample", "skip_prk_steps")


def pipeline(name: str, **parts: Any) -> Any:
    """diffusers' pipeline with these parts and no others."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    names += ("text_encoder_2", "tokenizer_2") if "XL" in name else ("safety_checker", "feature_extractor")
    options = {} if "XL" in name else {"requires_safety_checker": False}
    return getattr(diffusers, name)(**(dict.fromkeys(names) | parts), **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0},
        {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1},
        {"_class_name": "DDIMScheduler", "steps_offset": 1, "_use_default_values": ["steps_offset", "clip_sample"]},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 2},
        {"_class_name": "EulerDiscreteScheduler", "clip_sample": True},
        {"_class_name": "LCMScheduler", "clip_sample": True},
    ],
)
def test_schedulers_are_those_of_the_pipeline(name: str, config: dict[str, Any]) -> None:
    theirs = getattr(diffusers, config["_class_name"]).from_config(BETAS | config)
    pipeline(name, scheduler=theirs)
    ours = getattr(diffusers, config["_class_name"]).from_config(scheduler_of({"_class_name": name}, BETAS | config))
    assert {k: ours.config.get(k) for k in KEYS} == {k: theirs.config.get(k) for k in KEYS}
    if theirs.config.get("clip_sample") is not True and theirs.config.get("skip_prk_steps") is not False:
        theirs.set_timesteps(7)
        plan = Plan.from_config(scheduler_of({"_class_name": name}, BETAS | config), 7)
        assert plan.timesteps.tolist() == theirs.timesteps.tolist()


def test_what_needs_no_mending_stays_as_it_is() -> None:
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, **BETAS}
    assert scheduler_of({"_class_name": "StableDiffusionPipeline"}, config) == config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(("version", "size"), [("0.2.2", 32), ("0.8.1", 48), ("0.9.0", 32), ("0.2.2", 96), (None, 32)])
def test_sample_sizes_are_those_of_the_pipeline(name: str, version: str | None, size: int) -> None:
    config: dict[str, Any] = {"sample_size": size, "block_out_channels": [8], "norm_num_groups": 4}
    config |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "cross_attention_dim": 8}
    if version is not None:
        config["_diffusers_version"] = version
    unet = UNet2DConditionModel.from_config(config)
    assert sample_size_of({"_class_name": name}, config) == pipeline(name, unet=unet).unet.config.sample_size


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_scheduler_is_of_the_class_in_the_index(folder: Path) -> None:
    """As in `from_pretrained`; the other file's keys stay, and class defaults are those of the class in use."""
    edit(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).scheduler
    ours = json.loads(Checkpoint.open(folder).scheduler)
    assert type(theirs).__name__ == ours["_class_name"] == "PNDMScheduler"
    assert (
        getattr(diffusers, ours["_class_name"]).from_config(ours).config.items()
        >= {
            key: theirs.config[key] for key in ("beta_start", "steps_offset", "prediction_type", "skip_prk_steps")
        }.items()
    )


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}, "the unet is of class 'MyUNet'"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "supported is CLIPTextModel"),
        ("model_index.json", {"requires_aesthetics_score": True}, "of sd1; expected false: only SDXL's"),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}, r"unsupported class \['pipeline', 'Mine'\]"),
        ("text_encoder/config.json", {"use_attention_mask": True}, "use_attention_mask, which is not supported"),
        ("text_encoder/config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads = {'0': .1.}, which is not supported"),
        ("text_encoder/config.json", {"rope_theta": 1e4}, r"rope_theta = 10000\.0, which is not supported: neither"),
        ("text_encoder/config.json", {"hidden_size": "32"}, "hidden_size = '32'; expected an integer >= 1"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000; expected at most"),
        ("unet/config.json", {"num_class_embeds": 10}, "UNet with num_class_embeds = 10, which is not supported"),
        ("unet/config.json", {"time_shift": 3}, "time_shift = 3, which is not supported: neither diffusers nor"),
        ("unet/config.json", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}, which is not"),
        ("unet/config.json", {"cross_attention_dim": 48}, "cross_attention_dim is 48, but the text encoders have 32"),
        ("unet/config.json", {"_class_name": "UNetMotionModel"}, "unet is of class 'UNetMotionModel'"),
        ("unet/config.json", {"sample_size": "big"}, "sample_size = 'big'; expected one or two integers >= 1"),
        ("vae/config.json", {"latent_channels": 16}, "the VAE has 16 latent channels and the UNet 4"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "VAE with latents_mean, which is not supported for sd1"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, r"model_max_length = 'long'"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_std": None}, "a VAE with latents_mean alone; expected both or none of latents_mean and latents_std"),
        ({"latents_mean": [1.0] * 3}, r"latents_mean = \[1.0, 1.0, 1.0\]; expected 4 numbers$"),
        ({"latents_mean": 1.0}, "latents_mean = 1.0; expected 4 numbers$"),
        ({"latents_std": [1, 1, 0, 1]}, r"latents_std = \[1, 1, 0, 1\]; expected 4 numbers above 0"),
        ({"latents_std": [1, 1, True, 1]}, "expected 4 numbers above 0"),
    ],
)
def test_mean_and_deviation_of_latents_are_numbers(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tiny_checkpoint(tmp_path / "edm", "sdxl-edm", tinier=True)
    edit(folder / "vae" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_harmless_keys_are_accepted(folder: Path) -> None:
    """Keys of old transformers, unset ones of other classes, and private ones."""
    edit(folder / "text_encoder" / "config.json", torch_dtype="float16", num_beams=1, bad_words_ids=None, _note="x")
    edit(folder / "unet" / "config.json", _name_or_path="here", time_shift=None)
    Checkpoint.open(folder)


def test_texts_are_as_long_as_the_tokenizer_says(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=40)
    checkpoint = Checkpoint.open(folder)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    (row,) = checkpoint.family.text_encoders
    assert checkpoint.max_length(row) == theirs.tokenizer.model_max_length == 40
