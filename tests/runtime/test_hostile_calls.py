"""Calls that would use up all memory, or that end in an error of somebody else; break tests found each kind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import ROOT, SHAPES

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.errors import BackendError, LatentRTError, unknown
from latentrt.runtime.latents import read_npy
from latentrt.runtime.request.recorded import recorded_in

SMALL: dict[str, Any] = {"height": 64, "width": 72, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle, device="cpu", backend="onnxruntime") as pipeline:
        yield pipeline


class Raises:
    def _fail(self, *_: object, **__: object) -> Any:
        raise RuntimeError("from the object")

    __array__ = __len__ = __index__ = __iter__ = __repr__ = _fail


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"height": 10**5000}, "a value of type int: expected an integer from 8"),
        ("a", {"seed": -(10**5000)}, "expected an integer from -2"),
        ("a", {"seed": 2**64 - 1, "num_images_per_prompt": 2}, "expected an integer from"),
        ("a", {"num_inference_steps": 10**7}, "from 1 to 10000; set LATENTRT_MAX_STEPS"),
        ("a", {"num_images_per_prompt": 1000, "height": 2048, "width": 2048}, "set LATENTRT_MAX_PIXELS"),
        ("a" * 200_000, {"long_prompt": "chunk"}, "200,000 characters: expected at most 100,000"),
        ("a, " * 30_000, {"long_prompt": "chunk"}, "tokens: expected at most 9,856"),
        (["a"] * 2000, {}, "at most 1024 texts"),
        (None, {"prompt_embeds": np.zeros((1, 9857, 64))}, "9,857 tokens: expected at most 9,856"),
        (None, {"prompt_embeds": np.zeros((1, 9779, 64)), "num_images_per_prompt": 500}, "set LATENTRT_MAX_TOKENS"),
        (Raises(), {}, "prompt"),
        ("a", {"guidance_scale": Raises()}, "guidance_scale=<Raises instance at"),
        ("a", {"latents": Raises()}, "latents"),
        ("a", {"image": [Raises()]}, "image has type Raises"),
        ("a", {"image": "x" * 10**6}, "cannot be read: .*too long"),
        ("a", {"latents": "x" * 10**6 + ".npy"}, "not a valid .npy file: .*too long"),
        ("a", {"latents": np.full((1, 4, 8, 9), np.nan)}, "latents holds NaN"),
        (None, {"prompt_embeds": np.full((1, 77, 64), np.inf)}, "prompt_embeds holds NaN or infinity"),
        ("a", {"scheduler": "ddpm", "num_inference_steps": 1000, "num_images_per_prompt": 999}, "noise 999 times"),
        ("a", {"scheduler": {"trained_betas": {0.1, 0.2}}}, "trained_betas="),
        ("a", {"scheduler": {"num_train_timesteps": 10**9}}, "from 2 to 100000"),
        ("a", {"scheduler": {"beta_end": -1}}, "beta_end=-1"),
        ("a", {"scheduler": {"_class_name": []}}, "_class_name="),
        ("a", {"scheduler": {"_use_default_values": np.int64(3)}}, "_use_default_values=3"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_allowed(pipe: Pipeline, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, LatentRTError), match=message) as caught:
        pipe(prompt, **{**SMALL, **options})
    assert len(str(caught.value)) < 700


def test_configs_of_numpy_values_are_drawn_and_recorded(pipe: Pipeline, tmp_path: Path) -> None:
    """Infinity is text in JSON, and numbers of numpy are plain ones."""
    betas = [np.float32(b) for b in np.linspace(0.001, 0.02, 50)]
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": np.int64(50),
        "trained_betas": betas,
        "lambda_min_clipped": -np.inf,
    }
    picture = pipe(
        "a", seed=[np.int64(5)], **{**SMALL, "scheduler": config, "num_inference_steps": np.int64(2)}
    ).images[0]
    picture.save(tmp_path / "a.png")
    recorded = recorded_in(tmp_path / "a.png", {}).options
    again = pipe(recorded.pop("prompt"), **recorded).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(picture))


@pytest.mark.parametrize(
    "header",
    ["(1000000000000,)", "((((", "(10**9,)", "(-1,)", "(True,)", "(" * 5000, "\0", "(1, 4, 8, 9)", f"({10**400},)"],
)
def test_absurd_headers_of_arrays_are_refused(tmp_path: Path, header: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {header}, }}\n".encode()
    file = tmp_path / "a.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(InputError, match="is not a valid"):
        read_npy(file)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|u1", "?"])
def test_arrays_are_read_as_numpy_does(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.array(np.random.default_rng(0).integers(0, 2, (3, 4, 5)), dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy"))
    assert read_npy(tmp_path / "a.npy").dtype == array.dtype


@pytest.mark.parametrize("name", ["pipe.png", "pipe.npy", "zero.png", "loop.png", "folder.npy", "a.eps"])
def test_what_is_no_file_of_a_picture_is_refused(pipe: Pipeline, tmp_path: Path, name: str) -> None:
    """Reading a pipe would never end, and encapsulated PostScript is a program."""
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(InputError, match=name):
        pipe("a", **SMALL, image=tmp_path / name)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LAB", "La", "RGBa", "I;16", "F", "HSV", "PA"])
def test_pictures_of_all_modes_are_read_or_refused(pipe: Pipeline, mode: str) -> None:
    picture = Image.new(mode, (72, 64))
    picture.info["exif"] = b"Exif\0\0damaged"
    for options in ({"image": picture}, {"image": Image.new("RGB", (72, 64)), "mask_image": picture}):
        try:
            pipe("a", strength=1.0, **SMALL, **options)
        except InputError as error:
            assert f"mode {mode}" in str(error)  # noqa: PT017


def test_closed_pictures_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    picture.close()
    with pytest.raises(InputError, match="image cannot be read"):
        pipe("a", **SMALL, image=picture)


def test_unknown_names_are_cut() -> None:
    assert len(unknown("argument", "x" * 10**6, ["height"])) < 200


@pytest.mark.parametrize(
    ("drawn", "change"),
    [
        ({"timesteps": [800.0, 400.0], "scheduler": "euler"}, {"num_inference_steps": 3}),
        ({"sigmas": [9.0, 3.0, 0.0], "scheduler": "euler"}, {"timesteps": [700.0]}),
        ({"num_inference_steps": 2}, {"timesteps": [700.0], "scheduler": "euler"}),
        ({"timesteps": [800.0, 400.0], "scheduler": "euler"}, {"scheduler": "euler_a", "num_inference_steps": 2}),
        ({"eta": 0.5, "scheduler": "ddim"}, {"scheduler": "unipc"}),
    ],
)
def test_a_change_wins_over_what_was_recorded(
    pipe: Pipeline, tmp_path: Path, drawn: dict[str, Any], change: dict[str, Any]
) -> None:
    size = {"height": 64, "width": 64, "seed": 3}
    pipe("a red star", **size, **drawn).images[0].save(tmp_path / "a.png")
    options = recorded_in(tmp_path / "a.png", change).options
    assert options.items() >= change.items()
    again = pipe(options.pop("prompt"), **options).latents
    assert np.array_equal(again, pipe("a red star", **size, **({"scheduler": drawn.get("scheduler")} | change)).latents)


def test_long_prompts_are_encoded_in_small_batches(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    run = pipe._stages.run

    def counted(graph: str, inputs: Any, layers: Any = None) -> Any:
        if graph == "text_encoder":
            batches.append(len(inputs["input_ids"]))
        return run(graph, inputs, layers)

    monkeypatch.setattr(pipe._stages, "run", counted)
    text = ", ".join(f"star {i}" for i in range(1200))
    many = pipe(text, **SMALL, seed=1, long_prompt="chunk").latents
    assert max(batches) == 16
    assert sum(batches) > 40
    monkeypatch.setattr("latentrt.runtime.text.conditioning.AT_ONCE", 1000)
    np.testing.assert_allclose(many, pipe(text, **SMALL, seed=1, long_prompt="chunk").latents, atol=1e-5)


def test_no_memory_is_an_error_of_the_input(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipe._stages, "slots", full)
    with pytest.raises(InputError, match="needs more memory than there is"):
        pipe("a", **SMALL)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nothing_is_drawn_after_close(backend: str) -> None:
    pipe = Pipeline.load(SHAPES.bundle, device="cpu", backend=backend)
    stream = pipe.stream("a", **{**SMALL, "num_inference_steps": 4})
    step = next(stream)
    pipe.close()
    for call in (
        lambda: next(stream),
        lambda: pipe("a", **SMALL),
        lambda: pipe.set_loras({}),
        lambda: step.preview("vae"),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()
    with pytest.raises(BackendError, match="closed"):
        pipe._backend.engine("vae_decoder")


def test_drawing_leaves_no_traces_at_home(tmp_path: Path) -> None:
    """ONNX Runtime counts its uses in the home folder, unless it is told not to before it is imported."""
    code = (
        "from latentrt.runtime import Pipeline\n"
        "with Pipeline.load(backend='onnxruntime', device='cpu') as pipe:\n"
        "    pipe('a', height=64, width=64, num_inference_steps=1)\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "typings")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".cache/latentrt" not in str(path)]
    assert not left
