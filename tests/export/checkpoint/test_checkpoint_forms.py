"""Checkpoints of every form open to the same modules, bit for bit; what is malformed is refused before any work."""

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import tiny_checkpoint
from support.lora_files import TEXT, UNET
from support.original_layout import original_layout, single_file, unet_tensors, vae_tensors

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.hub import needed_files
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.export.checkpoint.single_file import configs_of_file, weights_of_part
from latentrt.export.checkpoint.source import LoraFile, Source, embedding_from_text, lora_from_text
from latentrt.export.checkpoint.torch_modules import bare_name, empty_module
from latentrt.runtime import CheckpointError, InputError
from latentrt.runtime.bundle.strict_json import decode, encode
from latentrt.runtime.cli.main import main
from latentrt.runtime.weights.lora import read_lora

PARTS = ("text_encoder", "unet", "vae")
UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("folders")
    return {family: tiny_checkpoint(folder / family, family, seed=23) for family in ("sd1", "sd2")}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """One to spoil."""
    return Path(shutil.copytree(folders["sd1"], tmp_path / "checkpoint"))


def modules(source: Source | Path, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = Checkpoint.open(source)
    return {part: dict(checkpoint.load(part, dtype).state_dict()) for part in PARTS}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in expected:
        assert got[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            assert got[part][name].dtype == tensor.dtype
            assert torch.equal(got[part][name], tensor), (part, name)


def through_json(source: Source) -> Source:
    """As the parity check's process gets it."""
    return decode(Source, json.loads(json.dumps(encode(source))), "source")


# --- the same weights in every form ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_single_files_hold_what_their_folders_hold(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    file = single_file(folders[family], tmp_path / "one.safetensors", family)
    source = Source(str(file), config=str(folders[family]))
    assert_equal(modules(through_json(Checkpoint.open(source).source)), modules(folders[family]))
    one, folder = Checkpoint.open(source), Checkpoint.open(folders[family])
    assert (one.configs, one.family.name, one.scheduler, one.name) == (folder.configs, family, folder.scheduler, "one")
    assert one.sha256() != folder.sha256()


def test_a_single_file_in_a_pickle_needs_a_word(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(single_file(folders["sd1"], tmp_path / "one.safetensors", "sd1"))
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "one.ckpt")
    source = Source(str(tmp_path / "one.ckpt"), config=str(folders["sd1"]))
    with pytest.raises(CheckpointError, match=r"one\.ckpt is a pickle.*--allow-pickle"):
        Checkpoint.open(source)
    assert_equal(modules(Source(source.checkpoint, config=source.config, allow_pickle=True)), modules(folders["sd1"]))


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


def shard(
    folder: Path, index: str, names: tuple[str, ...] = ("a.safetensors", "b.safetensors", "c.safetensors")
) -> Path:
    unet = {k: v.half() for k, v in load_file(folder / "unet" / UNET_FILE).items()}
    (folder / "unet" / UNET_FILE).unlink()
    map_ = {key: names[i % len(names)] for i, key in enumerate(sorted(unet))}
    for name in names:
        if "/" not in name:
            save_file({k: unet[k] for k, file in map_.items() if file == name}, folder / "unet" / name)
    (folder / "unet" / index).write_text(json.dumps({"metadata": {}, "weight_map": map_}))
    return folder / "unet" / index


def test_pickled_folders_need_a_word(folder: Path, folders: dict[str, Path]) -> None:
    for part, stem, new in (
        ("text_encoder", "model", "pytorch_model"),
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
    ):
        file = folder / part / f"{stem}.safetensors"
        torch.save(load_file(file), folder / part / f"{new}.bin")
        file.unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder holds pickled weights only: pytorch_model\.bin"):
        Checkpoint.open(folder)
    assert_equal(modules(Source(str(folder), allow_pickle=True)), modules(folders["sd1"]))


class Harm:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [lambda x, f: torch.save({"w": x}, f), lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_pickles_never_run_code(tmp_path: Path, save: Callable[[Any, Path], Any]) -> None:
    save(Harm(tmp_path / "harm"), tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="pickle of nothing but tensors"):
        Checkpoint.open(Source(str(tmp_path / "bad.ckpt"), allow_pickle=True))
    (tmp_path / "bad.ckpt").rename(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*looks like a pickle"):
        Checkpoint.open(tmp_path / "bad.safetensors")
    assert not (tmp_path / "harm").exists()


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


# --- families of single files ---------------------------------------------------------------------------------------


def meta_parts(row: str) -> dict[str, dict[str, torch.Tensor]]:
    """Names and shapes of the public checkpoints' tensors."""
    configs = PUBLIC_CONFIGS[row]
    parts = [part for part in (*PARTS, "text_encoder_2") if part in configs]
    return {part: dict(empty_module(part, configs[part]).state_dict()) for part in parts}


@pytest.mark.parametrize("row", PUBLIC_CONFIGS)
def test_public_shapes_are_recognised_and_fit(row: str) -> None:
    parts = meta_parts(row)
    weights = original_layout(parts, row.partition("-")[0])
    configs = configs_of_file(weights, {}, "epsilon" if row == "sd2-base" else None)
    assert configs == PUBLIC_CONFIGS[row]
    for part, tensors in parts.items():
        found = {bare_name(part, k): v.shape for k, v in weights_of_part(part, weights, configs[part]).items()}
        expected = {bare_name(part, k): v.shape for k, v in tensors.items()}
        assert expected.items() <= found.items(), part


@pytest.fixture(scope="module")
def sdxl() -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Configs at small widths, and random tensors of every component."""
    public = PUBLIC_CONFIGS["sdxl"]
    small_text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 11}
    small = {"block_out_channels": [32, 64, 64], "norm_num_groups": 16}
    configs = {
        "text_encoder": {**public["text_encoder"], **small_text},
        "text_encoder_2": {**public["text_encoder_2"], **small_text, "hidden_size": 48, "projection_dim": 48},
        "unet": {**public["unet"], **small, "cross_attention_dim": 80, "transformer_layers_per_block": [1, 2, 3]}
        | {"attention_head_dim": [1, 2, 4], "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 96},
        "vae": {**public["vae"], "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 8, "layers_per_block": 1},
    }
    draw = torch.Generator().manual_seed(3)
    parts = {
        part: {k: torch.randn(v.shape, generator=draw) for k, v in empty_module(part, config).state_dict().items()}
        for part, config in configs.items()
    }
    return configs, parts


def test_sdxl_is_converted_as_by_diffusers(
    sdxl: tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    """Values and all, against diffusers' own loading of the file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    configs, parts = sdxl
    weights = original_layout(parts, "sdxl")
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, config in configs.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
        got = {bare_name(part, k): v for k, v in weights_of_part(part, weights, config).items()}
        cls = classes.get(part, CLIPTextModelWithProjection)
        if part.startswith("text"):
            theirs = create_diffusers_clip_model_from_ldm(cls, dict(weights), config=str(tmp_path), subfolder=part)
        else:
            theirs = cls.from_single_file(dict(weights), config=str(tmp_path), subfolder=part)
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(got[bare_name(part, name)], tensor), (part, name)
            assert torch.equal(parts[part][name], tensor), (part, name)


def test_sdxl_opens_with_all_that_is_put_in(
    sdxl: tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both text encoders: LoRAs in kohya's names, and a word with vectors for each."""
    configs, parts = sdxl
    monkeypatch.setitem(PUBLIC_CONFIGS, "sdxl", {**PUBLIC_CONFIGS["sdxl"], **configs})
    save_file(original_layout(parts, "sdxl"), tmp_path / "xl.safetensors")
    draw = torch.Generator().manual_seed(4)
    vectors = {name: torch.randn(2, width, generator=draw) for name, width in (("clip_l", 32), ("clip_g", 48))}
    save_file(vectors, tmp_path / "toy.safetensors")
    modules_of = {"lora_te1": ("text_encoder", 32), "lora_te2": ("text_encoder_2", 48)}
    lora = {}
    for prefix, (_, width) in modules_of.items():
        key = f"{prefix}_text_model_encoder_layers_3_self_attn_v_proj"
        lora[f"{key}.lora_down.weight"] = torch.randn(2, width, generator=draw)
        lora[f"{key}.lora_up.weight"] = torch.randn(width, 2, generator=draw)
    save_file(lora, tmp_path / "ink.safetensors")
    source = Source(
        str(tmp_path / "xl.safetensors"),
        loras=(LoraFile(str(tmp_path / "ink.safetensors"), 0.5),),
        embeddings=(embedding_from_text(f"{tmp_path / 'toy.safetensors'}:<toy>"),),
    )
    checkpoint = Checkpoint.open(source)
    assert checkpoint.index == {"_class_name": "StableDiffusionXLPipeline"}
    for part, tensors in parts.items():
        module = checkpoint.load(part, torch.float32)
        changed = {}
        for name, tensor in module.state_dict().items():
            if not torch.equal(tensor, tensors[name]):
                changed[bare_name(part, name)] = (tensor, tensors[name])
        if not part.startswith("text"):
            assert changed == {}
            continue
        prefix, clip = ("lora_te2", "clip_g") if part.endswith("2") else ("lora_te1", "clip_l")
        own, before = changed.pop("embeddings.token_embedding.weight")
        assert torch.equal(own, torch.cat([before, vectors[clip]]))
        own, before = changed.pop("encoder.layers.3.self_attn.v_proj.weight")
        key = f"{prefix}_text_model_encoder_layers_3_self_attn_v_proj"
        delta = lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
        torch.testing.assert_close(own, before + 0.5 * delta)
        assert changed == {}
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        tokenizer = checkpoint.load_tokenizer(name)
        assert tokenizer.pad_token_id == pad
        assert checkpoint.embeddings(name) == {"<toy>": (49408, 49409)}
        assert tokenizer("<toy>").input_ids == [49406, 49408, 49407]


def test_what_the_unet_predicts() -> None:
    """No weight tells it: the user's word, then the file's, then what is usual."""
    weights = original_layout(meta_parts("sd2-v"), "sd2")

    def predicts(said: str | None = None, metadata: dict[str, str] | None = None, *marks: str) -> tuple[str, int]:
        configs = configs_of_file(weights | dict.fromkeys(marks, torch.ones(1)), metadata or {}, said)
        return configs["scheduler"].get("prediction_type", "epsilon"), configs["unet"]["sample_size"]

    assert predicts() == ("v_prediction", 96)
    assert predicts("epsilon") == ("epsilon", 64)
    assert predicts(None, {"modelspec.prediction_type": "epsilon"}) == ("epsilon", 64)
    assert predicts("v_prediction", {"modelspec.prediction_type": "epsilon"}) == ("v_prediction", 96)
    weights = original_layout(meta_parts("sd1"), "sd1")
    assert predicts() == ("epsilon", 64)
    assert predicts(None, {"modelspec.prediction_type": "v"}) == ("v_prediction", 64)
    assert predicts(None, {}, "v_pred") == ("v_prediction", 64)
    configs = configs_of_file(weights | {"ztsnr": torch.ones(1)}, {}, None)
    assert configs["scheduler"]["rescale_betas_zero_snr"] is True
    with pytest.raises(CheckpointError, match="'velocity' is not known"):
        Source("x", prediction_type="velocity")


def test_a_folder_may_be_told_what_it_predicts(folders: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(Source(str(folders["sd1"]), prediction_type="v_prediction"))
    assert json.loads(checkpoint.scheduler) == {
        **Checkpoint.open(folders["sd1"]).configs["scheduler"],
        "prediction_type": "v_prediction",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.joint_blocks.0.x"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.x"], "is the refiner"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "is a UNet without a text encoder"),
        (["first_stage_model.encoder.conv_in.weight"], r"is a VAE; give it with --vae"),
        (["lora_unet_mid_block.lora_up.weight"], r"is a LoRA; .*--lora"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is one component in the diffusers format"),
        (["x"], r"is of no known kind.*model\.diffusion_model\."),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"x.safetensors: the file {message}"):
        Checkpoint.open(tmp_path / "x.safetensors")


def test_inpainting_is_seen_in_a_single_file() -> None:
    parts = meta_parts("sd1")
    parts["unet"]["conv_in.weight"] = torch.empty(320, 9, 3, 3, device="meta")
    configs = configs_of_file(original_layout(parts, "sd1"), {}, None)
    assert configs["unet"]["in_channels"] == 9
    assert configs["index"] == {"_class_name": "StableDiffusionInpaintPipeline"}


@pytest.mark.parametrize(("row", "family"), [("sd1", "sd1"), ("sd2-v", "sd2")])
def test_the_tokenizer_of_single_files(folders: dict[str, Path], tmp_path: Path, row: str, family: str) -> None:
    """The same three files that a folder gives."""
    from latentrt.export.checkpoint.tokenizer_files import Vocabulary

    single = Vocabulary.of_clip(PUBLIC_CONFIGS[row]["tokenizer"]["pad_token"])
    for name, vocabulary in (("a", single), ("b", Vocabulary(folders[family] / "tokenizer"))):
        tokenizer, _ = vocabulary.load({})
        vocabulary.write(tmp_path / name, tokenizer, [])
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
        assert tokenizer.pad_token_id == (0 if family == "sd2" else 49407)
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        a, b = ((tmp_path / name / file).read_bytes() for name in ("a", "b"))
        assert a == b, file


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's client lays it out: blobs by hash, links to them in a snapshot."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny-diffusion"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for number, file in enumerate(sorted(f for f in folders["sd1"].rglob("*") if f.is_file())):
        blob = repository / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folders["sd1"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_a_cached_checkpoint_needs_no_network(cache: Path, folders: dict[str, Path]) -> None:
    assert_equal(modules(Source("someone/tiny-diffusion@main")), modules(folders["sd1"]))
    checkpoint = Checkpoint.open("someone/tiny-diffusion")
    assert checkpoint.name == "tiny-diffusion"
    assert Path(checkpoint.source.checkpoint) == cache
    assert checkpoint.sha256() == Checkpoint.open(folders["sd1"]).sha256()
    again = Checkpoint.open(through_json(checkpoint.source))
    assert (again.name, again.source) == (checkpoint.name, checkpoint.source)


@pytest.mark.usefixtures("cache")
def test_what_is_not_cached_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "someone/else", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "someone/else is no path here, it is not in the hub's cache, and the hub cannot be reached" in error
    assert not (tmp_path / "out").exists()


def test_a_link_of_the_cache_that_leads_nowhere(cache: Path) -> None:
    (cache / "unet" / UNET_FILE).resolve().unlink()
    with pytest.raises(CheckpointError, match=r"is missing \(it is a link to a file that is not there\)"):
        Checkpoint.open("someone/tiny-diffusion")


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    import huggingface_hub

    kept = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"]
    kept += ["text_encoder/config.json", "unet/config.json", "vae/config.json", "text_encoder/model.safetensors"]
    kept += ["unet/diffusion_pytorch_model-00001-of-00002.safetensors"]
    kept += ["unet/diffusion_pytorch_model-00002-of-00002.safetensors"]
    kept += ["unet/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
    left = ["v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md", "safety_checker/model.safetensors"]
    left += ["text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "unet/openvino/unet.bin"]
    left += ["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"]
    left += ["unet/diffusion_pytorch_model.fp16.safetensors", "feature_extractor/preprocessor_config.json"]
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


# --- what is put in -------------------------------------------------------------------------------------------------


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
    """One LoRA as kohya and as diffusers write it, with an alpha that is not the rank."""
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
    # The sum is rounded once, so that half a unit in the last place is all that is lost.
    assert (first["unet"][name].double() - expected).abs().max() <= (
        expected.abs().max() * torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 0.51)
    )
    additions = Checkpoint.open(merged[0]).record().additions
    assert [(a.kind, a.name, a.weight) for a in additions] == [
        ("lora", "kohya-5.safetensors", 0.6),
        ("lora", "kohya-6.safetensors", -1.5),
    ]


@pytest.mark.parametrize("row", ["sd1", "sdxl"])
def test_loras_may_have_the_original_names(tmp_path: Path, row: str) -> None:
    """As kohya's for SDXL have them: every layer of the blocks, by an inverse that was written on its own."""
    unet = meta_parts(row)["unet"]
    originals = unet_tensors({k: torch.tensor(i) for i, k in enumerate(unet)})
    names = {next(k for j, k in enumerate(unet) if j == int(i)): original for original, i in originals.items()}
    blocks = [k for k, v in unet.items() if re.match("(down|mid|up)_block", k) and k.endswith("t") and v.ndim > 1]
    keys = {f"unet.{k}": f"lora_unet_{names[k].removesuffix('.weight').replace('.', '_')}" for k in blocks}
    assert len(set(keys.values())) == len(keys) > 150
    save_file({f"{key}.lora_down.weight": torch.ones(1, 1) for key in keys.values()}, tmp_path / "x.safetensors")
    assert set(read_lora(tmp_path / "x.safetensors", [f"unet.{k}" for k in unet])) == set(keys)
    for i, (parameter, key) in enumerate(keys.items()):
        if i % 25 == 0:
            save_file({f"{key}.alpha": torch.tensor(1.0)}, tmp_path / "x.safetensors")
            assert list(read_lora(tmp_path / "x.safetensors", [f"unet.{k}" for k in unet])) == [parameter]


def test_a_lora_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"lora_unet_nothing.lora_up.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="1 of 1 tensors match nothing"):
        Checkpoint.open(Source(str(folders["sd1"]), loras=(LoraFile(str(tmp_path / "x.safetensors")),)))


def test_options_with_numbers_and_words(tmp_path: Path) -> None:
    assert lora_from_text("a:b.safetensors:-0.5") == LoraFile("a:b.safetensors", -0.5)
    assert lora_from_text("a:b.safetensors") == LoraFile("a:b.safetensors", 1.0)
    assert (embedding_from_text("a.pt:<x>").path, embedding_from_text("a.pt:<x>").token) == ("a.pt", "<x>")
    (tmp_path / "a:b.pt").touch()
    assert embedding_from_text(str(tmp_path / "a:b.pt")).token is None


# --- malformed input ------------------------------------------------------------------------------------------------


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
    """200 MB of header, of which the disk holds nothing."""
    raw_safetensors(path, b"{", length=200_000_000)
    os.truncate(path, 200_000_100)


@pytest.mark.parametrize("kind", [*MALFORMED, "huge header"])
def test_malformed_safetensors_are_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    from latentrt.runtime.weights.stored import read_safetensors

    spoil = MALFORMED.get(kind, huge_header)
    for file in (folder / "unet" / UNET_FILE, tmp_path / "single.safetensors"):
        spoil(file)
        with pytest.raises(InputError, match="is not a whole safetensors file"):
            read_safetensors(file)
    with pytest.raises(CheckpointError, match=r"unet/.* is not a whole safetensors file"):
        Checkpoint.open(folder).load("unet", torch.float32)
    with pytest.raises(CheckpointError, match=r"single\.safetensors is not a whole safetensors file"):
        Checkpoint.open(tmp_path / "single.safetensors")


def edit_unet(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "unet" / UNET_FILE)
    edit(weights)
    save_file(weights, folder / "unet" / UNET_FILE)


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
        (climbing, r"names '\.\./vae/a\.safetensors'; shards are \.safetensors files beside it"),
        (index_of('{"weight_map": {"conv_in.bias": "/etc/passwd"}}'), r"names '/etc/passwd'"),
        (index_of('{"weight_map": {"conv_in.bias": "..\\\\x.safetensors"}}'), r"shards are \.safetensors files"),
        (index_of('{"weight_map": {"conv_in.bias": "z.safetensors"}}'), r"z\.safetensors is missing; .* names it"),
        (index_of('{"weight_map": {"conv_in.bias": 3}}'), "names no weight files"),
        (index_of("[]"), r"index\.json should hold an object"),
        (index_of("[" * 100_000), r"index\.json is not JSON"),
        (lambda f: shard(f, f"{UNET_FILE}.index.json", ("a.safetensors",) * 2), None),
        (fifo, r"is missing"),
        (loop, r"is missing \(it is a link to a file that is not there\)"),
        (lambda f: edit_unet(f, lambda w: w.pop("conv_in.bias")), r"1 missing, such as conv_in\.bias"),
        (
            lambda f: edit_unet(f, lambda w: w.update({"conv_in.bias": torch.zeros(7)})),
            r"1 mismatched, such as conv_in\.bias \(7,\) instead of \(32,\)",
        ),
        (
            lambda f: edit_unet(f, lambda w: w.update({"conv_in.bias": w["conv_in.bias"].to(torch.int32)})),
            r"holds conv_in\.bias as torch\.int32, which is no floating-point type",
        ),
        (lambda f: edit_unet(f, lambda w: w.update({"position_ids": torch.arange(77)})), None),
        (config_of(down_block_types=["NoBlock2D", "DownBlock2D"]), "the config of the unet makes no module"),
        (config_of(block_out_channels="many"), "the config of the unet makes no module"),
        (config_of(norm_num_groups=7), "the config of the unet makes no module"),
    ],
)
def test_malformed_folders_are_refused(folder: Path, spoil: Callable[[Path], object], message: str | None) -> None:
    spoil(folder)
    if message is None:  # odd, but whole
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
