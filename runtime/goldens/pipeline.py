"""Compares a backend with a bundle's golden outputs from PyTorch: tokenizer, text encoder, loop, decoder."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, Golden, Manifest, takes
from latentrt.runtime.errors import BundleError
from latentrt.runtime.loop.resident import run
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.text import Tokenizer

from .checks import GoldenCheck, alike, damaged, stored_arrays, within


def verify_goldens(pipe: Pipeline) -> list[GoldenCheck]:
    """Compare the pipeline with the goldens of its bundle, stage by stage. Raises `BundleError` if it has none.

    If the golden input of a stage is stored, the stage starts from it, so that a fault shows in its own stage.
    """
    golden = pipe.bundle.manifest.golden
    if golden is None:
        raise BundleError(f"{pipe.bundle.path} has no golden outputs: export it again")
    arrays = _golden_arrays(pipe.bundle, golden)
    checks, hidden_states = _check_texts(pipe, golden, arrays)
    latents = _denoised(pipe, golden, arrays, hidden_states)
    image = pipe.run("vae_decoder", {"latents": latents})["images"][0]
    checks += [
        within("latents", latents[0], arrays["latents"], golden.latents_tolerance),
        alike("image", image, arrays["image"], golden.psnr_floor),
    ]
    if "preview" in arrays:
        preview = pipe.run("preview_decoder", {"latents": arrays["latents"][None]})["images"][0]
        checks.append(alike("preview", preview, arrays["preview"], golden.psnr_floor))
    return checks


def _golden_arrays(bundle: Bundle, golden: Golden) -> dict[str, NDArray[Any]]:
    """The arrays of the file, all of the shapes that the checks need. Raises `BundleError` if it is damaged."""
    file = bundle.file(golden.file)
    arrays = stored_arrays(file, "checkpoint")
    try:
        plan = {name.removeprefix("plan."): array for name, array in arrays.items() if name.startswith("plan.")}
        draws = int(Plan.from_arrays(plan).draws.sum())
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(file, "checkpoint", error) from error
    for name, (kind, shape) in _expected(bundle.manifest, golden, draws).items():
        array = arrays.get(name)
        fits = array is not None and array.dtype.kind == kind and len(array.shape) == len(shape)
        if (
            array is None
            or not fits
            or any(want not in (-1, has) for want, has in zip(shape, array.shape, strict=True))
        ):
            has = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise BundleError(f"{file} is damaged: {name} {has}; expected {shape}, -1 for any. Export it again")
        if not np.isfinite(array).all():
            raise BundleError(f"{file} is damaged: {name} holds NaN or infinity. Export it again")
    return arrays


def _expected(manifest: Manifest, golden: Golden, draws: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> kind of dtype and shape of the arrays besides the plan."""
    model = manifest.model
    size = golden.height // model.vae_scale_factor, golden.width // model.vae_scale_factor
    channels = model.latent_channels
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "noise": ("f", (1 + draws, channels, *size)),
        "latents": ("f", (channels, *size)),
        "image": ("u", (golden.height, golden.width, 3)),
    }
    for facts in model.text_encoders:
        suffix = facts.graph.removeprefix("text_encoder")
        expected[f"input_ids{suffix}"] = ("i", (2, facts.max_length))
        expected[f"embedding{suffix}"] = ("f", (2, facts.max_length, -1))
    inputs = {spec.name: spec.shape for spec in manifest.graphs["time"].inputs if spec.name != "timesteps"}
    expected |= {f"input.{name}": ("f", (2, int(shape[1]))) for name, shape in inputs.items()}
    if "preview_decoder" in manifest.graphs:
        expected["preview"] = expected["image"]
    if takes(manifest.graphs["denoise"], "extra"):
        expected["input.extra"] = ("f", (1, channels + 1, *size))
    return expected


def _check_texts(pipe: Pipeline, golden: Golden, arrays: Mapping[str, NDArray[Any]]) -> tuple[list[GoldenCheck], Any]:
    """The checks of tokenizers and text encoders, and hidden states (2, S, D) of [negative, positive]."""
    texts = [golden.negative_prompt, golden.prompt]
    checks, states = [], []
    for facts in pipe.bundle.manifest.model.text_encoders:
        suffix = facts.graph.removeprefix("text_encoder")
        expected = arrays[f"input_ids{suffix}"]
        equal = np.array_equal(
            Tokenizer.from_file(pipe.bundle.file(facts.tokenizer), facts).encode(texts).ids, expected
        )
        checks.append(GoldenCheck(f"ids{suffix}", equal, "equal" if equal else "the tokenizer returns different ids"))
        outputs = pipe.run(facts.graph, {"input_ids": expected})
        states.append(outputs["hidden_states"][:, 0])
        known = arrays[f"embedding{suffix}"]
        if known.shape[2] > facts.hidden_size:
            raise BundleError(f"{golden.file} is damaged: embedding{suffix} has more channels than the text encoder")
        name, limit = f"text embedding{suffix}", golden.embedding_tolerance
        checks.append(within(name, states[-1][:, :, : known.shape[2]], known, limit))
        if facts.pooled:
            checks.append(within("pooled text", outputs["pooled"], arrays["input.pooled"], limit))
    return checks, np.concatenate(states, axis=2)


def _denoised(pipe: Pipeline, golden: Golden, arrays: Mapping[str, NDArray[Any]], hidden_states: Any) -> Any:
    """Latents (1, C, h, w) after the golden's plan, from its noise."""
    plan = Plan.from_arrays({k.removeprefix("plan."): v for k, v in arrays.items() if k.startswith("plan.")})
    noise, scale = arrays["noise"], golden.guidance_scale
    wanted = _expected(pipe.bundle.manifest, golden, 0)
    inputs = {name.removeprefix("input."): arrays[name] for name in wanted if name.startswith("input.")}
    extra = inputs.pop("extra", None)
    context = hidden_states if scale > 1 else hidden_states[1:]
    weights = [1 - scale, scale] if scale > 1 else [1.0]
    trajectory = Trajectory(
        plan,
        context,
        np.tile(np.array(weights, np.float32), (len(plan), 1)),
        noise,
        extra=None if extra is None else extra[0],
        time_inputs={name: array[-len(weights) :] for name, array in inputs.items()},
    )
    with closing(pipe.slots(trajectory.bucket, 1)) as slots:
        *_, (last,) = run(slots, [trajectory])
        return last.fetch(0).result()[None]
