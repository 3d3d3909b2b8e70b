"""What else a LoRA's file may be, hold or be called: names of every trainer, types, settings, and hostile ones."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import LoraFile, Source
from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.weights import changed_weights, sha256_of_lora
from latentrt.runtime.weights.lora import read_lora, read_loras, with_changes

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = f"lora_unet_{QUERY}".replace(".", "_")
WEIGHT = f"unet.{QUERY}.weight"
PARAMETERS = [
    WEIGHT,
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
    "unet.down_blocks.0.resnets.0.conv1.weight",
    "unet.down_blocks.1.attentions.0.norm.weight",
    "unet.conv_in.weight",
    "text_encoder.encoder.layers.0.self_attn.q_proj.weight",
    "text_encoder.encoder.layers.0.self_attn.out_proj.weight",
    "text_encoder.encoder.layers.0.mlp.fc1.weight",
    "text_encoder.embeddings.position_embedding.weight",
    "text_encoder_2.encoder.layers.0.mlp.fc1.weight",
    "text_encoder_2.text_projection.weight",
]


def one(down: Any = None, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    """A LoRA of one weight of 3 x 5, by kohya's names."""
    tensors = {
        "lora_down.weight": torch.full((2, 5), 0.5) if down is None else down,
        "lora_up.weight": torch.ones(3, 2),
    }
    return {f"{KEY}.{name}": tensor for name, tensor in {**tensors, **others}.items()}


def change(path: Path) -> np.ndarray:
    changes = read_loras([(path, 1.0)], PARAMETERS)
    return with_changes(WEIGHT, np.zeros((3, 5), np.float32), changes[WEIGHT])


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("lora_unet_conv_in.lora_down.weight", "unet.conv_in.weight"),
        ("lora_unet_input_blocks_0_0.lora_down.weight", "unet.conv_in.weight"),
        ("diffusion_model.input_blocks.1.0.in_layers.2.lora_A.weight", "unet.down_blocks.0.resnets.0.conv1.weight"),
        ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_A.weight", WEIGHT),
        ("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight", WEIGHT),
        (f"lora_unet.{QUERY}.lora_down.weight", WEIGHT),
        (f"lycoris_{QUERY.replace('.', '_')}.lora_down.weight", WEIGHT),
        (f"lycoris_unet_{QUERY.replace('.', '_')}.lora_down.weight", WEIGHT),
        (f"base_model.model.{QUERY}.lora_A.weight", WEIGHT),
        (f"base_model.model.unet.{QUERY}.lora_A.default.weight", WEIGHT),
        (f"unet.{QUERY.replace('to_q', 'processor.to_q')}_lora.down.weight", WEIGHT),
        (f"unet.{QUERY.replace('to_q', 'processor.to_out')}_lora.down.weight", PARAMETERS[1]),
        ("diffusion_model.input_blocks.3.1.norm.w_norm", "unet.down_blocks.1.attentions.0.norm.weight"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", PARAMETERS[7]),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", PARAMETERS[7]),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", PARAMETERS[9]),
        ("lora_te1.text_model.encoder.layers.0.mlp.fc1.lora_down.weight", PARAMETERS[7]),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight", PARAMETERS[7]),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", PARAMETERS[5]),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight", PARAMETERS[6]),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", PARAMETERS[5]),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", PARAMETERS[7]),
        ("clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", PARAMETERS[9]),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", PARAMETERS[9]),
        ("lora_te_text_model_embeddings_position_embedding.diff", PARAMETERS[8]),
        ("lora_te2_text_projection.lora_down.weight", PARAMETERS[10]),
        ("lora_te2_text_model_text_projection.lora_down.weight", PARAMETERS[10]),
        ("text_encoder_2.text_projection.lora_A.weight", PARAMETERS[10]),
    ],
)
def test_names_of_every_trainer_are_known(tmp_path: Path, name: str, parameter: str) -> None:
    up = name.replace("lora_down", "lora_up").replace("lora_A", "lora_B").replace(".down.", ".up.")
    save_file({key: torch.ones(1, 1) for key in (name, up)}, tmp_path / "a.safetensors")
    assert list(read_lora(tmp_path / "a.safetensors", PARAMETERS)) == [parameter]


def test_unknown_tensors_do_not_make_it_another_family(tmp_path: Path) -> None:
    save_file(one() | {"lora_unet_mid_block_attention.lora_up.weight": torch.ones(1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"1 of 3 tensors match nothing.*such as lora_unet_mid") as refused:
        read_lora(tmp_path / "a.safetensors", PARAMETERS)
    assert "family" not in str(refused.value)


def test_two_names_of_one_tensor_agree(tmp_path: Path) -> None:
    twice = one() | {f"unet.{QUERY}.lora_A.weight": torch.full((2, 5), 0.5)}
    save_file(twice, tmp_path / "a.safetensors")
    assert np.array_equal(change(tmp_path / "a.safetensors"), np.ones((3, 5)))
    save_file(twice | {f"unet.{QUERY}.lora_A.weight": torch.ones(2, 5)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"lora_A\.weight are two values|lora_down\.weight are two values"):
        change(tmp_path / "a.safetensors")


# --- types ----------------------------------------------------------------------------------------------------------

FLOATS = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_a_number_of_any_type(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    save_file(one(alpha=torch.full(shape, 6).to(dtype)), tmp_path / "a.safetensors")
    assert np.array_equal(change(tmp_path / "a.safetensors"), np.full((3, 5), 3.0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_halves_of_every_floating_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """With every value that 8 bits can have."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype if dtype.itemsize == 1 else torch.float8_e5m2)
    finite = values[values.float().isfinite()].to(dtype).unsqueeze(1)
    save_file({f"{KEY}.diff": finite}, tmp_path / "a.safetensors")
    got = read_lora(tmp_path / "a.safetensors", PARAMETERS)[WEIGHT].parts["diff"]
    assert len(got) > 240
    assert np.array_equal(got, finite.float().numpy())


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    save_file(one(alpha=torch.tensor(2j)), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"alpha in dtype C64, which is not supported: convert it") as refused:
        change(tmp_path / "a.safetensors")
    assert "valid" not in str(refused.value)
    save_file(one(down=torch.ones(2, 5, dtype=torch.int8)), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"down has shape \(2, 5\) and dtype int64"):
        change(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["alpha", "lora_down.weight"])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    shape = () if name == "alpha" else (2, 5)
    save_file(one(**{name: torch.full(shape, value, dtype=torch.float16)}), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"{name} contains NaN or infinity"):
        change(tmp_path / "a.safetensors")


def test_products_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file(one(down=torch.full((2, 5), 3e38)), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"changes {WEIGHT} by infinity"):
        change(tmp_path / "a.safetensors")


# --- paths ----------------------------------------------------------------------------------------------------------


def loop(path: Path) -> None:
    path.symlink_to(path)


BAD_PATHS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "is a folder without adapter_model.safetensors"),
    "a pipe": (os.mkfifo, "is a pipe; expected a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a file"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere, which does not exist"),
    "a loop of links": (loop, "cannot be read"),
    "nothing": (Path.exists, "does not exist"),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    make, message = BAD_PATHS[kind]
    make(tmp_path / "a.safetensors")
    begin = time.perf_counter()
    with pytest.raises(InputError, match=message):
        read_lora(tmp_path / "a.safetensors", PARAMETERS)
    assert time.perf_counter() - begin < 1


def test_odd_paths_are_refused() -> None:
    for path in (Path("a\0b"), Path("a" * 5000)):
        with pytest.raises(InputError, match="cannot be read"):
            read_lora(path, PARAMETERS)


# --- settings -------------------------------------------------------------------------------------------------------


def with_metadata(folder: Path, text: str) -> Path:
    tensors = {f"unet.{QUERY}.lora_A.weight": torch.full((2, 5), 0.5), f"unet.{QUERY}.lora_B.weight": torch.ones(3, 2)}
    save_file(tensors, folder / "a.safetensors", {"lora_adapter_metadata": text})
    return folder / "a.safetensors"


def with_config(folder: Path, text: str) -> Path:
    tensors = {f"base_model.model.{QUERY}.lora_{half}.weight": t for half, t in zip("AB", one().values(), strict=True)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'; expected a number"),
        ({"lora_alpha": float("inf")}, "lora_alpha is 'inf'"),
        ({"lora_alpha": True}, "lora_alpha is 'True'"),
        ({"lora_alpha": 10**400}, "lora_alpha is"),
        ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern of to_q is 'x'"),
        ({"alpha_pattern": 5}, "alpha_pattern is '5'"),
        ({"alpha_pattern": {"(a+)+$": 1}}, r"alpha_pattern has the regular expression '\(a\+\)\+\$'"),
        ({"r": 0}, "r is 0"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"use_qalora": True}, "sets use_qalora to True, which is not supported"),
        ({"layer_replication": [[0, 1]]}, "sets layer_replication to"),
        ({"use_dora": True}, f"use_dora. without lora_magnitude_vector of unet.{QUERY}"),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path: Path, settings: Any, message: str) -> None:
    prefixed = {f"unet.{k}": v for k, v in settings.items()} if isinstance(settings, dict) else settings
    config = {"peft_type": "LORA"} | settings if isinstance(settings, dict) else settings
    for write, content in ((with_metadata, prefixed), (with_config, config)):
        path = write(tmp_path, content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError, match=message):
            change(path)


def test_other_methods_of_peft_are_refused_by_name(tmp_path: Path) -> None:
    for method in ("OFT", "IA3", None):
        with pytest.raises(InputError, match=f"is of PEFT's method {method!r}"):
            change(with_config(tmp_path, json.dumps({"peft_type": method})))


@pytest.mark.parametrize(
    ("pattern", "alpha"), [("attn1.to_q", 6), ("ttn1.to_q", 4), (rf"^{QUERY}$", 6), ("^to_q", 4), (r"attn1\.to_q", 6)]
)
def test_patterns_name_modules(tmp_path: Path, pattern: str, alpha: int) -> None:
    settings = {"peft_type": "LORA", "lora_alpha": 4, "alpha_pattern": {pattern: 6}}
    assert np.array_equal(change(with_config(tmp_path, json.dumps(settings))), np.full((3, 5), alpha / 2))


def test_a_missing_config_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_config(tmp_path, "{}")
    (tmp_path / "adapter_config.json").unlink()
    assert np.array_equal(change(tmp_path), np.ones((3, 5)))
    assert "no adapter_config.json" in caplog.text


def test_the_config_belongs_to_what_is_hashed(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 4}
    folder = with_config(tmp_path, json.dumps(config))
    before = sha256_of_lora(folder)
    assert before == sha256_of_lora(folder / "adapter_model.safetensors")
    with_config(tmp_path, json.dumps(config | {"lora_alpha": 8}))
    assert sha256_of_lora(folder) != before
    checkpoints = [Source(str(SHAPES.checkpoint)), Source(str(SHAPES.checkpoint), loras=(LoraFile(str(folder)),))]
    with pytest.raises(InputError, match="does not fit"):
        Checkpoint.open(checkpoints[1]).load("unet", torch.float32)
    hashes = [Checkpoint.open(source).sha256() for source in checkpoints]
    with_config(tmp_path, json.dumps(config))
    assert len({*hashes, Checkpoint.open(checkpoints[1]).sha256()}) == 3


# --- what else is in files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["string_to_param.*", "clip_l", "clip_g"])
def test_a_textual_inversion_that_came_along_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    save_file(one() | {f"bundle_emb.ink cat.{name}": torch.ones(2, 8)}, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(change(tmp_path / "a.safetensors"), np.ones((3, 5)))
    assert "textual inversion 'ink cat'" in caplog.text
    assert "--embedding FILE:ink cat" in caplog.text


def test_layers_that_no_graph_uses_change_nothing(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """Stable Diffusion XL skips the last layer of its first text encoder, for which trainers write tensors too."""
    bundle = Bundle.open(exported("sdxl-fp32").bundle)
    names = ["lora_te1_text_model_encoder_layers_2_mlp_fc1", "lora_te1_text_model_encoder_layers_1_mlp_fc1"]
    tensors = {f"{name}.{half}": torch.ones(shape) for name in names for half, shape in FC1.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert [len(changed) for changed in changed_weights(bundle, {tmp_path / "a.safetensors": 1.0}).values()] == [1]
    save_file({name.replace("_2_", "_3_"): tensor for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="2 of 4 tensors match nothing"):
        changed_weights(bundle, {tmp_path / "b.safetensors": 1.0})


FC1 = {"lora_down.weight": (1, 32), "lora_up.weight": (64, 1)}


def test_biases_change_where_the_bundle_has_them_apart(tmp_path: Path) -> None:
    """Large biases and norms lie in the external data; the small ones of this model are merged at export alone."""
    large, small = "up_blocks.0.upsamplers.0.conv", "conv_out"
    for module, is_large in ((large, True), (small, False)):
        uses = Bundle.open(SHAPES.bundle).manifest.weights[f"unet.{module}.bias"]
        assert (uses[0].offset is not None) == is_large
    draw = torch.Generator().manual_seed(3)
    file = tmp_path / "a.safetensors"
    save_file({f"lora_unet_{large.replace('.', '_')}.diff_b": torch.randn(128, generator=draw)}, file)
    options = {"seed": 2, "num_inference_steps": 2, "output_type": "latent"}
    with Pipeline.load(device="cpu") as pipe:
        plain = pipe("a cat", **options).latents
        pipe.set_loras({file: 1.0})
        assert np.abs(pipe("a cat", **options).latents - plain).max() > 0.01
        width = pipe.bundle.manifest.weights[f"unet.{small}.bias"][0].shape
        save_file({f"lora_unet_{small.replace('.', '_')}.diff_b": torch.ones(width)}, file)
        with pytest.raises(InputError, match=rf"changes unet\.{small}\.bias.*latentrt export CHECKPOINT --lora"):
            pipe.set_loras({file: 1.0})
    module = Checkpoint.open(Source(str(SHAPES.checkpoint), loras=(LoraFile(str(file), 2.0),))).load(
        "unet", torch.float32
    )
    before = Checkpoint.open(SHAPES.checkpoint).load("unet", torch.float32)
    assert torch.equal(module.get_submodule(small).bias, before.get_submodule(small).bias + 2)


def test_factors_that_leave_the_stored_type_are_refused(tmp_path: Path) -> None:
    file = shapes_file(tmp_path / "a.safetensors", 1)
    with pytest.raises(InputError, match=r"a\.safetensors, .* is too large for float16: lower the weights"):
        changed_weights(Bundle.open(SHAPES.bundle), {file: 1e7})


def test_pictures_drawn_with_a_folder_of_peft_can_be_drawn_again(tmp_path: Path) -> None:
    from latentrt.runtime.cli.main import main

    folder = tmp_path / "peft"
    folder.mkdir()
    shutil.move(shapes_file(tmp_path / "a.safetensors", 4), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2}))
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    command = ["generate", "--device", "cpu", "--steps", "1", "--seed", "1"]
    assert main([*command, "a cat", "--lora", str(folder), "-o", str(first)]) == 0
    assert main(["generate", "--device", "cpu", "--like", str(first), "-o", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 3}))
    assert main(["generate", "--device", "cpu", "--like", str(first), "-o", str(again)]) == 1
