"""Malformed, harmful and unsupported checkpoints are refused before any work."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoint_forms import UNET_FILE, edit_unet, shard

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import LoraFile, Source
from latentrt.runtime import CheckpointError, InputError
from latentrt.runtime.cli.main import main


class Harm:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [lambda x, f: torch.save({"w": x}, f), lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_pickles_never_run_code(tmp_path: Path, save: Callable[[Any, Path], Any]) -> None:
    save(Harm(tmp_path / "harm"), tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="pickle of tensors only"):
        Checkpoint.open(Source(str(tmp_path / "bad.ckpt"), allow_pickle=True))
    (tmp_path / "bad.ckpt").rename(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"not a valid safetensors file.*looks like a pickle"):
        Checkpoint.open(tmp_path / "bad.safetensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.joint_blocks.0.x"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "is a UNet without a text encoder"),
        (["first_stage_model.encoder.conv_in.weight"], r"is a VAE; pass it with --vae"),
        (["lora_unet_mid_block.lora_up.weight"], r"is a LoRA; .*--lora"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is one component in the diffusers format"),
        (["x"], r"is of an unknown kind.*model\.diffusion_model\."),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"x.safetensors: the file {message}"):
        Checkpoint.open(tmp_path / "x.safetensors")


@pytest.mark.usefixtures("cache")
def test_what_is_not_cached_needs_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "someone/else", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "someone/else is not a local path, it is not in the Hub's cache, and the Hub cannot be reached" in error
    assert not (tmp_path / "out").exists()


def test_a_link_of_the_cache_that_leads_nowhere(cache: Path) -> None:
    (cache / "unet" / UNET_FILE).resolve().unlink()
    with pytest.raises(CheckpointError, match=r"is missing \(it is a link to a missing file\)"):
        Checkpoint.open("someone/tiny-diffusion")


def test_a_lora_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"lora_unet_nothing.lora_up.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="1 of 1 tensors match nothing"):
        Checkpoint.open(Source(str(folders["sd1"]), loras=(LoraFile(str(tmp_path / "x.safetensors")),)))


# --- malformed files --------------------------------------------------------------------------------------------------


def raw_safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALFORMED: dict[str, Callable[[Path], None]] = {
    "empty": lambda p: p.write_bytes(b""),
    "cut header": lambda p: raw_safetensors(p, b'{"a":', length=1000),
    "cut data": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4])}, bytes(12)),
    "overlap": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24)),
    "same place": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4]), "b": entry(0, 16, [4])}, bytes(16)),
    "gap": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4]), "b": entry(32, 48, [4])}, bytes(48)),
    "backwards": lambda p: raw_safetensors(p, {"a": entry(16, 0, [4])}, bytes(16)),
    "too long": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4])}, bytes(32)),
    "wrong size": lambda p: raw_safetensors(p, {"a": entry(0, 16, [5])}, bytes(16)),
    "overflow": lambda p: raw_safetensors(p, {"a": entry(0, 16, [2**62, 2**62])}, bytes(16)),
    "negative": lambda p: raw_safetensors(p, {"a": entry(0, 16, [-4])}, bytes(16)),
    "no such type": lambda p: raw_safetensors(p, {"a": entry(0, 16, [4], "F31")}, bytes(16)),
    "no object": lambda p: raw_safetensors(p, [1, 2]),
    "no UTF-8": lambda p: raw_safetensors(p, b'{"\xff\xfe": 1}'),
}


def huge_header(path: Path) -> None:
    """A header of 200 MB in a sparse file."""
    raw_safetensors(path, b"{", length=200_000_000)
    os.truncate(path, 200_000_100)


@pytest.mark.parametrize("kind", [*MALFORMED, "huge header"])
def test_malformed_safetensors_are_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    from latentrt.runtime.weights.tensor_file import read_safetensors

    spoil = MALFORMED.get(kind, huge_header)
    for file in (folder / "unet" / UNET_FILE, tmp_path / "single.safetensors"):
        spoil(file)
        with pytest.raises(InputError, match="safetensors file"):
            read_safetensors(file)
    with pytest.raises(CheckpointError, match=r"unet/.* is not a valid safetensors file"):
        Checkpoint.open(folder).load("unet", torch.float32)
    with pytest.raises(CheckpointError, match=r"single\.safetensors is not a valid safetensors file"):
        Checkpoint.open(tmp_path / "single.safetensors")


def climbing(folder: Path) -> None:
    index = shard(folder, f"{UNET_FILE}.index.json")
    data = json.loads(index.read_text())
    shutil.copyfile(folder / "unet" / "a.safetensors", folder / "vae" / "a.safetensors")
    data["weight_map"]["conv_in.bias"] = "../vae/a.safetensors"
    index.write_text(json.dumps(data))


def fifo(folder: Path) -> None:
    (folder / "unet" / UNET_FILE).unlink()
    os.mkfifo(folder / "unet" / UNET_FILE)


def loop(folder: Path) -> None:
    (folder / "unet" / UNET_FILE).unlink()
    (folder / "unet" / UNET_FILE).symlink_to(folder / "unet" / UNET_FILE)


def index_of(content: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        shard(folder, f"{UNET_FILE}.index.json").write_text(content)

    return spoil


def config_of(**changes: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (climbing, r"lists '\.\./vae/a\.safetensors'; shards must be \.safetensors files in the same folder"),
        (index_of('{"weight_map": {"conv_in.bias": "/etc/passwd"}}'), r"lists '/etc/passwd'"),
        (index_of('{"weight_map": {"conv_in.bias": "..\\\\x.safetensors"}}'), r"shards must be \.safetensors files"),
        (index_of('{"weight_map": {"conv_in.bias": "z.safetensors"}}'), r"z\.safetensors is missing; .* lists it"),
        (index_of('{"weight_map": {"conv_in.bias": 3}}'), "lists no weight files"),
        (index_of("[]"), r"index\.json should contain an object"),
        (index_of("[" * 100_000), r"index\.json is not JSON"),
        (lambda f: shard(f, f"{UNET_FILE}.index.json", ("a.safetensors",) * 2), None),
        (fifo, r"is missing"),
        (loop, r"is missing \(it is a link to a missing file\)"),
        (lambda f: edit_unet(f, lambda w: w.pop("conv_in.bias")), r"1 missing, such as conv_in\.bias"),
        (
            lambda f: edit_unet(f, lambda w: w.update({"conv_in.bias": torch.zeros(7)})),
            r"1 mismatched, such as conv_in\.bias with shape \(7,\) instead of \(32,\)",
        ),
        (
            lambda f: edit_unet(f, lambda w: w.update({"conv_in.bias": w["conv_in.bias"].to(torch.int32)})),
            r"has conv_in\.bias as torch\.int32, which is not a floating-point type",
        ),
        (lambda f: edit_unet(f, lambda w: w.update({"position_ids": torch.arange(77)})), None),
        (config_of(down_block_types=["NoBlock2D", "DownBlock2D"]), "the config of the unet is invalid"),
        (config_of(block_out_channels="many"), "block_out_channels = 'many'; expected a list"),
        (config_of(norm_num_groups=7), "the config of the unet is invalid"),
    ],
)
def test_malformed_folders_are_refused(folder: Path, spoil: Callable[[Path], object], message: str | None) -> None:
    spoil(folder)
    if message is None:  # unusual, but valid
        Checkpoint.open(folder).load("unet", torch.float32)
        return
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder).load("unet", torch.float32)


def test_nothing_is_written_for_what_is_refused(folder: Path, tmp_path: Path) -> None:
    edit_unet(folder, lambda weights: weights.pop("conv_in.bias"))
    before = sorted(tmp_path.iterdir())
    for options in ([], ["--lora", str(tmp_path / "no.safetensors")], ["--vae", str(tmp_path / "no.safetensors")]):
        assert main(["export", str(folder / "unet" / UNET_FILE), str(tmp_path / "out"), *options]) == 1
        assert main(["export", str(tmp_path / "none"), str(tmp_path / "out"), *options]) == 1
    assert sorted(tmp_path.iterdir()) == before
