"""Maps tensor names in LoRA files to modules of the checkpoint. Knows names only.

A name is compared without its dots, so that kohya's underscores and everyone else's dots are one spelling.
"""

import re
from collections.abc import Iterable

from latentrt.runtime.errors import nearest_names

# Endings of tensor names in the formats of kohya, LyCORIS, ComfyUI and of all versions of diffusers and PEFT.
_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_embedding_A": "embedding_down",
    ".lora_embedding_B": "embedding_up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f".{part}.weight": f"glora_{part}" for part in ("a1", "a2", "b1", "b2")},
    **{f".bias_{part}": f"sparse_{part}" for part in ("indices", "values", "size")},
    ".base_layer.weight": "value",
    ".base_layer.bias": "value_b",
    ".on_input": "on_input",
    ".weight": "value",
    ".bias": "value_b",  # the shortest come last
}
_PREFIXES = {
    "unet": ("", "unet_", "diffusion_model_", "model_diffusion_model_"),
    "text_encoder": ("te_", "te1_", "text_encoder_", "clip_l_transformer_", "text_encoders_clip_l_transformer_"),
    "text_encoder_2": ("te2_", "text_encoder_2_", "clip_g_transformer_", "text_encoders_clip_g_transformer_"),
}
# What trainers put before a module's name or within it, and what says nothing.
_NOISE = re.compile(r"^(base_model_model_)?(lora_|lycoris_)?|(?<=_)processor_|(?<![a-z])text_model_")
# Modules of a UNet in the original code: outside of the blocks, and within residual blocks.
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_PROJECTION = re.compile(r"self_attn\.(q|k|v|out)_proj$")  # diffusers' first names of them: to_q


class LoraNames:
    """Finds the module of the checkpoint, such as "unet.conv_in", for a module name in a LoRA file."""

    def __init__(self, parameters: Iterable[str]) -> None:
        modules = {name.rpartition(".")[0] for name in parameters}
        first_block = re.compile(r"unet\.down_blocks\.0\.resnets\.\d+\.conv1")
        layers = sum(first_block.fullmatch(module) is not None for module in modules)
        encoders = {module.partition(".")[0] for module in modules} & {"text_encoder", "text_encoder_2"}
        self._known: dict[str, str] = {}
        for module in modules:
            part, _, rest = module.partition(".")
            prefixes = _PREFIXES.get(part, ())
            if part in encoders and len(encoders) == 1:
                prefixes = (*prefixes, "")
            spellings = [_bare(name) for name in _spellings(part, rest, layers)]
            self._known |= {prefix + name: module for prefix in prefixes for name in spellings}

    def module(self, name: str) -> str | None:
        """The module for a name in a file, or None."""
        return self._known.get(_bare(name))

    def nearest(self, name: str) -> list[str]:
        """Two similar names, as kohya's files would have them."""
        bare = _bare(name)
        start = next((p for ps in _PREFIXES.values() for p in ps if p and bare.startswith(p)), "unet_")
        return [f"lora_{near}" for near in nearest_names(bare, (k for k in self._known if k.startswith(start)), 2)]


def _bare(name: str) -> str:
    return _NOISE.sub("", name.replace(".", "_"))


def _spellings(part: str, module: str, layers: int) -> list[str]:
    """All names of a module in its component; `layers` is residual blocks per block of the UNet."""
    names = [module]
    if part == "unet":
        names += _original_names(module, layers)
        names += [name.removesuffix(".0") for name in names if name.endswith(".to_out.0")]  # diffusers' first names
    elif _PROJECTION.search(module):
        names.append(_PROJECTION.sub(r"self_attn.to_\1", module))
    return names


def _original_names(module: str, layers: int) -> list[str]:
    """Possible names of a module of the UNet in the original code."""
    if module in _TOP:
        return [_TOP[module]]
    match = _BLOCK.fullmatch(module)
    if match is None:
        return []
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    at = block * (layers + 1) + layer
    if kind == "downsamplers":
        return [f"input_blocks.{(block + 1) * (layers + 1)}.0.op"]
    if kind == "upsamplers":  # it comes after an attention if the block has one
        return [f"output_blocks.{at + layers}.{place}.conv" for place in (1, 2)]
    if kind == "resnets":
        rest = _RESIDUAL.get(rest, rest)
    if side == "mid":
        return [f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"]
    place = f"input_blocks.{1 + at}" if side == "down" else f"output_blocks.{at}"
    return [f"{place}.{0 if kind == 'resnets' else 1}.{rest}"]


def split_name(name: str) -> tuple[str, str]:
    """Module and part ("down", "alpha", …) of a tensor's name; the part is "" for other tensors."""
    name = re.sub(r"\.default(?=\.|$)", "", name)  # the name of PEFT's adapter
    for ending, part in _ENDINGS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), part
    return name, ""
