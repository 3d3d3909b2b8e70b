"""The gate that every component's config passes, wherever it comes from: class, keys, types, and how parts fit.

A config leaves it complete: keys that it lacks have the defaults of the component's class, as in diffusers.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from latentrt.runtime.errors import CheckpointError

from .families import Config, Family, extra_channels

TINY = "AutoencoderTiny"
# Component -> its classes; a config without a class is of the first.
_DIFFUSERS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", TINY),
    "preview_vae": (TINY,),
}
# Component -> its classes in model_index.json.
_CLASSES = {
    **_DIFFUSERS,
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Keys that transformers writes for every model and that change what a text encoder computes.
_REFUSED_IN_TEXT = ("pruned_heads", "is_decoder", "add_cross_attention", "quantization_config")
# Keys that older versions of transformers wrote into every config.
_OF_OLD_TRANSFORMERS = (
    *("architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "early_stopping", "finetuning_task"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    *("length_penalty", "max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_scores", "prefix", "remove_invalid_values", "repetition_penalty"),
    *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p"),
    *("torch_dtype", "torchscript", "transformers_version", "typical_p", "use_attention_mask", "use_bfloat16"),
    "use_cache",
)
_SIZES_OF_TEXT = (
    *("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("projection_dim", "vocab_size"),
)
_SIZES = ("in_channels", "out_channels", "latent_channels")
_LISTS = (
    *("down_block_types", "up_block_types", "block_out_channels"),
    *(f"{half}_block_out_channels" for half in ("encoder", "decoder")),
    *(f"num_{half}_blocks" for half in ("encoder", "decoder")),
)
_UNSET: tuple[Any, ...] = (None, False, {}, [], "")
_LARGEST = 10_000_000  # of any number in a config
_MOST_LAYERS = 200
_COUNTS_OF_LAYERS = (
    *("num_hidden_layers", "layers_per_block", "transformer_layers_per_block"),
    *("num_encoder_blocks", "num_decoder_blocks"),
)


def check_classes(path: object, index: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if model_index.json names a class that is not exported."""
    for part, names in _CLASSES.items():
        entry = index.get(part)
        if not isinstance(entry, list) or len(entry) != 2 or entry == [None, None]:
            continue
        if entry[1] not in names:
            raise CheckpointError(f"{path}: the {part} is of class {entry[1]!r}; supported is {' or '.join(names)}")


def completed(path: object, part: str, config: Config, *, sdxl: bool) -> dict[str, Any]:
    """A component's config with the defaults of its class; that of a VAE also has `_class_name`.

    Args:
        path: where the config comes from, for error messages.
        sdxl: whether the pipeline is one of SDXL, which ignores `use_attention_mask`.

    Raises `CheckpointError` for another class, and for keys that the class does not have or whose effect is not
    followed, unless they are unset.
    """
    where = f"{path}: the config of the {part}"
    if part.startswith("text_encoder"):
        complete = _completed_text(where, config, sdxl=sdxl)
    else:
        name = config.get("_class_name", _DIFFUSERS[part][0])
        if name not in _DIFFUSERS[part]:
            raise CheckpointError(
                f"{path}: the {part} is of class {name!r}; supported is {' or '.join(_DIFFUSERS[part])}"
            )
        written_by_diffusers = ("block_out_channels",) if name == TINY else ()
        complete = _completed(where, config, _defaults_of_diffusers(name), ignored=written_by_diffusers)
        if part != "unet":
            complete["_class_name"] = name
    _check_numbers(where, complete)
    return _of_tiny(where, complete) if complete.get("_class_name") == TINY else complete


def _of_tiny(where: str, config: dict[str, Any]) -> dict[str, Any]:
    """An `AutoencoderTiny`'s config with the keys that its class sets by itself, as an `AutoencoderKL` has them."""
    channels = config["decoder_block_out_channels"]
    if len(config["encoder_block_out_channels"]) != len(channels) or config["upsampling_scaling_factor"] != 2:
        raise CheckpointError(
            f"{where} has an encoder and a decoder of different factors: encoder_block_out_channels and "
            "decoder_block_out_channels must be of one length, and upsampling_scaling_factor 2"
        )
    return {**config, "block_out_channels": channels, "force_upcast": False}


def check_score(path: object, family: Family, index: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where model_index.json and the text encoders disagree on whether this is a refiner."""
    says = bool(index.get("requires_aesthetics_score"))
    if says != family.aesthetic_score:
        wanted = "true: it is SDXL's refiner" if family.aesthetic_score else "false: only SDXL's refiner takes a score"
        raise CheckpointError(
            f"{path} has requires_aesthetics_score = {says} in its model_index.json, but text encoders of "
            f"{family.name}; expected {wanted}"
        )


def check_fit(path: object, family: Family, configs: Mapping[str, Config]) -> None:
    """Raise `CheckpointError` for components that do not belong together, and for inputs that are not supported."""
    unet, vae = configs["unet"], configs["vae"]
    channels = unet["out_channels"]
    if extra_channels(unet) not in (0, 1 + channels):
        raise CheckpointError(
            f"{path} has a UNet with {unet['in_channels']} input channels; supported are 4 (latents) and 9 "
            "(latents, mask, latents of the masked image)"
        )
    if vae["latent_channels"] != channels:
        raise CheckpointError(
            f"{path}: the VAE has {vae['latent_channels']} latent channels and the UNet {channels}; is the VAE one for "
            f"{family.name}?"
        )
    if (vae["in_channels"], vae["out_channels"]) != (3, 3):
        raise CheckpointError(f"{path} has a VAE of {vae['in_channels']} and {vae['out_channels']} channels, not 3")
    _check_statistics(path, family, vae)
    _check_preview_vae(path, configs)
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim"):
        if unet[key] is not None:
            raise CheckpointError(f"{path} has a UNet with {key} = {unet[key]!r}, which is not supported")
    width = sum(configs[row.part]["hidden_size"] for row in family.text_encoders)
    if unet["cross_attention_dim"] != width:
        raise CheckpointError(
            f"{path}: the UNet's cross_attention_dim is {unet['cross_attention_dim']}, but the text encoders have "
            f"{width} features together"
        )
    _check_addition(path, family, configs)


def _check_statistics(path: object, family: Family, vae: Config) -> None:
    """Mean and deviation of the VAE's latents, which SDXL's pipelines use where there are both, and no others."""
    keys = ("latents_mean", "latents_std")
    given = [key for key in keys if vae.get(key) is not None]
    if given and not family.latent_statistics:
        raise CheckpointError(f"{path} has a VAE with {given[0]}, which is not supported for {family.name}")
    if len(given) == 1:
        raise CheckpointError(f"{path} has a VAE with {given[0]} alone; expected both or none of {' and '.join(keys)}")
    for key in given:
        values, low = vae[key], 0 if key == "latents_std" else -_LARGEST
        numbers = _numbers(values, depth=1) if isinstance(values, list) else []
        if len(numbers) != vae["latent_channels"] or len(values) != len(numbers) or min(numbers) <= low:
            above = " above 0" if key == "latents_std" else ""
            raise CheckpointError(
                f"{path} has a VAE with {key} = {_cut(values)}; expected {vae['latent_channels']} numbers{above}"
            )


def _check_preview_vae(path: object, configs: Mapping[str, Config]) -> None:
    """A decoder of previews takes the UNet's latents, and gives pictures of the same size."""
    vae, preview = configs["vae"], configs.get("preview_vae")
    if preview is None:
        return
    if vae.get("latents_mean") is not None:
        raise CheckpointError(f"{path} has a VAE with latents_mean, for which there is no preview VAE: leave it out")
    keys = ("latent_channels", "in_channels", "out_channels")
    ours, theirs = ((*(c[key] for key in keys), 2 ** (len(c["block_out_channels"]) - 1)) for c in (vae, preview))
    if ours != theirs:
        raise CheckpointError(
            f"the preview VAE has {theirs[0]} latent channels, {theirs[1]} and {theirs[2]} of pictures and the factor "
            f"{theirs[3]}; expected {ours[0]}, {ours[1]}, {ours[2]} and {ours[3]}, as the VAE of {path} has"
        )


def _check_addition(path: object, family: Family, configs: Mapping[str, Config]) -> None:
    """The inputs that are added to the timestep embedding, which SDXL's pipelines check in the same way."""
    unet, kind = configs["unet"], configs["unet"]["addition_embed_type"]
    pooled = next((configs[row.part]["projection_dim"] for row in family.text_encoders if row.pooled), None)
    if kind != (None if pooled is None else "text_time"):
        raise CheckpointError(
            f"{path} has a UNet with addition_embed_type = {kind!r}; supported are 'text_time' for SDXL, and none"
        )
    if pooled is None:
        return
    has = unet["projection_class_embeddings_input_dim"]
    expected = pooled + family.time_ids * (unet["addition_time_embed_dim"] or 0)
    if has != expected:
        raise CheckpointError(
            f"{path}: the UNet's projection_class_embeddings_input_dim is {has}, but the pooled text ({pooled}) and "
            f"the {family.time_ids} time_ids of {family.name} make {expected}"
        )


def _completed_text(where: str, config: Config, *, sdxl: bool) -> dict[str, Any]:
    from transformers import CLIPTextConfig, GenerationConfig, PretrainedConfig

    if isinstance(config.get("text_config"), dict):  # of a whole CLIP
        config = config["text_config"]
    if config.get("use_attention_mask") and not sdxl:
        raise CheckpointError(f"{where} has use_attention_mask, which is not supported")
    for key in _REFUSED_IN_TEXT:
        if config.get(key, None) not in _UNSET:
            raise CheckpointError(f"{where} has {key} = {_cut(config[key])}, which is not supported")
    of_any_model = {**PretrainedConfig().to_dict(), **GenerationConfig().to_dict()}
    own = {k: v for k, v in CLIPTextConfig().to_dict().items() if k not in of_any_model or k.endswith("token_id")}
    return _completed(where, config, own, ignored=(*of_any_model, *_OF_OLD_TRANSFORMERS))


def _completed(where: str, config: Config, defaults: Config, *, ignored: tuple[str, ...]) -> dict[str, Any]:
    for key, value in config.items():
        if key in defaults or key in ignored or key.startswith("_") or value in _UNSET:
            continue
        raise CheckpointError(
            f"{where} has {key} = {_cut(value)}, which is not supported: neither diffusers nor transformers knows it. "
            "If it changes nothing, remove it from config.json"
        )
    kept = {key: config.get(key, default) for key, default in defaults.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _defaults_of_diffusers(class_name: str) -> dict[str, Any]:
    import diffusers

    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def _check_numbers(where: str, config: Config) -> None:
    """Numbers far beyond any model would take hours or all memory before they failed."""
    for key, value in config.items():
        most = _MOST_LAYERS if key in _COUNTS_OF_LAYERS else _LARGEST
        for number in _numbers(value, depth=3):
            if not abs(number) <= most:
                raise CheckpointError(f"{where} has {key} = {_cut(value)}; expected at most {most:,}")
    sizes = _SIZES_OF_TEXT if "hidden_size" in config else _SIZES
    for key in sizes:
        if key in config and (type(config[key]) is not int or config[key] < 1):
            raise CheckpointError(f"{where} has {key} = {_cut(config[key])}; expected an integer >= 1")
    for key in _LISTS:
        value = config.get(key, [""])
        if not (isinstance(value, list) and 1 <= len(value) <= _MOST_LAYERS):
            raise CheckpointError(f"{where} has {key} = {_cut(value)}; expected a list with a value for each block")
    size = config.get("sample_size")
    if size is not None and not all(type(s) is int and s > 0 for s in (size if isinstance(size, list) else [size])):
        raise CheckpointError(f"{where} has sample_size = {_cut(size)}; expected one or two integers >= 1")


def _numbers(value: Any, depth: int) -> list[float]:
    if isinstance(value, list) and depth:
        return [number for item in value for number in _numbers(item, depth - 1)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def _cut(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond 10**20"
    return text if len(text) <= 60 else text[:57] + "..."
