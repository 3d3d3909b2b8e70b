"""The pipeline: what it loads and computes, arguments, errors, threads, PNG text."""

import json
import logging
import shutil
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES, Exported
from support.simulator import machine

import latentrt.runtime
from latentrt.runtime import (
    BackendError,
    InputError,
    LatentRTError,
    NonFiniteError,
    Pipeline,
    Plan,
    SchedulerError,
    TorchGenerator,
)
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import relative_error

FORBIDDEN = ("torch", "transformers", "diffusers", "onnx", "onnx_ir", "onnxscript", "latentrt.export")
SMALL: dict[str, Any] = {"num_inference_steps": 3, "height": 32, "width": 40, "output_type": "latent"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_generation_loads_no_pytorch(sd1: Exported, tmp_path: Path, backend: str) -> None:
    script = (
        "import sys; from latentrt.runtime.cli import main\n"
        "status = main(['generate', 'a cat', '--bundle', sys.argv[1], '-o', sys.argv[2], '--steps', '2',\n"
        "               '--backend', sys.argv[3]])\n"
        "print(status, sorted(n for n in sys.argv[4:] if n in sys.modules))"
    )
    command = [sys.executable, "-c", script, str(sd1.bundle), str(tmp_path / "x.png"), backend, *FORBIDDEN]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "0 []"
    assert child.stderr == ""  # no warnings, and no progress bar in a pipe


def test_the_runtime_imports_with_everything_else_blocked() -> None:
    blocked = (*FORBIDDEN, "onnxruntime", "openvino", "tokenizers", "PIL", "safetensors", "tqdm")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from latentrt.runtime import *\n"  # public names are imported at first use
        "import latentrt.runtime.backends, latentrt.runtime.cli; print(Pipeline.__name__, Plan.__name__)"
    )
    child = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert child.stdout == "Pipeline Plan\n"


def test_the_public_names() -> None:
    assert latentrt.runtime.__all__ == sorted(latentrt.runtime.__all__)
    assert all(hasattr(latentrt.runtime, name) for name in latentrt.runtime.__all__)
    assert {*latentrt.runtime.__all__} <= {*dir(latentrt.runtime)}
    with pytest.raises(AttributeError, match="has no attribute 'Pipelines'"):
        _ = latentrt.runtime.Pipelines


class Recorder:
    """A backend that records the sizes of its slots."""

    def __init__(self, pipe: Pipeline) -> None:
        self.buckets: list[Any] = []
        backend = pipe._backend
        self.name, self.engine, self.close = backend.name, backend.engine, backend.close
        self.nets = backend.nets
        self._slots = backend.slots

    def slots(self, bucket: Any, count: int) -> Any:
        self.buckets.append(bucket)
        return self._slots(bucket, count)


@pytest.mark.parametrize(("scale", "groups"), [(7.5, 2), (1.01, 2), (1.0, 1), (0.0, 1)])
def test_without_guidance_the_unconditional_half_is_not_computed(pipe: Pipeline, scale: float, groups: int) -> None:
    recorder = Recorder(pipe)
    Pipeline(pipe.bundle, recorder)("a", guidance_scale=scale, negative_prompt="b", **SMALL)
    assert [bucket.groups for bucket in recorder.buckets] == [groups]


def test_an_image_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    options = {**SMALL, "scheduler": "euler_a"}
    batch = pipe(["a cat", "a dog"], seed=[5, 9], negative_prompt=["x", "y"], **options)
    for i, (prompt, seed, negative) in enumerate((("a cat", 5, "x"), ("a dog", 9, "y"))):
        single = pipe(prompt, seed=seed, negative_prompt=negative, **options)
        assert relative_error(single.latents[0], batch.latents[i]) < 1e-5
    several = pipe("a cat", seed=5, num_images_per_prompt=3, **SMALL)
    assert several.seeds == (5, 6, 7)
    assert relative_error(pipe("a cat", seed=7, **SMALL).latents[0], several.latents[2]) < 1e-5


def test_seeds_are_drawn_and_told(pipe: Pipeline) -> None:
    first, second = pipe("a", **SMALL), pipe("a", **SMALL)
    assert first.seeds != second.seeds
    assert np.array_equal(pipe("a", seed=first.seeds[0], **SMALL).latents, first.latents)


def test_latents_embeddings_and_plans_can_be_given(pipe: Pipeline) -> None:
    expected = pipe("a cat", seed=8, **SMALL).latents
    noise = TorchGenerator(8).randn((1, 4, 8, 10))
    assert np.array_equal(pipe("a cat", latents=noise, **SMALL).latents, expected)
    ids = pipe.tokenizer.encode(["a cat", ""]).ids
    states = pipe.run("text_encoder", {"input_ids": ids})["hidden_states"][:, 0]
    given = pipe(prompt_embeds=states[:1], negative_prompt_embeds=states[1:], seed=8, **SMALL).latents
    assert relative_error(given, expected) < 1e-6
    plan = Plan.from_config(pipe.bundle.read_json(pipe.bundle.manifest.scheduler), 3)
    options = {k: v for k, v in SMALL.items() if k != "num_inference_steps"}
    assert np.array_equal(pipe("a cat", scheduler=plan, seed=8, **options).latents, expected)


def test_the_seeds_noise_is_of_the_chosen_generator(pipe: Pipeline, sd1: Exported, tmp_path: Path) -> None:
    for rng in ("cpu", "cuda"):
        noise = TorchGenerator(21, rng).randn((1, 4, 8, 10))
        given = pipe("a cat", latents=noise, **SMALL).latents
        assert np.array_equal(pipe("a cat", seed=21, rng=rng, **SMALL).latents, given)
    # Further draws continue from the same generator, as the plan says, with no others in between.
    plan = Plan.from_config({"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon"}, 3)
    options = {k: v for k, v in SMALL.items() if k != "num_inference_steps"}
    expected = pipe("a cat", scheduler=plan, seed=21, rng="cuda", **options).latents
    assert relative_error(pipe("a cat", scheduler=plan, seed=21, rng="cpu", **options).latents, expected) > 0.1
    mixed = TorchGenerator(21, "cuda").randn((1, 4, 8, 10))
    assert relative_error(pipe("a cat", scheduler=plan, seed=21, latents=mixed, **options).latents, expected) > 1e-3
    command = ["generate", "a cat", "--bundle", str(sd1.bundle), "-o", str(tmp_path / "x.png"), "--steps", "2"]
    assert main([*command, "--seed", "3", "--rng", "cuda"]) == 0
    text = Image.open(tmp_path / "x.png").text
    assert ", RNG: NV, " in text["parameters"]
    assert json.loads(text["latentrt"])["rng"] == "cuda"


def test_stream_shows_previews_and_can_be_left(pipe: Pipeline) -> None:
    options = {**SMALL, "output_type": "pil", "seed": 4}
    steps = []
    for step in pipe.stream("a cat", **options):
        steps.append((step.index, step.total, step.result is None))
        preview = step.preview("vae")
        assert [image.size for image in (*preview, *step.preview())] == [(40, 32)] * 2
    assert steps == [(0, 3, True), (1, 3, True), (2, 3, False)]
    assert step.result is not None
    assert np.array_equal(step.latents(), step.result.latents)
    # The last prediction is the final picture.
    assert np.abs(np.asarray(preview[0], int) - np.asarray(step.result.images[0], int)).max() <= 1
    stream = pipe.stream("a cat", **options)
    next(stream)
    stream.close()


def test_threads_draw_the_same_pictures(pipe: Pipeline) -> None:
    expected = [pipe("a cat", seed=seed, **SMALL).latents for seed in range(4)]
    got: dict[int, Any] = {}

    def draw(seed: int) -> None:
        got[seed] = pipe("a cat", seed=seed, **SMALL).latents

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[seed], expected[seed]) for seed in range(4))


def test_timings_name_every_stage(pipe: Pipeline) -> None:
    timings = pipe("a", **{**SMALL, "output_type": "np"}).timings
    assert list(timings) == ["tokenize", "text_encoder", "denoise", "vae_decoder", "total"]
    assert all(value > 0 for value in timings.values())
    assert sum(timings.values()) - timings["total"] <= timings["total"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"height": 70}, InputError, r"height=70: expected a multiple of 4; the nearest are 68 and 72"),
        ({"width": 0}, InputError, r"width=0: expected an integer from 4 to 16384"),
        ({"height": 64.0}, InputError, r"height=64.0: expected an integer"),
        ({"num_inference_steps": 0}, InputError, r"num_inference_steps=0: expected an integer from 1 to"),
        ({"num_inference_steps": 1001}, SchedulerError, r"from 1 to 1000"),
        ({"scheduler": "euler_b"}, SchedulerError, r"(?s)euler_b.*euler_a"),
        ({"scheduler": {"beta_strat": 1}}, SchedulerError, r"(?s)beta_strat.*beta_start"),
        ({"guidance_scale": "high"}, InputError, r"guidance_scale='high': expected a number"),
        ({"guidance_rescale": 1.5}, InputError, r"guidance_rescale=1.5: expected a number from 0 to 1"),
        ({"clip_skip": 3}, InputError, r"clip_skip=3: expected an integer from 0 to 2: this text encoder has 3 layers"),
        ({"num_images_per_prompt": 0}, InputError, r"num_images_per_prompt=0"),
        ({"seed": [1, 2]}, InputError, r"2 seeds for 1 images"),
        ({"seed": 2**64}, InputError, r"seed="),
        ({"seed": "x"}, InputError, r"seed='x'"),
        ({"negative_prompt": ["a", "b"]}, InputError, r"negative_prompt has 2 entries for 1 prompts"),
        ({"latents": np.zeros((1, 4, 8, 8))}, InputError, r"shape \(1, 4, 8, 8\); expected \(1, 4, 16, 16\)"),
        ({"prompt_embeds": np.zeros((1, 77, 32))}, InputError, r"either prompt or prompt_embeds"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 77, 31))},
            InputError,
            r"\(1, 77, 31\).*\(prompts, tokens, 32\)",
        ),
        ({"prompt": []}, InputError, r"non-empty list"),
        ({"prompt": 5}, InputError, r"prompt=5"),
        ({"rng": "gpu"}, InputError, r"'gpu': expected one of 'cpu', 'cuda'"),
        ({"output_type": "jpg"}, InputError, r"'jpg': expected one of 'pil', 'np', 'latent'"),
        ({"guidence_scale": 3}, InputError, r"unknown argument 'guidence_scale'; did you mean 'guidance_scale'"),
        ({"eta": 0.5, "scheduler": "euler"}, SchedulerError, r"eta"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(
    pipe: Pipeline, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pipe.stream(**{"prompt": "a", **options})  # no step is run
    assert isinstance(caught.value, LatentRTError)
    assert isinstance(caught.value, ValueError)


def test_an_empty_prompt_is_allowed(pipe: Pipeline) -> None:
    assert np.isfinite(pipe("", **SMALL).latents).all()


def test_a_long_prompt_is_cut_with_a_warning(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    words = ["cat"] * 75 + ["heart"] * 2000
    prompt = " ".join(words)
    assert len(prompt) > 10_000
    with caplog.at_level(logging.WARNING):
        cut = pipe(prompt, seed=1, **SMALL)
    message = caplog.records[0].getMessage()
    assert "2075 tokens and only the first 75 are used" in message
    assert "dropped: 'heart heart" in message
    assert "characters)" in message
    assert len(message) < 400
    caplog.clear()
    kept = pipe(" ".join(words[:75]), seed=1, **SMALL)
    assert not caplog.records
    assert np.array_equal(kept.latents, cut.latents)


@pytest.mark.parametrize("graph", ["denoise", "vae_decoder"])
@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_nan_is_an_error_and_never_a_black_picture(sd1: Exported, tmp_path: Path, graph: str, output_type: str) -> None:
    folder = Path(shutil.copytree(sd1.bundle, tmp_path / "copy"))
    weights = folder / f"{graph}.onnx.data"
    data = np.fromfile(weights, np.float32)
    data[:] = np.nan
    data.tofile(weights)
    with Pipeline.load(folder, device="cpu") as pipe:
        if graph == "vae_decoder" and output_type == "latent":
            pipe("a", **SMALL)
            return
        with pytest.raises(NonFiniteError, match=r"image 0, 1 of 2 holds NaN or infinity.*fp32"):
            pipe(["a", "b"], **{**SMALL, "output_type": output_type})


def test_backends_are_chosen_by_name(sd1: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'tensorflow'; did you mean"):
        Pipeline.load(sd1.bundle, backend="tensorflow")
    with pytest.raises(BackendError, match=r"'cuda' here \(usable: cpu\).*latentrt\[cuda\]"):
        Pipeline.load(sd1.bundle, device="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"no backend is installed: pip install 'latentrt\[cpu\]'"):
        Pipeline.load(sd1.bundle)


def test_auto_warns_and_goes_on_where_a_gpu_does_not_work(
    sd1: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An onnxruntime built for CUDA, without a GPU, and one that silently falls back to the CPU."""
    for module in ("choice", "ort.session"):
        monkeypatch.setattr(f"latentrt.runtime.backends.{module}.available_devices", lambda: ("cuda", "cpu"))
    with Pipeline.load(sd1.bundle) as pipe:
        assert pipe.backend == "onnxruntime-cpu"
    assert "onnxruntime-cuda is not used: onnxruntime-cuda needs an NVIDIA GPU" in caplog.text
    with machine() as gpu:
        with pytest.raises(BackendError, match=r"could not use CUDAExecutionProvider.*onnxruntime-gpu\[cuda,cudnn\]"):
            Pipeline.load(sd1.bundle, device="cuda")
        assert not any(gpu.cuda.held.values())


def test_a_closed_pipeline_says_so(sd1: Exported) -> None:
    with Pipeline.load(sd1.bundle) as pipe:
        stream = pipe.stream("a", **SMALL)
        next(stream)
        engine = pipe._backend.engine("denoise")
    with pytest.raises(BackendError, match=r"denoise.onnx is closed"):
        engine.run({})


def test_png_text_tells_how_the_picture_was_made(pipe: Pipeline, tmp_path: Path) -> None:
    options = {**SMALL, "output_type": "pil", "scheduler": "euler_a", "guidance_scale": 3.5, "clip_skip": 1}
    result = pipe("ein Stern ☆, (round:1.2)", negative_prompt="blurry", seed=77, **options)
    result.images[0].save(tmp_path / "a.png")
    text = Image.open(tmp_path / "a.png").text
    facts = json.loads(text["latentrt"])
    assert facts["prompt"] == "ein Stern ☆, (round:1.2)"
    assert (facts["seed"], facts["scheduler"], facts["width"], facts["height"]) == (77, "euler_a", 40, 32)
    first, second, third = text["parameters"].split("\n")
    assert (first, second) == (facts["prompt"], "Negative prompt: blurry")
    settings = dict(setting.split(": ") for setting in third.split(", "))
    checkpoint = pipe.bundle.manifest.checkpoint
    assert (
        settings
        == {
            "Steps": "3",
            "Sampler": "Euler a",
            "CFG scale": "3.5",
            "Seed": "77",
            "RNG": "CPU",
            "Emphasis": "None",
            "Clip skip": "2",  # as in web UIs
            "Size": "40x32",
            "Model hash": checkpoint.sha256[:10],
            "Model": checkpoint.name,
            "Version": f"latentrt {version('latentrt')}",
        }
    )


def test_generate_writes_numbered_files(sd1: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "cats.png"
    command = ["generate", "a cat", "--bundle", str(sd1.bundle), "-o", str(out), "--steps", "2", "--seed", "3"]
    assert main([*command, "--num-images", "2"]) == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["cats-0.png", "cats-1.png"]
    assert "cats-1.png (seed 4, " in capsys.readouterr().out
    assert main([*command[:4], "-o", str(tmp_path / "x.jpg")]) == 1
    assert "x.jpg does not end in .png" in capsys.readouterr().err
    assert main([*command, "--height", "30"]) == 1
    assert capsys.readouterr().err == "latentrt: height=30: expected a multiple of 4; the nearest are 28 and 32\n"


def test_the_embedded_bundle_is_the_default() -> None:
    with Pipeline.load() as pipe:
        assert pipe.bundle.path.resolve() == SHAPES.bundle.resolve()
        result = pipe("a small green square on a red background", seed=1, num_inference_steps=2)
        assert result.images[0].size == (128, 128)
