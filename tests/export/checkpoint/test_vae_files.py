"""VAEs that are given beside a checkpoint: TAESD in diffusers' layout and in its own, and VAEs for previews."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from support.checkpoint_forms import UNET_FILE, modules
from support.checkpoints import tiny_checkpoint, tiny_vae

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import Source
from latentrt.export.graphs.vae import scale_factor
from latentrt.runtime import CheckpointError

OWN_FILES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")


@pytest.fixture(scope="module")
def taesd() -> AutoencoderTiny:
    """Of the real sizes, with random weights."""
    torch.manual_seed(8)
    return AutoencoderTiny()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a VAE of the factor 8, as TAESD has."""
    return tiny_checkpoint(tmp_path_factory.mktemp("taesd") / "sd1", "sd1", seed=4, stages=4)


def own_files(vae: AutoencoderTiny, folder: Path, names: tuple[str, str] = OWN_FILES) -> Path:
    """The VAE as TAESD's authors store it: modules by number, and a clamp as the decoder's first."""
    halves: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for name, tensor in vae.state_dict().items():
        half, _, number, rest = name.split(".", 3)
        first = 1 if half == "decoder" else 0
        halves[first][f"{int(number) + first}.{rest}"] = tensor.contiguous()
    for name, tensors in zip(names, halves, strict=True):
        save_file(tensors, folder / name)
    return folder


def assert_equal(got: torch.nn.Module, expected: torch.nn.Module) -> None:
    states = got.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.parametrize("form", ["folder", "pipeline", "file", "encoder", "decoder", "pickle"])
def test_taesd_in_every_form(checkpoint: Path, taesd: AutoencoderTiny, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "vae"
    taesd.save_pretrained(folder)
    path = {"pipeline": tmp_path, "file": folder / UNET_FILE}.get(form, folder)
    if form in ("encoder", "decoder"):
        path = own_files(taesd, tmp_path) / f"taesd_{form}.safetensors"
    if form == "pickle":
        path = tmp_path / "vae.pt"
        torch.save(taesd.state_dict(), path)
    opened = Checkpoint.open(Source(str(checkpoint), vae=str(path), allow_pickle=form == "pickle"))
    config = opened.configs["vae"]
    assert (config["_class_name"], config["scaling_factor"], scale_factor(config)) == ("AutoencoderTiny", 1.0, 8)
    assert_equal(opened.load("vae", torch.float32), taesd)
    assert [(a.kind, a.name) for a in opened.record().additions] == [("vae", path.name)]


@pytest.mark.parametrize("form", ["folder", "file", "decoder"])
def test_preview_vaes_are_decoders(checkpoint: Path, taesd: AutoencoderTiny, tmp_path: Path, form: str) -> None:
    path = tmp_path / "vae"
    taesd.save_pretrained(path)
    if form == "file":
        path /= UNET_FILE
    if form == "decoder":  # alone: its encoder is not needed
        path = own_files(taesd, tmp_path) / OWN_FILES[1]
        (tmp_path / OWN_FILES[0]).unlink()
    plain, opened = Checkpoint.open(checkpoint), Checkpoint.open(Source(str(checkpoint), preview_vae=str(path)))
    module: Any = opened.load("preview_vae", torch.float32)
    assert_equal(module.decoder, taesd.decoder)
    assert not list(module.encoder.parameters())
    assert_equal(opened.load("vae", torch.float32), plain.load("vae", torch.float32))
    record = opened.record()
    assert [(a.kind, a.name) for a in record.additions] == [("preview_vae", path.name)]
    assert record.sha256 == plain.record().sha256  # pictures are the same


def test_a_checkpoint_with_a_taesd_of_its_own(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "sd1-inpaint-taesd", seed=6)
    expected = AutoencoderTiny.from_pretrained(folder / "vae")
    opened = Checkpoint.open(folder)
    assert opened.configs["vae"]["scaling_factor"] == 0.7
    assert_equal(opened.load("vae", torch.float32), expected)


@pytest.mark.parametrize("half", [0, 1])
def test_half_a_taesd_is_refused(checkpoint: Path, taesd: AutoencoderTiny, tmp_path: Path, half: int) -> None:
    """Also where the other file is not what its name says."""
    kept, other = OWN_FILES[half], OWN_FILES[1 - half]
    source = Source(str(checkpoint), vae=str(own_files(taesd, tmp_path) / kept))
    missing = r"is the (encoder|decoder) of a TAESD alone\. Put its (encoder|decoder) beside it"
    (tmp_path / other).unlink()
    with pytest.raises(CheckpointError, match=missing):
        Checkpoint.open(source)
    (tmp_path / other).write_bytes((tmp_path / kept).read_bytes())
    with pytest.raises(CheckpointError, match=missing):
        Checkpoint.open(source)


def _unequal(config: dict[str, Any]) -> None:
    config.update(encoder_block_out_channels=[16, 16], num_encoder_blocks=[1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unequal, "an encoder and a decoder of different factors"),
        (lambda config: config.update(upsampling_scaling_factor=4), "an encoder and a decoder of different factors"),
        (lambda config: config.update(num_decoder_blocks=[10**6]), "num_decoder_blocks"),
        (lambda config: config.update(decoder_block_out_channels=16), "expected a list"),
        (lambda config: config.update(shrink=2), "shrink"),
        (lambda config: config.update(latent_channels=16), "16 latent channels and the UNet 4"),
        (lambda config: config.update(act_fn="none"), "the config of the vae is invalid"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "sd1-taesd", seed=6)
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_preview_vaes_that_do_not_fit(
    folders: dict[str, Path], checkpoint: Path, taesd: AutoencoderTiny, tmp_path: Path
) -> None:
    taesd.save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"has 4 latent channels, .* the factor 8; expected .* and 4,"):
        Checkpoint.open(Source(str(folders["sd1"]), preview_vae=str(tmp_path / "vae")))
    for path in (checkpoint / "vae", checkpoint / "vae" / UNET_FILE):
        with pytest.raises(CheckpointError, match=r"is of class 'AutoencoderKL'; supported is AutoencoderTiny"):
            Checkpoint.open(Source(str(checkpoint), preview_vae=str(path)))
    edm = tiny_checkpoint(tmp_path / "edm", "sdxl-edm", seed=6)
    tiny_vae(3, seed=1).save_pretrained(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="latents_mean, for which there is no preview VAE: leave it out"):
        Checkpoint.open(Source(str(edm), preview_vae=str(tmp_path / "tiny")))


def test_unused_tensors_are_refused(checkpoint: Path, taesd: AutoencoderTiny, tmp_path: Path) -> None:
    taesd.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / UNET_FILE
    save_file(load_file(file) | {"quant_table": torch.ones(3)}, file)
    for given in ({"vae": str(file)}, {"preview_vae": str(file)}):
        with pytest.raises(CheckpointError, match=r"1 tensors that nothing would use, such as quant_table"):
            Checkpoint.open(Source(str(checkpoint), **given))


def test_a_file_of_another_vae_needs_a_config(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "own", "sd1-taesd", seed=6)
    file = folders["sd1"] / "vae" / UNET_FILE
    with pytest.raises(CheckpointError, match=r"no AutoencoderTiny, which the config names: give a folder with"):
        Checkpoint.open(Source(str(folder), vae=str(file)))
    assert_equal(
        Checkpoint.open(Source(str(folder), vae=str(file.parent))).load("vae", torch.float32),
        Checkpoint.open(folders["sd1"]).load("vae", torch.float32),
    )
    assert modules(folder)["vae"].keys() != modules(folders["sd1"])["vae"].keys()
