"""Textual inversions: file formats, and token ids and images compared with diffusers, with all other additions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import tiny_checkpoint
from support.original_layout import single_file, vae_tensors

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import EmbeddingFile, Source
from latentrt.export.checkpoint.textual_inversion import read_embedding
from latentrt.runtime import Bundle, CheckpointError, Pipeline
from latentrt.runtime.cli.main import main

UNET = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "encoder.layers.1.mlp.fc1"
PROMPT = "a <cat-toy>, painted by Gloomy"


def vectors(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.5


@dataclass(frozen=True)
class Everything:
    """A bundle with every kind of addition, and diffusers' pipeline with the same additions."""

    bundle: Path
    theirs: Any


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """A single file with another VAE, a LoRA, and textual inversions of three vectors and of one."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("everything")
    checkpoint = tiny_checkpoint(folder / "checkpoint", "sd1", seed=31, tinier=True)
    single_file(checkpoint, folder / "one.safetensors", "sd1")
    other = tiny_checkpoint(folder / "other", "sd1", seed=32, tinier=True)
    vae = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({k: v.contiguous() for k, v in vae_tensors(vae).items()}, folder / "vae.safetensors")
    save_file({"<cat-toy>": vectors(3, 32, 1)}, folder / "cat.safetensors")
    torch.save({"string_to_param": {"*": vectors(1, 32, 2)}, "name": "x", "step": 500}, folder / "Gloomy.pt")
    pair = {"down": vectors(4, 32, 3), "up": vectors(64, 4, 4)}
    text_key, unet_key = (f"lora_{name}".replace(".", "_") for name in (f"te_text_model.{TEXT}", f"unet.{UNET}"))
    lora = {f"{key}.lora_{half}.weight": t.clone() for key in (text_key, unet_key) for half, t in pair.items()}
    save_file(lora, folder / "ink.safetensors")
    options = ["--config", str(checkpoint), "--vae", str(folder / "vae.safetensors"), "--allow-pickle"]
    options += ["--lora", f"{folder / 'ink.safetensors'}:0.7", "--embedding", str(folder / "cat.safetensors")]
    options += ["--embedding", f"{folder / 'Gloomy.pt'}:Gloomy", "--precision", "fp32", "--steps", "4"]
    assert main(["export", str(folder / "one.safetensors"), str(folder / "bundle"), *options]) == 0

    pipe = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, vae=AutoencoderKL.from_pretrained(other / "vae")
    )
    pipe.load_textual_inversion(str(folder), weight_name="cat.safetensors")
    pipe.load_textual_inversion({"Gloomy": vectors(1, 32, 2)[0]})
    modules = [pipe.unet.get_submodule(UNET), getattr(pipe.text_encoder, "text_model", pipe.text_encoder)]
    modules[1] = modules[1].get_submodule(TEXT)
    with torch.no_grad():
        for module in modules:
            module.weight += 0.7 * (pair["up"] @ pair["down"])
    pipe.set_progress_bar_config(disable=True)
    return Everything(folder / "bundle", pipe)


@pytest.mark.slow
def test_the_bundle_records_its_additions(everything: Everything) -> None:
    bundle = Bundle.open(everything.bundle)
    assert bundle.altered_files() == []
    checkpoint = bundle.manifest.checkpoint
    assert checkpoint.name == "one"
    assert [(a.kind, a.name, a.weight) for a in checkpoint.additions] == [
        ("vae", "vae.safetensors", None),
        ("lora", "ink.safetensors", 0.7),
        ("embedding", "cat.safetensors", None),
        ("embedding", "Gloomy.pt", None),
    ]
    assert len({a.sha256 for a in checkpoint.additions}) == 4
    words = {"<cat-toy>": (49408, 49409, 49410), "Gloomy": (49411,)}
    assert bundle.manifest.model.text_encoders[0].embeddings == words
    vocabulary = json.loads((everything.bundle / "tokenizer" / "vocab.json").read_text())
    assert len(vocabulary) == 49412
    assert [vocabulary[w] for w in ("<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "gloomy")] == [*range(49408, 49412)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "<cat-toy>",
        "<cat-toy>s, gloomy<cat-toy>gloomy and <cat-toy>",
        "nothing of it",
        " ".join(["word"] * 74) + " <cat-toy> end",  # its last vectors do not fit
        "a <cat-toy>_1 alone",
    ],
)
def test_words_have_the_token_ids_of_diffusers(everything: Everything, prompt: str) -> None:
    tokenizer = everything.theirs.tokenizer
    replaced = everything.theirs.maybe_convert_prompt(prompt, tokenizer)
    expected = tokenizer(replaced, padding="max_length", max_length=77, truncation=True).input_ids
    with Pipeline.load(everything.bundle, device="cpu") as pipe:
        encoded = pipe.tokenizer.encode([prompt])
        assert (pipe.tokenizer.encode([prompt.upper()]).ids == encoded.ids).all()  # unlike diffusers
    assert encoded.ids[0].tolist() == expected
    assert encoded.dropped == (("<cat-toy> end",) if "end" in prompt else ("",))


@pytest.mark.slow
def test_images_equal_those_of_diffusers(everything: Everything) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 48}
    with Pipeline.load(everything.bundle, device="cpu") as pipe:
        ours = pipe(PROMPT, seed=8, output_type="np", **options)
        others = [pipe(p, seed=8, **options).latents for p in ("a <cat-toy>_1, painted by Gloomy", "a cat, painted by")]
    generator = torch.Generator().manual_seed(8)
    latents = everything.theirs(PROMPT, generator=generator, output_type="latent", **options).images.numpy()
    picture = everything.theirs(PROMPT, generator=generator.manual_seed(8), output_type="np", **options).images[0]
    assert np.linalg.norm(ours.latents - latents) < 1e-4 * np.linalg.norm(latents)
    assert np.abs(ours.images[0] / 255 - picture).max() < 1.01 / 255
    for other in others:
        assert np.linalg.norm(other - latents) > 1e-2 * np.linalg.norm(latents)


# --- files ----------------------------------------------------------------------------------------------------------

ONE = torch.ones(())
SD, SDXL = {"text_encoder": 8}, {"text_encoder": 8, "text_encoder_2": 12}


@pytest.mark.parametrize(
    ("name", "content", "token", "word", "count"),
    [
        ("a.safetensors", {"<cat>": vectors(1, 8, 0)[0]}, None, "<cat>", 1),
        ("a.safetensors", {"<cat>": vectors(3, 8, 0)}, "<dog>", "<dog>", 3),
        ("moody.safetensors", {"emb_params": vectors(2, 8, 0)}, None, "moody", 2),
        ("a.bin", {"<cat>": vectors(1, 8, 0)[0]}, None, "<cat>", 1),
        ("a.pt", {"string_to_param": {"*": vectors(4, 8, 0)}, "name": "moody", "step": 3}, None, "moody", 4),
        ("xl.safetensors", {"clip_l": vectors(2, 8, 0), "clip_g": vectors(2, 12, 1)}, None, "xl", 2),
        ("xl.safetensors", {"text_encoders_0": vectors(2, 8, 0), "text_encoders_1": vectors(2, 12, 1)}, None, "xl", 2),
        ("inkcat.safetensors", {"clip_l": vectors(2, 8, 0)}, None, "inkcat", 2),
        ("x.safetensors", {"bundle_emb.ink.string_to_param.*": vectors(2, 8, 0), "l.alpha": ONE}, None, "ink", 2),
        ("x.safetensors", {"bundle_emb.a.b.clip_l": vectors(3, 8, 0), "l.alpha": ONE}, "dog", "dog", 3),
        (
            "x.safetensors",
            {"bundle_emb.a.clip_l": vectors(2, 8, 5), "bundle_emb.b.clip_l": vectors(1, 8, 0)},
            "b",
            "b",
            1,
        ),
    ],
)
def test_files_of_every_form(
    tmp_path: Path, name: str, content: dict[str, Any], token: str | None, word: str, count: int
) -> None:
    (save_file if name.endswith("s") else torch.save)(content, tmp_path / name)
    widths = SDXL if len(content) == 2 and name == "xl.safetensors" else SD
    embedding = read_embedding(EmbeddingFile(str(tmp_path / name), token), widths, allow_pickle=True)
    assert (embedding.word, embedding.count) == (word, count)
    assert {part: tuple(t.shape) for part, t in embedding.vectors.items()} == {p: (count, w) for p, w in widths.items()}
    assert torch.equal(embedding.vectors["text_encoder"], vectors(count, 8, 0))


@pytest.mark.parametrize(
    ("content", "token", "widths", "message"),
    [
        ({"<cat>": torch.zeros(2, 9)}, None, SD, r"shape \(2, 9\).*expects .*\(vectors, 8\).*another family"),
        ({"<cat>": torch.zeros(2, 2, 8)}, None, SD, r"shape \(2, 2, 8\)"),
        ({"<cat>": torch.zeros(0, 8)}, None, SD, r"shape \(0, 8\)"),
        ({"<cat>": torch.zeros(1, 8, dtype=torch.int64)}, None, SD, r"dtype torch.int64"),
        ({"<cat>": torch.zeros(1, 8)}, None, SDXL, r"has vectors for text_encoder, but the checkpoint has"),
        ({"clip_l": torch.zeros(1, 8), "clip_g": torch.zeros(1, 12)}, None, SD, "text_encoder and text_encoder_2, but"),
        ({"clip_l": torch.zeros(1, 8), "clip_g": torch.zeros(2, 12)}, None, SDXL, "different numbers of vectors"),
        ({"a": torch.zeros(1, 8), "b": torch.zeros(1, 8)}, None, SD, "not a textual inversion: .* found a, b"),
        (
            {"clip_l": torch.zeros(1, 8), "clip_l_out": torch.zeros(1, 8)},
            None,
            SD,
            r"behind the text encoder \(clip_l_out",
        ),
        ({f"bundle_emb.{w}.clip_l": torch.zeros(1, 8) for w in "ab"}, None, SD, "has 2 words: 'a', 'b'; choose one"),
        ({"<cat>": torch.zeros(1, 8)}, "two words", SD, "'two words' is not a single word"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, content: dict[str, Any], token: str | None, widths: dict[str, int], message: str
) -> None:
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_embedding(EmbeddingFile(str(tmp_path / "x.safetensors"), token), widths, allow_pickle=False)


def test_a_pickle_needs_permission(tmp_path: Path) -> None:
    torch.save({"<cat>": torch.zeros(8)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt is a pickle.*--allow-pickle"):
        read_embedding(EmbeddingFile(str(tmp_path / "x.pt")), SD, allow_pickle=False)
    torch.save({"string_to_param": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a textual inversion"):
        read_embedding(EmbeddingFile(str(tmp_path / "x.pt")), SD, allow_pickle=True)


def test_a_refused_pickle_is_told_in_one_line(tmp_path: Path) -> None:
    content = {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(2, 8))})}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"tensors only: it contains torch\.nn\.modules\.container\.ParameterDict\. Conv"
    ):
        read_embedding(EmbeddingFile(str(tmp_path / "x.pt")), SD, allow_pickle=True)


@pytest.mark.parametrize("rows", [49408, 49411, 49424])
def test_words_of_the_own_tokenizer_and_padded_tables(tmp_path: Path, rows: int) -> None:
    """`<toy>` stands for its two tokens; added vectors go to the rows of their ids, also in a table with spare rows."""
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = tiny_checkpoint(tmp_path / "checkpoint", tinier=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    own = ["<toy>", "<toy>_1", "<pet>"] if rows > 49408 else []
    tokenizer.add_tokens(own)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    encoder.resize_token_embeddings(rows)
    encoder.save_pretrained(folder / "text_encoder")
    before = encoder.get_input_embeddings().weight.detach()
    save_file({"<dog>": vectors(2, 32, 6)}, tmp_path / "dog.safetensors")
    first = 49408 + len(own)
    checkpoint = Checkpoint.open(Source(str(folder), embeddings=(EmbeddingFile(str(tmp_path / "dog.safetensors")),)))
    toys = {"<toy>": (49408, 49409)} if own else {}
    assert checkpoint.embeddings() == toys | {"<dog>": (first, first + 1)}
    table = checkpoint.load("text_encoder", torch.float32).get_input_embeddings().weight
    assert len(table) == max(rows, first + 2)
    assert torch.equal(table[first : first + 2], vectors(2, 32, 6))
    kept = [i for i in range(rows) if i not in (first, first + 1)]
    assert torch.equal(table[kept], before[kept])


def test_a_tokenizer_beyond_the_table_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    folder = tiny_checkpoint(tmp_path / "checkpoint", tinier=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<toy>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="tokenizer has 49409 tokens, but the text_encoder has rows for 49408"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("cat",), "'cat' is already in the vocabulary"), (("<a>", "<A>"), "two textual inversions are named '<A>'")],
)
def test_words_that_are_taken_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", tinier=True)
    save_file({"emb_params": torch.zeros(2, 32)}, tmp_path / "x.safetensors")
    files = tuple(EmbeddingFile(str(tmp_path / "x.safetensors"), word) for word in words)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(Source(str(checkpoint), embeddings=files))
