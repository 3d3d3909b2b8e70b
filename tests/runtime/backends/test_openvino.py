"""The OpenVINO backend: the same pictures as ONNX Runtime in every precision, LoRA, threads, selection by `auto`."""

import gc
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from support.exports import SHAPES, Exported
from support.lora_files import halves

from latentrt.runtime import BackendError, InputError, Pipeline
from latentrt.runtime.backends.openvino_backend import KEPT_SIZES
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens
from latentrt.runtime.weights import changed_weights

PROMPT = "a large red star on a blue background"
FEW: dict[str, Any] = {"num_inference_steps": 4, "height": 72, "width": 104, "seed": 11}
PSNR, LATENTS = 60, 1e-4


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(backend="openvino") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def ort() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        yield pipe


def same(pipe: Pipeline, ort: Pipeline, **options: Any) -> None:
    """Assert equal latents and pictures, and different ones for another seed."""
    got, expected = (p(PROMPT, output_type="np", **{**FEW, **options}) for p in (pipe, ort))
    assert relative_error(got.latents, expected.latents) < LATENTS
    assert psnr(np.asarray(got.images), np.asarray(expected.images)) > PSNR
    other = pipe(PROMPT, output_type="latent", **{**FEW, **options, "seed": 12})
    assert relative_error(other.latents, expected.latents) > 100 * LATENTS


@pytest.mark.parametrize(("guidance_scale", "images"), [(1.0, 1), (5.0, 3)])
def test_pictures_are_those_of_onnxruntime(pipe: Pipeline, ort: Pipeline, guidance_scale: float, images: int) -> None:
    for scheduler in ("dpm++_2m_karras", "euler_a"):
        call = {"scheduler": scheduler, "guidance_scale": guidance_scale, "num_images_per_prompt": images}
        same(pipe, ort, **call, guidance_rescale=0.5)


def test_pictures_as_input(pipe: Pipeline, ort: Pipeline, tmp_path: Path) -> None:
    """With a mask, an ordinary UNet's state is blended after each call."""
    Image.effect_noise((104, 72), 90).save(tmp_path / "photo.png")
    Image.linear_gradient("L").save(tmp_path / "mask.png")
    call = {"image": tmp_path / "photo.png", "strength": 0.7, "scheduler": "euler_a"}
    same(pipe, ort, **call)
    same(pipe, ort, **call, mask_image=tmp_path / "mask.png")


def test_goldens_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--backend", "openvino"]) == 0
    assert "reproduces its goldens on openvino-cpu" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sdxl-fp32", "sd1-inpaint-fp32", "shapes-fp16", "sd1-bf16"])
def test_goldens_of_every_family_and_precision(exported: Callable[[str], Exported], name: str) -> None:
    """Including bfloat16, for which ONNX Runtime has no CPU kernels."""
    with Pipeline.load(exported(name).bundle, backend="openvino") as pipe:
        checks = verify_goldens(pipe)
    assert all(check.passed for check in checks), checks


@pytest.mark.slow
def test_sizes_take_turns(exported: Callable[[str], Exported]) -> None:
    """More sizes than are kept."""
    bundle = exported("sd2-fp32-opset18").bundle
    sizes = [(64, 64 + 8 * i) for i in range(KEPT_SIZES + 1)]
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    with Pipeline.load(bundle, backend="openvino") as pipe, Pipeline.load(bundle, backend="onnxruntime") as ort:
        for height, width in (*sizes, sizes[0]):
            got, expected = (p(PROMPT, height=height, width=width, **options).latents for p in (pipe, ort))
            assert relative_error(got, expected) < LATENTS
        assert len(pipe._backend._engines.loaded({"denoise"})) == KEPT_SIZES


def test_threads_draw_the_same_pictures(pipe: Pipeline) -> None:
    options = {**FEW, "output_type": "np"}
    expected = [pipe(PROMPT, **{**options, "seed": seed}).images for seed in range(4)]
    got: dict[int, Any] = {}

    def draw(seed: int) -> None:
        got[seed] = pipe(PROMPT, **{**options, "seed": seed}).images

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[seed], expected[seed]) for seed in range(4))
    assert not np.array_equal(expected[0], expected[1])


# --- changed weights ------------------------------------------------------------------------------------------------


def lora_file(path: Path, bundle: Path, seed: int) -> Path:
    """A LoRA for any bundle: some weights of the text encoder, of `context` and of `denoise`."""
    endings = (".attn1.to_q.weight", ".attn2.to_v.weight", ".resnets.0.conv2.weight", ".self_attn.v_proj.weight")
    tensors = {}
    for parameter in Bundle.open(bundle).manifest.weights:
        if parameter.endswith(endings) and not parameter.startswith("vae"):
            key = parameter.removesuffix(".weight").replace("text_encoder.", "text_encoder.text_model.")
            down, up = halves(bundle, parameter, 4, seed + len(tensors))
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    save_file(tensors, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "sd2-fp16", "sd1-bf16"])
def test_loras_draw_as_a_bundle_with_their_weights(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    """Bit for bit, and back again; the reference is a copy of the bundle with the changed weights in its files."""
    bundle = exported(name).bundle
    a, b = (lora_file(tmp_path / f"{seed}.safetensors", bundle, seed) for seed in (1, 2))
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 5, "output_type": "latent"}
    pictures = []
    with Pipeline.load(bundle, backend="openvino") as pipe:
        for loras in ({}, {a: 1.0}, {b: 0.6}, {}):
            pipe.set_loras(loras)
            pictures.append(pipe(PROMPT, **options).latents)
    base, with_a, with_b, back = pictures
    assert np.array_equal(base, back)
    assert min(np.abs(x - y).max() for x, y in ((base, with_a), (with_a, with_b), (base, with_b))) > 0.01
    folder = Path(shutil.copytree(bundle, tmp_path / "changed"))
    uses = {(u.graph, u.initializer): u for found in Bundle.open(bundle).manifest.weights.values() for u in found}
    for graph, weights in changed_weights(Bundle.open(bundle), {b: 0.6}).items():
        for initializer, array in weights.items():
            with (folder / f"{graph}.onnx.data").open("r+b") as file:
                file.seek(uses[graph, initializer].offset)
                file.write(array.tobytes())
    with Pipeline.load(folder, backend="openvino") as pipe:
        assert np.array_equal(pipe(PROMPT, **options).latents, with_b)


def test_a_weight_that_it_does_not_have_changes_nothing(pipe: Pipeline) -> None:
    before = pipe(PROMPT, **FEW, output_type="latent").latents
    with pytest.raises(BackendError, match=r"no constant missing.weight to change: use another backend"):
        pipe._backend.set_weights({"context": {"missing.weight": np.zeros(1, np.float32)}})
    assert np.array_equal(pipe(PROMPT, **FEW, output_type="latent").latents, before)


# --- the engine -----------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"time.onnx needs the input 'timesteps'"):
        pipe.run("time", {})
    with pytest.raises(InputError, match=r"latents of vae_decoder.onnx has shape \(1, 3, 8, 8\)"):
        pipe.run("vae_decoder", {"latents": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.slow
def test_closing_gives_the_memory_back(exported: Callable[[str], Exported]) -> None:
    with Pipeline.load(exported("sd2-fp32-opset18").bundle, backend="openvino") as pipe:
        pipe(PROMPT, **{**FEW, "num_inference_steps": 1, "guidance_scale": 1.0})
        backend = pipe._backend
        engines = backend._engines.loaded(backend._bundle.manifest.graphs)
        held = [weakref.ref(engine._compiled) for engine in engines]
        (time,) = backend._engines.loaded({"time"})
        assert len(held) == 5
        assert all(reference() is not None for reference in held)
    gc.collect()
    assert all(reference() is None for reference in held)
    with pytest.raises(BackendError, match=r"time.onnx is closed"):
        time.run({"timesteps": np.zeros(1, np.float32)})
    with pytest.raises(BackendError, match=r"is closed"):
        pipe(PROMPT, **FEW)


class RecordingCore:
    """Compiles for float32, and records the requested precision."""

    def __init__(self, core: Any) -> None:
        self.core, self.precisions = core, []

    def compile_model(self, model: Any, device: str, options: dict[str, str]) -> Any:
        self.precisions.append(options["INFERENCE_PRECISION_HINT"])
        return self.core.compile_model(model, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize(("name", "wanted"), [("shapes", "f32"), ("sd2-fp16", "f32"), ("sd1-bf16", "bf16")])
def test_the_bundle_says_what_is_computed_in(exported: Callable[[str], Exported], name: str, wanted: str) -> None:
    """Even on a CPU with bfloat16, which OpenVINO would use by default."""
    with Pipeline.load(exported(name).bundle, backend="openvino") as pipe:
        pipe._backend._core = core = RecordingCore(pipe._backend._core)
        for pipe._backend._has_bf16, expected in ((True, wanted), (False, "f32")):
            pipe._backend._engines.drop({"vae_decoder", "context"})
            pipe._backend.engine("vae_decoder")
            pipe._backend.engine("context")
            assert core.precisions[-2:] == [expected] * 2


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` find openvino, which is hidden from it in other tests."""
    from latentrt.runtime.backends import choice as backends
    from latentrt.runtime.backends import openvino_backend as openvino_engine

    monkeypatch.setattr(backends, "openvino_is_installed", openvino_engine.openvino_is_installed)


@pytest.mark.usefixtures("_installed")
def test_auto_takes_it_on_a_cpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in (None, "cpu"):
        with Pipeline.load(device=device) as pipe:
            assert pipe.backend == "openvino-cpu"
        with Pipeline.load(backend="onnxruntime", device=device) as pipe:
            assert pipe.backend == "onnxruntime-cpu"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Pipeline.load() as pipe:
        assert pipe.backend == "onnxruntime-cpu"
    assert not caplog.records


@pytest.mark.usefixtures("_installed")
def test_a_bundle_that_it_cannot_read_goes_to_onnxruntime(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(SHAPES.bundle, tmp_path / "broken"))
    (folder / "blend.onnx").write_bytes(b"?" * (folder / "blend.onnx").stat().st_size)  # it is echoed on stderr
    with Pipeline.load(folder) as pipe:
        assert pipe.backend == "onnxruntime-cpu"
    assert "openvino is not used: openvino cannot read" in caplog.text
    with pytest.raises(BackendError, match=r"openvino cannot read .*blend.onnx"):
        Pipeline.load(folder, backend="openvino")


def test_an_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"runs on CPUs only, not on 'cuda:1': use device='cpu' or another"):
        Pipeline.load(backend="openvino", device="cuda:1")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino cannot be imported .*pip install 'latentrt\[openvino\]'"):
        Pipeline.load(backend="openvino")
