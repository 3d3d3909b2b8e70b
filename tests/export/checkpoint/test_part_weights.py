"""Every tensor of a checkpoint is used, known to be harmless, or refused by name; scaled weights are multiplied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_forms import UNET_FILE, edit_unet, modules
from support.checkpoints import tiny_checkpoint
from support.original_layout import single_file, vae_tensors

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import Source
from latentrt.runtime import CheckpointError

PREFIX = "model.diffusion_model."


@pytest.fixture
def whole(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A single file in the original layout."""
    return single_file(folders["sd1"], tmp_path / "whole.safetensors", "sd1")


def opened(file: Path, folders: dict[str, Path], **options: Any) -> Checkpoint:
    return Checkpoint.open(Source(str(file), config=str(folders["sd1"]), **options))


def scaled(file: Path, ending: str, dtype: torch.dtype, rows: bool) -> dict[str, torch.Tensor]:
    """The file's tensors with the UNet's matrices in 8 bits."""
    result = {}
    for name, tensor in load_file(file).items():
        if not name.startswith(PREFIX) or not name.endswith(".weight") or tensor.ndim != 2:
            result[name] = tensor
            continue
        largest = 127 if dtype == torch.int8 else float(torch.finfo(dtype).max)
        scale = tensor.abs().amax(1) / largest if rows else (tensor.abs().max() / largest).reshape(())
        small = tensor / (scale[:, None] if rows else scale)
        result[name] = (small.round() if dtype == torch.int8 else small).to(dtype)
        result[name.removesuffix(".weight") + ending] = scale
        result[name.removesuffix(".weight") + ".input_scale"] = torch.tensor(3.0)
    return result


@pytest.mark.parametrize(
    ("ending", "dtype", "rows", "limit"),
    [
        (".scale_weight", torch.float8_e4m3fn, False, 0.05),
        (".weight_scale", torch.float8_e5m2, True, 0.1),
        (".weight_scale", torch.int8, True, 0.02),
    ],
)
def test_scaled_weights_are_multiplied(
    whole: Path, folders: dict[str, Path], tmp_path: Path, ending: str, dtype: torch.dtype, rows: bool, limit: float
) -> None:
    tensors = scaled(whole, ending, dtype, rows) | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    recipe = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    tensors[f"{PREFIX}time_embed.0.comfy_quant"] = recipe
    save_file(tensors, tmp_path / "scaled.safetensors")
    got = opened(tmp_path / "scaled.safetensors", folders).load("unet", torch.float32).state_dict()
    expected = modules(folders["sd1"])["unet"]
    errors = {n: float((got[n] - t).norm() / t.norm()) for n, t in expected.items() if t.norm() > 0}
    assert 1e-4 < max(errors.values()) < limit


def changed(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{PREFIX}time_embed.0.absmax": torch.ones(4)}, r"1 tensors that nothing would use.*time_embed\.0\.absmax"),
        ({f"{PREFIX}nothing.scale_weight": torch.ones(())}, r"nothing\.scale_weight"),
        ({"edm_vpred.sigma_max": torch.ones(())}, r"whole\.safetensors: the file has edm_vpred\.sigma_max"),
        ({"first_stage_model.decoder.conv_in.lora": torch.ones(2)}, r"decoder\.conv_in\.lora"),
        ({f"{PREFIX}time_embed.0.weight_scale": torch.ones(3, 2)}, "supported are one scale for a tensor and one for"),
        (
            {f"{PREFIX}time_embed.0.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            "the quantization 'nvfp4'; supported are float8",
        ),
    ],
)
def test_tensors_that_nothing_uses_are_refused(
    whole: Path, folders: dict[str, Path], extra: dict[str, torch.Tensor], message: str
) -> None:
    changed(whole, lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=message):
        opened(whole, folders).load("unet", torch.float32)


def test_harmless_tensors_are_accepted(
    whole: Path, folders: dict[str, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Buffers, the noise schedule, losses, and the moving averages of a training, without a word from a library."""
    names = ["model_ema.decay", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_log_variance_clipped"]
    names += ["betas", "log_one_minus_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "first_stage_model.loss.logvar"]
    names += ["cond_stage_model.transformer.text_model.embeddings.position_ids", "logvar", "denoiser.sigmas"]
    names += [f"model_ema.diffusion_modelblock{i}" for i in range(150)]
    changed(whole, lambda tensors: tensors.update({name: torch.zeros(1) for name in names}))
    got = opened(whole, folders).load("unet", torch.float32).state_dict()
    assert got["conv_in.weight"].equal(modules(folders["sd1"])["unet"]["conv_in.weight"])
    assert "extract_ema" not in "".join(capfd.readouterr()) + caplog.text


def test_folders_have_no_unused_tensors_either(folder: Path) -> None:
    edit_unet(folder, lambda weights: weights.update({"conv_in.scale_weight": torch.ones(()) * 2}))
    expected = load_file(folder / "unet" / UNET_FILE)["conv_in.weight"] * 2
    assert Checkpoint.open(folder).load("unet", torch.float32).state_dict()["conv_in.weight"].equal(expected)
    edit_unet(folder, lambda weights: weights.update({"adapter.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"unet has 1 tensors that nothing would use, such as adapter\.weight"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("form", ["folder", "original", "whole"])
def test_another_vae_passes_the_same_gate(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    other = tiny_checkpoint(tmp_path / "other", "sd1", seed=91)
    file = other / "vae" / UNET_FILE
    path = tmp_path / "vae.safetensors"
    if form == "folder":
        path = other / "vae"
        changed(file, lambda tensors: tensors.update({"quant_table": torch.ones(3)}))
    elif form == "original":
        save_file({**vae_tensors(load_file(file)), "quant_table": torch.ones(3)}, path)
    else:  # a whole checkpoint, of which only the VAE is taken
        path = changed(single_file(other, path, "sd1"), lambda t: t.update({"anything": torch.ones(3)}))
        assert opened(single_file(folders["sd1"], tmp_path / "x.safetensors", "sd1"), folders, vae=str(path))
        changed(path, lambda tensors: tensors.update({"first_stage_model.quant_table": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="quant_table"):
        Checkpoint.open(Source(str(folders["sd1"]), vae=str(path)))


@pytest.mark.parametrize("class_name", ["VQModel", "AsymmetricAutoencoderKL"])
def test_other_classes_of_vaes_are_named(folders: dict[str, Path], tmp_path: Path, class_name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": class_name}))
    save_file({"encoder.layers.0.weight": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        CheckpointError, match=f"the vae is of class '{class_name}'; supported is AutoencoderKL or AutoencoderTiny"
    ):
        Checkpoint.open(Source(str(folders["sd1"]), vae=str(tmp_path)))


def test_marks_of_a_file_count_beside_configs(whole: Path, folders: dict[str, Path]) -> None:
    changed(whole, lambda tensors: tensors.update({"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}))
    config = json.loads(opened(whole, folders).scheduler)
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)
    config = json.loads(opened(whole, folders, prediction_type="epsilon").scheduler)
    assert (config["prediction_type"], "rescale_betas_zero_snr" in config) == ("epsilon", False)


# --- variants ---------------------------------------------------------------------------------------------------------


def spread(folder: Path, **variants: tuple[str, ...]) -> None:
    """Give each component copies with these variants, "" for none; each holds other values."""
    for part, wanted in variants.items():
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        tensors = load_file(folder / part / f"{stem}.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
        for variant in wanted:
            infix = variant and f".{variant}"
            content = {n: t + len(variant) for n, t in tensors.items()}
            save_file(content, folder / part / f"{stem}{infix}.safetensors")


@pytest.mark.parametrize(
    ("variants", "chosen"),
    [
        ({"unet": ("", "fp16"), "vae": ("fp16",), "text_encoder": ("fp16", "")}, "fp16"),
        ({"unet": ("", "fp16"), "vae": ("fp16", ""), "text_encoder": ("",)}, ""),
        ({"unet": ("bf16",), "vae": ("bf16",), "text_encoder": ("bf16",)}, "bf16"),
        ({"unet": ("", "fp16"), "vae": ("",), "text_encoder": ("fp16",)}, None),
    ],
)
def test_variants_are_consistent(
    folder: Path, folders: dict[str, Path], variants: dict[str, tuple[str, ...]], chosen: str | None
) -> None:
    spread(folder, **variants)
    got, plain = modules(folder), modules(folders["sd1"])
    for part, name in (("unet", "conv_in.bias"), ("vae", "quant_conv.bias")):
        # With no common variant, each takes fp16 files if it has some, as `from_pretrained(variant="fp16")`.
        variant = chosen if chosen is not None else ("fp16" if "fp16" in variants[part] else "")
        assert torch.equal(got[part][name], plain[part][name] + len(variant)), part
