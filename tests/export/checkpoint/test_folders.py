"""Folders in the diffusers format and in the Hub's cache, and additions: another VAE and LoRAs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_forms import PARTS, UNET_FILE, assert_equal, modules, shard, through_json
from support.checkpoints import tiny_checkpoint
from support.lora_files import TEXT, UNET
from support.original_layout import single_file, vae_tensors

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.hub import needed_files
from latentrt.export.checkpoint.source import LoraFile, Source, embedding_from_text, lora_from_text
from latentrt.export.checkpoint.torch_modules import bare_name
from latentrt.runtime import CheckpointError


@pytest.mark.parametrize(("family", "dtype"), [("sd1", torch.float32), ("sd2", torch.float16)])
def test_folders_load_as_in_diffusers(folders: dict[str, Path], family: str, dtype: torch.dtype) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folders[family], torch_dtype=dtype, safety_checker=None)
    expected = {part: dict(getattr(pipe, part).state_dict()) for part in PARTS}
    assert_equal(modules(folders[family], dtype), expected)
    ids = torch.arange(154).reshape(2, 77)
    text_encoder = Checkpoint.open(folders[family]).load("text_encoder", dtype)
    with torch.inference_mode():
        assert torch.equal(text_encoder(ids).last_hidden_state, pipe.text_encoder(ids).last_hidden_state)


@pytest.mark.parametrize("index", ["diffusion_pytorch_model.safetensors.index{}.json", "{}.safetensors.index.json"])
def test_variants_and_shards(folder: Path, folders: dict[str, Path], index: str) -> None:
    """fp16 files of every component, the UNet's in three shards, under the names of older and newer libraries."""
    for part, stem in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        half = {k: v.half() for k, v in load_file(folder / part / f"{stem}.safetensors").items()}
        save_file(half, folder / part / f"{stem}.fp16.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
    shard(folder, index.format(".fp16" if "model" in index else "diffusion_pytorch_model.fp16"))
    expected = {p: {k: v.half() for k, v in tensors.items()} for p, tensors in modules(folders["sd1"]).items()}
    assert_equal(modules(folder, torch.float16), expected)


def test_pickled_folders_need_permission(folder: Path, folders: dict[str, Path]) -> None:
    for part, stem, new in (
        ("text_encoder", "model", "pytorch_model"),
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
    ):
        file = folder / part / f"{stem}.safetensors"
        torch.save(load_file(file), folder / part / f"{new}.bin")
        file.unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder contains only pickled weights: pytorch_model\.bin"):
        Checkpoint.open(folder)
    assert_equal(modules(Source(str(folder), allow_pickle=True)), modules(folders["sd1"]))


def test_old_names_of_the_vae(folder: Path, folders: dict[str, Path]) -> None:
    file = folder / "vae" / UNET_FILE
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for name, tensor in load_file(file).items():
        for new, was in old.items():
            name = name.replace(new, was)
        weights[name] = tensor
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, file)
    assert_equal(modules(folder), modules(folders["sd1"]))


def test_a_folder_may_be_told_what_it_predicts(folders: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(Source(str(folders["sd1"]), prediction_type="v_prediction"))
    assert json.loads(checkpoint.scheduler) == {
        **Checkpoint.open(folders["sd1"]).configs["scheduler"],
        "prediction_type": "v_prediction",
    }


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_cached_checkpoint_needs_no_network(cache: Path, folders: dict[str, Path]) -> None:
    assert_equal(modules(Source("someone/tiny-diffusion@main")), modules(folders["sd1"]))
    checkpoint = Checkpoint.open("someone/tiny-diffusion")
    assert checkpoint.name == "tiny-diffusion"
    assert Path(checkpoint.source.checkpoint) == cache
    assert checkpoint.sha256() == Checkpoint.open(folders["sd1"]).sha256()
    again = Checkpoint.open(through_json(checkpoint.source))
    assert (again.name, again.source) == (checkpoint.name, checkpoint.source)


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    import huggingface_hub

    kept = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"]
    kept += [
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    kept += ["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"]
    kept += ["unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors"]
    kept += ["unet/diffusion_pytorch_model.safetensors.index.fp16.json", "text_encoder/model.fp16.safetensors"]
    left = ["v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md", "safety_checker/model.safetensors"]
    left += ["text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "unet/openvino/unet.bin"]
    left += ["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"]
    left += ["unet/diffusion_pytorch_model.safetensors", "feature_extractor/preprocessor_config.json"]
    asked = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folders["sd1"])

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: left + kept)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Checkpoint.open("someone/tiny@v2")
    assert sorted(asked.pop("allow_patterns")) == sorted(kept)
    assert asked == {"repo": "someone/tiny", "revision": "v2"}
    assert needed_files(["unet/diffusion_pytorch_model.bin"], allow_pickle=True) == ["unet/diffusion_pytorch_model.bin"]


# --- additions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "pipeline", "original", "original.pt", "diffusers"])
def test_another_vae(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    other = tiny_checkpoint(tmp_path / "other", "sd1", seed=77)
    weights = load_file(other / "vae" / UNET_FILE)
    path = {"folder": other / "vae", "pipeline": other}.get(form, tmp_path / "vae.safetensors")
    if form == "original.pt":
        path = tmp_path / "vae.pt"
        torch.save({"state_dict": vae_tensors(weights)}, path)
    elif form in ("original", "diffusers"):
        tensors = vae_tensors(weights) if form == "original" else weights
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    source = Source(str(folders["sd1"]), vae=str(path), allow_pickle=form == "original.pt")
    expected = modules(folders["sd1"]) | {"vae": modules(other)["vae"]}
    assert_equal(modules(source), expected)
    plain, record = Checkpoint.open(folders["sd1"]).record(), Checkpoint.open(source).record()
    assert [(a.kind, a.name, a.weight) for a in record.additions] == [("vae", path.name, None)]
    assert (plain.additions, plain.name) == ((), record.name)
    assert plain.sha256 != record.sha256


def lora_pair(folder: Path, weights: dict[str, dict[str, torch.Tensor]], rank: int, seed: int) -> tuple[Path, Path]:
    """The same LoRA in the formats of kohya and diffusers, with an alpha that differs from the rank."""
    draw = torch.Generator().manual_seed(seed)
    kohya, diffusers = {}, {}
    for part, name in [("unet", n) for n in UNET] + [("text_encoder", n) for n in TEXT]:
        out, into, *kernel = weights[part][f"{name}.weight"].shape
        down = torch.randn(rank, into, *kernel, generator=draw) * 0.2
        up = torch.randn(out, rank, *[1] * len(kernel), generator=draw) * 0.2
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
        key = prefix + name.replace(".", "_")
        kohya |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(3.0)}
        key = f"{part}.{'text_model.' if part == 'text_encoder' else ''}{name}"
        diffusers |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    alphas = json.dumps({"unet.lora_alpha": 3.0, "text_encoder.lora_alpha": 3.0})
    save_file(kohya, folder / f"kohya-{seed}.safetensors")
    save_file(diffusers, folder / f"diffusers-{seed}.safetensors", {"lora_adapter_metadata": alphas})
    return folder / f"kohya-{seed}.safetensors", folder / f"diffusers-{seed}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loras_of_both_formats_merge_to_the_same_bits(
    folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    base = modules(folders["sd1"])
    text = {bare_name("text_encoder", k): v for k, v in base["text_encoder"].items()}
    weights = {"unet": base["unet"], "text_encoder": text}
    pairs = [lora_pair(tmp_path, weights, rank, seed) for rank, seed in ((2, 5), (7, 6))]
    file = single_file(folders["sd1"], tmp_path / "one.safetensors", "sd1")
    merged = []
    for which, source in enumerate((Source(str(folders["sd1"])), Source(str(file), config=str(folders["sd1"])))):
        loras = tuple(LoraFile(str(pair[which]), w) for pair, w in zip(pairs, (0.6, -1.5), strict=True))
        merged.append(Source(source.checkpoint, config=source.config, loras=loras))
    first = modules(merged[0], dtype)
    assert_equal(modules(through_json(Checkpoint.open(merged[1]).source), dtype), first)
    changed = [n for part in PARTS for n, t in first[part].items() if not torch.equal(t, base[part][n].to(dtype))]
    assert len(changed) == len(UNET) + len(TEXT)
    name = f"{UNET[0]}.weight"
    expected = base["unet"][name].double()
    for (kohya, _), factor in zip(pairs, (0.6, -1.5), strict=True):
        tensors = load_file(kohya)
        key = "lora_unet_" + UNET[0].replace(".", "_")
        down, up = (tensors[f"{key}.lora_{half}.weight"].double() for half in ("down", "up"))
        expected += factor * 3.0 / len(down) * (up @ down)
    # The sum is rounded once, so the error is at most half a unit in the last place.
    assert (first["unet"][name].double() - expected).abs().max() <= (
        expected.abs().max() * torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 0.51)
    )
    additions = Checkpoint.open(merged[0]).record().additions
    assert [(a.kind, a.name, a.weight) for a in additions] == [
        ("lora", "kohya-5.safetensors", 0.6),
        ("lora", "kohya-6.safetensors", -1.5),
    ]


def test_options_with_numbers_and_words(tmp_path: Path) -> None:
    assert lora_from_text("a:b.safetensors:-0.5") == LoraFile("a:b.safetensors", -0.5)
    assert lora_from_text("a:b.safetensors") == LoraFile("a:b.safetensors", 1.0)
    assert (embedding_from_text("a.pt:<x>").path, embedding_from_text("a.pt:<x>").token) == ("a.pt", "<x>")
    (tmp_path / "a:b.pt").touch()
    assert embedding_from_text(str(tmp_path / "a:b.pt")).token is None
