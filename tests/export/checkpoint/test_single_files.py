"""Single files in the original layout: families, conversion, tokenizers, and what is added to them."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_forms import assert_equal, meta_parts, modules, through_json
from support.checkpoints import tiny_checkpoint
from support.original_layout import original_layout, single_file, unet_tensors

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.export.checkpoint.single_file import configs_of_file, weights_of_part
from latentrt.export.checkpoint.source import LoraFile, Source, embedding_from_text
from latentrt.export.checkpoint.torch_modules import bare_name, empty_module
from latentrt.runtime import CheckpointError
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.weights.lora import read_lora


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_single_files_hold_what_their_folders_hold(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    file = single_file(folders[family], tmp_path / "one.safetensors", family)
    source = Source(str(file), config=str(folders[family]))
    assert_equal(modules(through_json(Checkpoint.open(source).source)), modules(folders[family]))
    one, folder = Checkpoint.open(source), Checkpoint.open(folders[family])
    assert (one.configs, one.family.name, one.scheduler, one.name) == (folder.configs, family, folder.scheduler, "one")
    assert one.sha256() != folder.sha256()


def test_a_pickled_single_file_needs_permission(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(single_file(folders["sd1"], tmp_path / "one.safetensors", "sd1"))
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "one.ckpt")
    source = Source(str(tmp_path / "one.ckpt"), config=str(folders["sd1"]))
    with pytest.raises(CheckpointError, match=r"one\.ckpt is a pickle.*--allow-pickle"):
        Checkpoint.open(source)
    assert_equal(modules(Source(source.checkpoint, config=source.config, allow_pickle=True)), modules(folders["sd1"]))


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
    """Configs with small widths, and random tensors of every component."""
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
    """Names and values equal those that diffusers loads from the same file."""
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


def test_the_refiner_is_converted_as_by_diffusers(
    sdxl: tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    """Its text encoder, the second one of SDXL, comes first in the file."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, infer_diffusers_model_type
    from transformers import CLIPTextModelWithProjection

    configs, parts = sdxl
    # By the 10th layer diffusers tells that it is a refiner.
    weights = original_layout({part: tensors for part, tensors in parts.items() if part != "text_encoder"}, "sdxl")
    assert infer_diffusers_model_type(weights) == "xl_refiner"
    assert configs_of_file(weights, {}, None) == PUBLIC_CONFIGS["sdxl-refiner"]
    config = configs["text_encoder_2"]
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2" / "config.json").write_text(json.dumps(config))
    theirs = create_diffusers_clip_model_from_ldm(
        CLIPTextModelWithProjection, dict(weights), config=str(tmp_path), subfolder="text_encoder_2"
    )
    got = {bare_name("text_encoder_2", k): v for k, v in weights_of_part("text_encoder_2", weights, config).items()}
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(got[bare_name("text_encoder_2", name)], tensor), name


def test_a_refiner_opens_as_folder_and_as_single_file(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "refiner", "sdxl-refiner", tinier=True)
    file = single_file(folder, tmp_path / "one.safetensors", "sdxl-refiner")
    one, whole = Checkpoint.open(Source(str(file), config=str(folder))), Checkpoint.open(folder)
    assert (one.family.name, one.family.time_ids) == ("sdxl-refiner", 5)
    assert one.configs == whole.configs
    for part in ("text_encoder_2", "unet"):
        got, expected = (checkpoint.load(part, torch.float32).state_dict() for checkpoint in (one, whole))
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items()), part

    def edit(name: str, **changes: Any) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    edit("model_index.json", requires_aesthetics_score=False)
    with pytest.raises(CheckpointError, match="text encoders of sdxl-refiner; expected true: it is SDXL's refiner"):
        Checkpoint.open(folder)
    edit("model_index.json", requires_aesthetics_score=True)
    edit("unet/config.json", projection_class_embeddings_input_dim=24 + 6 * 8)
    with pytest.raises(CheckpointError, match=r"is 72, but the pooled text .24. and the 5 time_ids of .* make 64"):
        Checkpoint.open(folder)


@pytest.mark.slow
def test_sdxl_opens_with_additions(
    sdxl: tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both text encoders: a LoRA in kohya's format, and a textual inversion with vectors for each."""
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
    """Weights do not determine it: the user's choice, then the file's metadata, then the most common one."""
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
    assert predicts(None, {"modelspec.predict_key": "v"}) == ("v_prediction", 64)
    with pytest.raises(CheckpointError, match="unknown prediction type 'velocity'"):
        Source("x", prediction_type="velocity")


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("row", "marks", "said", "changes"),
    [
        ("sdxl", ("v_pred",), None, {"prediction_type": "v_prediction"}),
        ("sdxl", ("v_pred", "ztsnr"), None, ZERO_SNR),
        ("sdxl", ("ztsnr",), "v_prediction", ZERO_SNR),
        # Without a prediction of v, zero terminal SNR has no meaning; ComfyUI leaves it out, too.
        ("sdxl", ("ztsnr",), None, {}),
        ("sdxl", ("v_pred", "ztsnr"), "epsilon", {}),
        ("sd2-v", ("ztsnr",), None, ZERO_SNR),
        # PNDM knows nothing of it.
        ("sd1", ("v_pred", "ztsnr"), None, {**ZERO_SNR, "_class_name": "DDIMScheduler", "clip_sample": False}),
    ],
)
def test_marks_of_zero_terminal_snr(
    row: str, marks: tuple[str, ...], said: str | None, changes: dict[str, Any]
) -> None:
    weights = original_layout(meta_parts(row), row.partition("-")[0])
    configs = configs_of_file(weights | dict.fromkeys(marks, torch.tensor([])), {}, said)
    assert configs == {**PUBLIC_CONFIGS[row], "scheduler": PUBLIC_CONFIGS[row]["scheduler"] | changes}
    Plan.from_config(configs["scheduler"], 5)


MEAN, STD = torch.tensor([-1.5, 1.75, -1.25, 2.5]), torch.tensor([8.5, 6.0, 6.5, 5.25])


def test_marks_of_edm_models() -> None:
    """As ComfyUI reads them: Playground 2.5 before CosXL before v-prediction."""
    weights = original_layout(meta_parts("sdxl"), "sdxl")
    cosxl = {"edm_vpred.sigma_max": torch.tensor(80.0), "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    scheduler = configs_of_file(weights | cosxl, {}, None)["scheduler"]
    assert scheduler["_class_name"] == "EDMEulerScheduler"
    assert [scheduler[key] for key in ("prediction_type", "sigma_data")] == ["v_prediction", 1.0]
    assert [scheduler[key] for key in ("sigma_min", "sigma_max")] == [0.002, 80.0]
    assert "rescale_betas_zero_snr" not in scheduler
    scheduler = configs_of_file(weights | cosxl | {"edm_vpred.sigma_min": torch.tensor(0.5)}, {}, None)["scheduler"]
    assert Plan.from_config(scheduler, 4).timesteps[[0, -1]] == pytest.approx(0.25 * np.log([80, 0.5]))
    configs = configs_of_file(weights | cosxl | {"edm_mean": MEAN, "edm_std": STD}, {}, None)
    theirs = diffusers.EDMDPMSolverMultistepScheduler().config
    assert configs["scheduler"].pop("_class_name") == "EDMDPMSolverMultistepScheduler"
    assert configs["scheduler"] == {key: theirs[key] for key in configs["scheduler"]}
    assert configs["vae"] == PUBLIC_CONFIGS["sdxl"]["vae"] | {
        "latents_mean": MEAN.tolist(),
        "latents_std": STD.tolist(),
        "scaling_factor": 0.5,
    }


@pytest.mark.parametrize(
    ("row", "marks", "message"),
    [
        ("sdxl", {"edm_mean": MEAN}, "edm_mean without edm_std"),
        ("sdxl", {"edm_vpred.sigma_min": torch.ones(())}, r"edm_vpred\.sigma_min without edm_vpred\.sigma_max"),
        ("sdxl", {"edm_mean": MEAN, "edm_std": -STD}, "expected numbers above 0"),
        ("sdxl", {"edm_mean": MEAN[:3], "edm_std": STD}, r"edm_mean of shape \(3,\).*expected 4 numbers"),
        ("sdxl", {"edm_vpred.sigma_max": torch.tensor(torch.inf)}, "expected a number"),
        ("sdxl", {"edm_vpred.sigma_max": torch.tensor(0.001)}, "expected 0 < min < max"),
        ("sd1", {"edm_vpred.sigma_max": torch.tensor(80.0)}, r"edm_vpred\.sigma_max, the marks of an EDM.*SDXL alone"),
        ("sd1", {"edm_mean": MEAN, "edm_std": STD}, r"edm_mean and edm_std, the marks of an EDM.*SDXL alone"),
    ],
)
def test_marks_that_cannot_be_are_refused(row: str, marks: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        configs_of_file(original_layout(meta_parts(row), row) | marks, {}, None)


def test_a_marked_file_is_what_the_folder_of_the_model_is(tmp_path: Path) -> None:
    """The weights and configs of a folder with an EDM scheduler, from a file with marks and the configs of SDXL."""
    plain = tiny_checkpoint(tmp_path / "plain", "sdxl", seed=5, tinier=True)
    folder = Checkpoint.open(tiny_checkpoint(tmp_path / "edm", "sdxl-edm", seed=5, tinier=True))
    marks = {"edm_mean": torch.tensor(folder.configs["vae"]["latents_mean"], dtype=torch.float64)}
    marks["edm_std"] = torch.tensor(folder.configs["vae"]["latents_std"], dtype=torch.float64)
    file = single_file(plain, tmp_path / "one.safetensors", "sdxl", marks=marks)
    checkpoint = Checkpoint.open(Source(str(file), config=str(plain)))
    own, theirs = checkpoint.configs.pop("scheduler"), folder.configs.pop("scheduler")
    assert checkpoint.configs == folder.configs
    assert json.loads(checkpoint.scheduler) == own
    plans = [Plan.from_config(config, 7).to_arrays() for config in (own, theirs)]
    assert all(np.array_equal(plans[0][name], plans[1][name]) for name in plans[0])


def test_inpainting_is_seen_in_a_single_file() -> None:
    parts = meta_parts("sd1")
    parts["unet"]["conv_in.weight"] = torch.empty(320, 9, 3, 3, device="meta")
    configs = configs_of_file(original_layout(parts, "sd1"), {}, None)
    assert configs["unet"]["in_channels"] == 9
    assert configs["index"] == {"_class_name": "StableDiffusionInpaintPipeline"}


@pytest.mark.parametrize(("row", "family"), [("sd1", "sd1"), ("sd2-v", "sd2")])
def test_the_tokenizer_of_single_files(folders: dict[str, Path], tmp_path: Path, row: str, family: str) -> None:
    """The same three files as from a folder."""
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


@pytest.mark.parametrize("row", ["sd1", "sdxl"])
def test_loras_may_have_the_original_names(tmp_path: Path, row: str) -> None:
    """As in kohya's files for SDXL, and with dots as ComfyUI writes them: every module, renamed independently."""
    unet = meta_parts(row)["unet"]
    originals = unet_tensors({k: torch.tensor(i) for i, k in enumerate(unet)})
    names = {next(k for j, k in enumerate(unet) if j == int(i)): original for original, i in originals.items()}
    modules = [k for k in unet if k.endswith(".weight")]
    parameters = [f"unet.{k}" for k in unet]
    for prefix, dot, part in (("lora_unet_", "_", "diff"), ("diffusion_model.", ".", "w_norm")):
        keys = {f"unet.{k}": prefix + names[k].removesuffix(".weight").replace(".", dot) for k in modules}
        assert len(set(keys.values())) == len(keys) > 200
        tensors = {f"{key}.{part}": torch.tensor([float(i)]) for i, key in enumerate(keys.values())}
        save_file(tensors, tmp_path / "x.safetensors")
        found = read_lora(tmp_path / "x.safetensors", parameters)
        assert {parameter: change.parts["diff"].item() for parameter, change in found.items()} == {
            parameter: float(i) for i, parameter in enumerate(keys)
        }
