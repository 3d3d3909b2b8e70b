"""Prompt embeddings against transformers and diffusers: weights, chunks, two text encoders, given embeddings."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import VOCABULARY
from support.exports import Exported
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.bundle import Manifest, TensorSpec
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.request import Request
from latentrt.runtime.text import Tokenizer, conditioning_from_texts, encode, tokenize
from latentrt.runtime.text.conditioning import Conditioning

SCHEDULER = {"_class_name": "EulerDiscreteScheduler"}  # no plan with it is run
PHRASES = "a tall tower, of red bricks, in the fog at dawn, seen from a boat, with gulls around it, oil on canvas, "


def of_call(pipe: Pipeline, prompt: Any = None, **options: Any) -> Conditioning:
    request = Request.from_call(pipe.bundle.manifest, SCHEDULER, prompt, options)  # type: ignore[arg-type]
    return of_request(request, pipe.bundle.manifest.model.text_encoders, pipe.tokenizers, pipe.run)


def of_request(request: Request, encoders: Any, tokenizers: Any, run: Any) -> Conditioning:
    negative = request.negative if request.guided else None
    sides = [request.positive] if negative is None else [negative, request.positive]
    tokens = tokenize(sides, tokenizers, split=request.options["long_prompt"] == "chunk")
    skip = request.options["clip_skip"] or 0
    encoded = encode(tokens, encoders, run, clip_skip=skip)
    return conditioning_from_texts(request.positive, negative, encoded, encoders, clip_skip=skip)


# --- one text encoder, exported ---------------------------------------------------------------------------------------


class Reference:
    """transformers' text encoder with the web UI's "Original" emphasis, in PyTorch, from ids and weights."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def encode(self, chunks: list[list[tuple[int, float]]], clip_skip: int = 0) -> torch.Tensor:
        """(77 * chunks, D) of chunks of (id, weight)."""
        result = []
        for chunk in chunks:
            ids = torch.tensor([[49406, *(i for i, _ in chunk), *[49407] * (76 - len(chunk))]])
            weights = torch.ones(77)
            weights[1 : len(chunk) + 1] = torch.tensor([w for _, w in chunk])
            states = self.model(ids, output_hidden_states=True).hidden_states[-1 - clip_skip]
            norm = getattr(self.model, "text_model", self.model).final_layer_norm
            states = norm(states)[0]
            mean = states.mean()
            weighted = states * weights[:, None]
            result.append(weighted * (mean / weighted.mean()))
        return torch.cat(result)


@pytest.fixture(scope="module")
def reference(sd1: Exported) -> Reference:
    return Reference(sd1.checkpoint)


@pytest.mark.parametrize("clip_skip", [0, 2])
def test_weights_are_those_of_the_web_ui(pipe: Pipeline, reference: Reference, clip_skip: int) -> None:
    prompt = r"a (red:1.3) cat, [blurry] ((sky)) \(1999\) (gone:0)"
    weighted = [("a", 1), ("red", 1.3), ("cat,", 1), ("blurry", 1 / 1.1), ("sky", 1.21), ("(1999)", 1), ("gone", 0)]
    chunk = [(i, float(weight)) for text, weight in weighted for i in reference.ids(text)]
    got = of_call(pipe, prompt, prompt_syntax="web-ui", clip_skip=clip_skip).context[0]
    assert got.shape == (2, 77, 32)
    assert relative_error(got[1], reference.encode([chunk], clip_skip).numpy()) < 2e-5
    assert relative_error(got[0], reference.encode([[]]).numpy()) < 2e-5  # diffusers: no clip_skip for it
    plain = of_call(pipe, "a red cat, blurry sky (1999) gone", clip_skip=clip_skip).context[0, 1]
    assert relative_error(plain, got[1]) > 0.01


def test_each_chunk_keeps_its_own_mean(pipe: Pipeline, reference: Reference) -> None:
    got = of_call(pipe, "(a red cat:3) BREAK dog (sea:0.3)", prompt_syntax="web-ui").context[0, 1]
    chunks = [[("a red cat", 3.0)], [("dog", 1.0), ("sea", 0.3)]]
    expected = reference.encode([[(i, w) for text, w in chunk for i in reference.ids(text)] for chunk in chunks])
    assert relative_error(got, expected.numpy()) < 2e-5


def test_weights_of_one_change_nothing(pipe: Pipeline) -> None:
    plain, marked = of_call(pipe, "a red cat, sky"), of_call(pipe, "a (red:1) cat, sky", prompt_syntax="web-ui")
    assert np.array_equal(plain.context, marked.context)
    literal = of_call(pipe, "a (red:1.5) cat"), of_call(pipe, r"a \(red:1.5\) cat", prompt_syntax="web-ui")
    assert np.array_equal(literal[0].context, literal[1].context)


def test_long_prompts_are_chunks_side_by_side(pipe: Pipeline, reference: Reference) -> None:
    prompt = f"come and see {PHRASES * 6}"
    ids = reference.ids(prompt)
    assert 150 < len(ids) <= 225
    commas = [i + 1 for i, token in enumerate(ids) if token == 267]
    first = max(end for end in commas if end <= 75)
    second = max(end for end in commas if end <= first + 75)
    assert (first, second) == (73, 147)  # no chunk is full: a comma is near
    pieces = [ids[:first], ids[first:second], ids[second:]]
    expected = reference.encode([[(i, 1.0) for i in piece] for piece in pieces]).numpy()
    got = of_call(pipe, [prompt, "a cat"], negative_prompt=["dull", ""], long_prompt="chunk").context
    assert got.shape == (2, 2, 231, 32)
    assert relative_error(got[0, 1], expected) < 2e-5
    for context, text in ((got[1, 1], "a cat"), (got[0, 0], "dull"), (got[1, 0], "")):
        chunks = [[(i, 1.0) for i in reference.ids(text)], [], []]
        assert relative_error(context, reference.encode(chunks).numpy()) < 2e-5


def test_break_starts_a_chunk_and_long_sections_are_cut(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        got = of_call(pipe, f"a cat BREAK {PHRASES * 6}", prompt_syntax="web-ui", guidance_scale=1).context
    assert got.shape == (1, 1, 154, 32)
    assert "only the first 75 of each part are used" in caplog.text
    assert "long_prompt='chunk'" in caplog.text
    assert np.allclose(got[0, 0, :77], of_call(pipe, "a cat", guidance_scale=1).context[0, 0], atol=1e-6)
    assert np.allclose(got[0, 0, 77:], of_call(pipe, PHRASES * 6, guidance_scale=1).context[0, 0], atol=1e-6)
    longer = of_call(pipe, f"a cat BREAK {PHRASES * 6}", prompt_syntax="web-ui", long_prompt="chunk").context
    assert longer.shape == (1, 2, 77 * 4, 32)


def test_every_chunk_is_encoded_once(pipe: Pipeline) -> None:
    rows = []

    def run(graph: str, inputs: Any, layers: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return pipe.run(graph, inputs, layers)

    options: Any = {"negative_prompt": ["b", "", "b"], "num_images_per_prompt": 2}
    request = Request.from_call(pipe.bundle.manifest, SCHEDULER, ["a", "b", "a"], options)
    got = of_request(request, pipe.bundle.manifest.model.text_encoders, pipe.tokenizers, run)
    assert rows == [3]
    assert got.context.shape == (6, 2, 77, 32)
    assert np.array_equal(got.context[2, 1], got.context[0, 0])  # "b"
    assert not np.array_equal(got.context[2, 1], got.context[2, 0])


def test_embeddings_stand_beside_texts(pipe: Pipeline) -> None:
    states = of_call(pipe, ["a cat", "a dog"], guidance_scale=1).context[:, 0]
    text = of_call(pipe, ["a cat", "a dog"], negative_prompt=["x", "y"]).context
    assert np.array_equal(of_call(pipe, prompt_embeds=states, negative_prompt=["x", "y"]).context, text)
    assert np.array_equal(of_call(pipe, ["x", "y"], negative_prompt_embeds=states).context, text[:, ::-1])
    # A long text with short embeddings: these get an empty chunk.
    longer = of_call(pipe, prompt_embeds=states, negative_prompt=PHRASES * 4, long_prompt="chunk").context
    empty = of_call(pipe, "", guidance_scale=1).context[0, 0]
    assert np.array_equal(longer[:, 1], np.concatenate([states, np.stack([empty, empty])], axis=1))
    # Embeddings without texts may have any length.
    odd = np.random.default_rng(3).standard_normal((2, 13, 32)).astype(np.float32)
    assert np.array_equal(of_call(pipe, prompt_embeds=odd, negative_prompt_embeds=-odd).context[:, 0], -odd)


def test_a_picture_follows_its_weights(pipe: Pipeline) -> None:
    """Through the whole pipeline, at a length other than 77; the PNG records the prompt syntax."""
    size: Any = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 6}
    result = pipe(PHRASES + "(sea:1.4) BREAK b", prompt_syntax="web-ui", long_prompt="chunk", **size)
    context = of_call(pipe, PHRASES + "(sea:1.4) BREAK b", prompt_syntax="web-ui").context
    assert context.shape[2] == 154
    same = pipe(prompt_embeds=context[:, 1], negative_prompt_embeds=context[:, 0], output_type="latent", **size)
    assert relative_error(result.latents, same.latents) < 1e-6
    text = result.images[0].info
    assert '"prompt_syntax": "web-ui", "long_prompt": "chunk"' in text["latentrt"]
    assert '"negative_prompt": ""' in text["latentrt"]
    assert ", Emphasis: Original, " in text["parameters"]
    assert ", Emphasis: None, " in pipe("a (b)", **size).images[0].info["parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_syntax": "a1111"}, r"prompt_syntax='a1111': expected one of 'plain', 'web-ui'"),
        ({"long_prompt": "cut"}, r"long_prompt='cut': expected one of 'truncate', 'chunk'"),
        ({"prompt": "(a:2000)", "prompt_syntax": "web-ui"}, r"weight of 2000"),
        ({"negative_prompt": "(a:2000)", "prompt_syntax": "web-ui"}, r"weight of 2000"),
        ({"prompt": ["a", 3]}, r"expected a text or a non-empty list of texts"),
        ({"negative_prompt": 3}, r"negative_prompt=3: expected a text"),
        ({"prompt_2": "b"}, r"prompt_2 is for models with two text encoders; sd1 has one"),
        ({"negative_prompt_2": "b"}, r"negative_prompt_2 is for models with two"),
        ({"pooled_prompt_embeds": np.zeros((1, 8))}, r"pooled_prompt_embeds: this model has no pooled"),
        (
            {"negative_prompt": "b", "negative_prompt_embeds": np.zeros((1, 77, 32))},
            r"_embeds, not both",
        ),
        ({"negative_prompt_embeds": np.zeros((2, 77, 32))}, r"negative_prompt_embeds has 2 entries for 1 prompts"),
        ({"negative_prompt_embeds": np.zeros((1, 80, 32))}, r"of 80 tokens cannot be combined with a text.* of 77"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 77, 32)), "negative_prompt_embeds": np.zeros((1, 154, 32))},
            r"77 tokens, negative_prompt_embeds have 154",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.stream(**{"prompt": "a", **options})


# --- two text encoders, simulated -------------------------------------------------------------------------------------


class TwoEncoders:
    """SDXL's two text encoders, small and random, as graphs and in diffusers' pipeline."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, *, force_zeros: bool = True) -> None:
        shared: Any = {"vocab_size": 49408, "intermediate_size": 32, "num_attention_heads": 2, "eos_token_id": 49407}
        torch.manual_seed(31)
        first = CLIPTextConfig(hidden_size=16, num_hidden_layers=4, **shared)
        second = CLIPTextConfig(hidden_size=24, num_hidden_layers=4, projection_dim=20, hidden_act="gelu", **shared)
        self.models = {
            "text_encoder": CLIPTextModel(first).eval(),
            "text_encoder_2": CLIPTextModelWithProjection(second).eval(),
        }
        facts = manifest.model.text_encoders[0]
        self.encoders = (
            replace(facts, hidden_size=16, hidden_states=3),
            replace(facts, graph="text_encoder_2", hidden_size=24, hidden_states=3, pad=0, pooled=True),
        )
        graph = manifest.graphs["text_encoder"]
        outputs = (*graph.outputs, TensorSpec("pooled", "float32", ("n", 20)))
        model = replace(manifest.model, text_encoders=self.encoders, force_zeros_for_empty_prompt=force_zeros)
        graphs = {**manifest.graphs, "text_encoder_2": replace(graph, outputs=outputs)}
        self.manifest = replace(manifest, model=model, graphs=graphs)
        self.tokenizers = [Tokenizer(tokenizer._tokenizer, facts) for facts in self.encoders]
        self.force_zeros = force_zeros

    @torch.no_grad()
    def run(self, graph: str, inputs: Any, layers: Any) -> Any:
        """`hidden_states` as exported for SDXL: from the penultimate layer down, without the final norm."""
        out = self.models[graph](torch.from_numpy(inputs["input_ids"]), output_hidden_states=True)
        states = {"hidden_states": torch.stack(out.hidden_states[-2:0:-1], 1)[:, layers].numpy()}
        return states | ({"pooled": out[0].numpy()} if graph == "text_encoder_2" else {})

    def of_call(self, prompt: Any = None, **options: Any) -> Conditioning:
        request = Request.from_call(self.manifest, SCHEDULER, prompt, options)  # type: ignore[arg-type]
        return of_request(request, self.encoders, self.tokenizers, self.run)

    @torch.no_grad()
    def of_diffusers(self, prompt: Any, **options: Any) -> Conditioning:
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

        pipe = StableDiffusionXLPipeline(
            vae=None,
            unet=None,
            scheduler=EulerDiscreteScheduler(),
            text_encoder=self.models["text_encoder"],
            text_encoder_2=self.models["text_encoder_2"],
            tokenizer=CLIPTokenizer.from_pretrained(VOCABULARY, pad_token="<|endoftext|>", model_max_length=77),
            tokenizer_2=CLIPTokenizer.from_pretrained(VOCABULARY, pad_token="!", model_max_length=77),
            force_zeros_for_empty_prompt=self.force_zeros,
            add_watermarker=False,
        )
        positive, negative, pooled, negative_pooled = pipe.encode_prompt(prompt=prompt, device="cpu", **options)
        context = torch.stack([negative, positive], 1).numpy()
        return Conditioning(context, torch.stack([negative_pooled, pooled], 1).numpy())


@pytest.mark.parametrize("force_zeros", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a cat"},
        {"prompt": ["a cat", "two dogs"], "num_images_per_prompt": 2},
        {"prompt": "a cat", "negative_prompt": ""},
        {"prompt": ["a cat", "a dog"], "negative_prompt": ["dull", "dark"], "clip_skip": 1},
        {"prompt": "a cat", "prompt_2": "in oil", "negative_prompt": "dull", "negative_prompt_2": "a photo"},
        {"prompt": ["a", "b"], "prompt_2": ["c", "d"], "negative_prompt": ["e", "f"], "negative_prompt_2": ["g", "h"]},
        {"prompt": "a cat", "prompt_2": "", "negative_prompt": "dull", "negative_prompt_2": ""},
        {"prompt": PHRASES * 4, "negative_prompt": PHRASES * 5},
    ],
)
def test_two_text_encoders_as_in_diffusers(pipe: Pipeline, options: dict[str, Any], force_zeros: bool) -> None:
    two = TwoEncoders(pipe.bundle.manifest, pipe.tokenizer, force_zeros=force_zeros)
    got, expected = two.of_call(**options), two.of_diffusers(**options)
    assert got.pooled is not None
    assert expected.pooled is not None
    assert (got.context.shape, got.pooled.shape) == (expected.context.shape, expected.pooled.shape)
    assert (got.context.dtype, got.pooled.dtype) == (np.float32, np.float32)
    assert np.abs(got.context - expected.context).max() < 1e-5
    assert np.abs(got.pooled - expected.pooled).max() < 1e-5
    assert (not got.pooled[:, 0].any()) == (force_zeros and "negative_prompt" not in options)


def test_two_text_encoders_share_the_number_of_chunks(pipe: Pipeline) -> None:
    two = TwoEncoders(pipe.bundle.manifest, pipe.tokenizer)
    got = two.of_call("a cat", prompt_2=PHRASES * 4, long_prompt="chunk")
    short, empty = two.of_call("a cat"), two.of_call("", negative_prompt="")
    assert got.context.shape == (1, 2, 154, 40)
    assert np.allclose(got.context[0, 1, :77, :16], short.context[0, 1, :, :16], atol=1e-6)
    assert np.allclose(got.context[0, 1, 77:, :16], empty.context[0, 1, :, :16], atol=1e-6)
    assert not got.context[0, 0].any()  # zeros at any length
    assert got.pooled is not None
    assert not got.pooled[0, 0].any()


def test_pooled_embeddings_are_those_of_the_first_chunk(pipe: Pipeline) -> None:
    two = TwoEncoders(pipe.bundle.manifest, pipe.tokenizer)
    several = two.of_call("a", prompt_2="(a cat:1.4) BREAK a dog", prompt_syntax="web-ui").pooled
    first = two.of_call("b", prompt_2="a cat").pooled
    assert np.allclose(several, first, atol=1e-6)  # type: ignore[arg-type]  # weights do not reach it


def test_one_warning_for_both_text_encoders(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    TwoEncoders(pipe.bundle.manifest, pipe.tokenizer).of_call(PHRASES * 4)
    assert len(caplog.records) == 1


def test_embeddings_of_two_text_encoders(pipe: Pipeline) -> None:
    two = TwoEncoders(pipe.bundle.manifest, pipe.tokenizer)
    text = two.of_call("a cat", negative_prompt="dull")
    assert text.pooled is not None
    given = {
        "prompt_embeds": text.context[:, 1],
        "negative_prompt_embeds": text.context[:, 0],
        "pooled_prompt_embeds": text.pooled[:, 1],
        "negative_pooled_prompt_embeds": text.pooled[:, 0],
    }
    got = two.of_call(**given)
    assert np.array_equal(got.context, text.context)
    assert np.array_equal(got.pooled, text.pooled)  # type: ignore[arg-type]
    positive = {name: given[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    zeros = two.of_call(**positive)
    assert zeros.pooled is not None
    assert not zeros.context[:, 0].any()
    assert not zeros.pooled[:, 0].any()
    with pytest.raises(InputError, match=r"pooled_prompt_embeds is missing; .* \(1, 20\)"):
        two.of_call(prompt_embeds=given["prompt_embeds"])
    with pytest.raises(InputError, match=r"negative_pooled_prompt_embeds has shape \(1, 3\); .* \(1, 20\)"):
        two.of_call(**{**given, "negative_pooled_prompt_embeds": np.zeros((1, 3))})
    with pytest.raises(InputError, match=r"pooled_prompt_embeds: only allowed with prompt embeddings"):
        two.of_call("a", pooled_prompt_embeds=given["pooled_prompt_embeds"])
    with pytest.raises(InputError, match=r"\(prompts, tokens, 40\)"):
        two.of_call(prompt_embeds=np.zeros((1, 77, 16)))
