"""LoRA files of every format: the same weights as diffusers and PEFT, and exact removal."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exports import SHAPES, Exported
from support.lora_files import TEXT, UNET, halves, kohya_file, shapes_file, sizes
from support.simulator import Fault, Machine, machine

from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import BackendError, BundleError, InputError, Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.cli.main import main
from latentrt.runtime.weights import changed_weights, stored_weight, to_float32
from latentrt.runtime.weights.lora import read_lora
from latentrt.runtime.weights.stored import from_float32
from latentrt.runtime.weights.tensor_file import read_safetensors

RTX = "tensorrt_rtx"
FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seed": 5}
PROMPT = "a green heart on an orange background"


def weights_of(bundle: Path, changed: Any) -> dict[str, np.ndarray]:
    """Changed weights by parameter, in the checkpoint's shape."""
    opened = Bundle.open(bundle)
    found = {}
    for parameter, uses in opened.manifest.weights.items():
        for use in uses:
            if use.initializer in changed.get(use.graph, {}):
                array = to_float32(changed[use.graph][use.initializer], use.stored_dtype)
                found[parameter] = array.T if use.transposed else array
    return found


def diffusers_pipeline(checkpoint: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None, local_files_only=True)


def fused_by_diffusers(checkpoint: Path, lora: Path, scale: float) -> dict[str, np.ndarray]:
    """All weights of the UNet and the text encoder after diffusers fused a LoRA file into them."""
    pipe = fused_pipeline(checkpoint, lora, scale)
    pipe.unload_lora_weights()
    named = {f"unet.{k}": v for k, v in pipe.unet.state_dict().items()}
    named |= {f"text_encoder.{k}".replace(".text_model.", "."): v for k, v in pipe.text_encoder.state_dict().items()}
    return {name: tensor.numpy() for name, tensor in named.items()}


def fused_pipeline(checkpoint: Path, lora: Path, scale: float) -> Any:
    pipe = diffusers_pipeline(checkpoint)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    pipe.fuse_lora(lora_scale=scale)
    # With transformers 5.6, which renamed modules, diffusers 0.42 skips kohya's names of the text encoder's attention.
    tensors = load_file(lora)
    for module in TEXT:
        key = f"lora_te_text_model_{module}".replace(".", "_")
        if f"{key}.alpha" in tensors and "self_attn" in module:
            down, up = (tensors[f"{key}.lora_{half}.weight"] for half in ("down", "up"))
            weight = pipe.text_encoder.get_submodule(module).weight
            with torch.no_grad():
                weight += scale * tensors[f"{key}.alpha"] / len(down) * (up @ down)
    return pipe


# --- file formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(3, 2.0, 0.7), (5, 5.0, -1.3)])
def test_kohya_files_mean_what_diffusers_makes_of_them(
    sd1: Exported, tmp_path: Path, rank: int, alpha: float, scale: float
) -> None:
    lora = kohya_file(tmp_path / "style.safetensors", sd1.bundle, rank=rank, alpha=alpha, seed=rank)
    got = weights_of(sd1.bundle, changed_weights(Bundle.open(sd1.bundle), {lora: scale}))
    expected = fused_by_diffusers(sd1.checkpoint, lora, scale)
    before = {f"unet.{k}": v.numpy() for k, v in diffusers_pipeline(sd1.checkpoint).unet.state_dict().items()}
    assert len(got) == len(UNET) + len(TEXT)
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)
        assert name not in before or np.abs(array - before[name]).max() > 0.05


@pytest.mark.parametrize("rslora", [False, True])
def test_files_that_diffusers_saves_mean_what_it_makes_of_them(sd1: Exported, tmp_path: Path, rslora: bool) -> None:
    """These files have alpha in their metadata."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = diffusers_pipeline(sd1.checkpoint)
    torch.manual_seed(4)
    config = {"r": 4, "lora_alpha": 6, "use_rslora": rslora, "init_lora_weights": "gaussian"}
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v", "to_out.0"], **config))
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"], **config))
    for name, parameter in [*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()]:
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
    )
    lora = tmp_path / "pytorch_lora_weights.safetensors"
    got = weights_of(sd1.bundle, changed_weights(Bundle.open(sd1.bundle), {lora: 1.0}))
    expected = fused_by_diffusers(sd1.checkpoint, lora, 1.0)
    assert {name.split(".")[0] for name in got} == {"unet", "text_encoder"}
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("module", "down", "up"),
    [
        ("unet.{}.attn1.to_q", ".lora.down.weight", ".lora.up.weight"),
        ("unet.{}.attn1.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
        ("{}.attn1.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
        ("unet.{}.attn1.processor.to_out", "_lora.down.weight", "_lora.up.weight"),
        ("base_model.model.unet.{}.attn1.to_q", ".lora_A.default.weight", ".lora_B.default.weight"),
    ],
)
def test_older_names_are_known(sd1: Exported, tmp_path: Path, module: str, down: str, up: str) -> None:
    name = module.format("mid_block.attentions.0.transformer_blocks.0")
    parameter = "unet.mid_block.attentions.0.transformer_blocks.0.attn1." + ("to_out.0" if "out" in module else "to_q")
    halves_of = halves(sd1.bundle, f"{parameter}.weight", 2, 0)
    save_file(dict(zip((name + down, name + up), halves_of, strict=True)), tmp_path / "old.safetensors")
    (found,) = read_lora(tmp_path / "old.safetensors", Bundle.open(sd1.bundle).manifest.weights).items()
    assert found[0] == f"{parameter}.weight"
    expected = (halves_of[1] @ halves_of[0]).numpy()
    np.testing.assert_allclose(found[1].delta(found[0], np.ones_like(expected)), expected, atol=1e-6)


def test_convolutions_in_three_pieces(sd1: Exported, tmp_path: Path) -> None:
    """1x1 down to the rank, 3x3 within it, 1x1 up; the reference is three convolutions in PyTorch."""
    name = "down_blocks.0.resnets.0.conv1"
    out, into, *_ = sizes(sd1.bundle, f"unet.{name}.weight")
    torch.manual_seed(0)
    down, mid, up = torch.randn(4, into, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(out, 4, 1, 1)
    key = f"lora_unet_{name}".replace(".", "_")
    tensors = {f"{key}.lora_{part}.weight": t for part, t in (("down", down), ("mid", mid), ("up", up))}
    save_file(tensors, tmp_path / "conv.safetensors")
    ((parameter, change),) = read_lora(tmp_path / "conv.safetensors", Bundle.open(sd1.bundle).manifest.weights).items()
    image = torch.randn(1, into, 9, 7)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(image, down), mid, padding=1), up)
    got = conv(image, torch.from_numpy(change.delta(parameter, np.ones((out, into, 3, 3), np.float32))), padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_several_files_add_up(sd1: Exported, tmp_path: Path) -> None:
    bundle = Bundle.open(sd1.bundle)
    one = kohya_file(tmp_path / "one.safetensors", sd1.bundle, seed=1)
    two = kohya_file(tmp_path / "two.safetensors", sd1.bundle, seed=99, rank=1, text=False)
    base = weights_of(sd1.bundle, changed_weights(bundle, {one: 0.0}))
    both = weights_of(sd1.bundle, changed_weights(bundle, {one: 0.5, two: 2.0}))
    alone = [weights_of(sd1.bundle, changed_weights(bundle, {path: w})) for path, w in ((one, 0.5), (two, 2.0))]
    for name, array in both.items():
        expected = sum((found[name] - base[name] for found in alone if name in found), base[name])
        np.testing.assert_allclose(array, expected, atol=1e-6)


PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# --- stored weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1-fp32", "sd2-fp16", "sd1-bf16", "shapes"])
def test_weights_lie_where_the_manifest_says(exported: Callable[[str], Exported], name: str) -> None:
    """All weights, against the checkpoint."""
    files = {"unet": "unet/diffusion_pytorch_model.safetensors", "vae": "vae/diffusion_pytorch_model.safetensors"}
    files["text_encoder"] = "text_encoder/model.safetensors"
    source = exported(name)
    original = {
        f"{part}.{key}".replace(".text_model.", "."): tensor
        for part, file in files.items()
        for key, tensor in load_file(source.checkpoint / file).items()
    }
    bundle = Bundle.open(source.bundle)
    compared = 0
    for parameter, uses in bundle.manifest.weights.items():
        for use in uses:
            if use.offset is None:
                with pytest.raises(BundleError, match="external data"):
                    stored_weight(bundle, use)
                continue
            array = to_float32(stored_weight(bundle, use), use.stored_dtype)
            expected = original[parameter].to(PRECISIONS[bundle.manifest.recipe.precision]).float().numpy()
            assert np.array_equal(array.T if use.transposed else array, expected), parameter
            compared += 1
    assert compared > 40


def test_bfloat16_is_rounded_as_in_pytorch() -> None:
    rng = np.random.default_rng(7)
    values = (rng.standard_normal(100_000) * 10.0 ** rng.integers(-20, 20, 100_000)).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    got = from_float32(values, "bfloat16")
    assert np.array_equal(got, expected.view(torch.uint16).numpy())
    assert np.array_equal(to_float32(got, "bfloat16"), expected.float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_files_of_every_floating_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"a": tensor, "b": torch.tensor(2.5)}, tmp_path / "x.safetensors", {"who": "me"})
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert np.array_equal(tensors["a"], tensor.float().numpy())
    assert (float(tensors["b"]), metadata) == (2.5, {"who": "me"})


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_diffusers(sd1: Exported, tmp_path: Path) -> None:
    lora = kohya_file(tmp_path / "style.safetensors", sd1.bundle, seed=21)
    theirs = fused_pipeline(sd1.checkpoint, lora, 0.8)
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 64}
    generator = torch.Generator().manual_seed(2)
    expected = theirs("a cat", generator=generator, output_type="latent", **options).images.numpy()
    with Pipeline.load(sd1.bundle, device="cpu") as pipe:
        plain = pipe("a cat", seed=2, output_type="latent", **options).latents
        assert pipe.set_loras({lora: 0.8}) > 0
        got = pipe("a cat", seed=2, output_type="latent", **options).latents
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(plain - expected) > 0.05 * np.linalg.norm(expected)


@pytest.fixture(scope="session")
def refittable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refittable")
    with machine() as gpu:
        sizes = {"batch": ["1", "2"]}
        gpu.build(SHAPES.bundle, RTX, sizes, BuildOptions(refittable=True), engines=folder)
    return folder


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine() as simulated:
        yield simulated


@pytest.fixture(params=["onnxruntime", RTX])
def pipe(request: pytest.FixtureRequest, gpu: Machine, refittable: Path) -> Iterator[Pipeline]:
    with Pipeline.load(backend=request.param, engines=refittable if request.param == RTX else None) as pipeline:
        yield pipeline
    assert not any(gpu.cuda.held.values())


def test_there_and_back_again(pipe: Pipeline, tmp_path: Path) -> None:
    a, b = (shapes_file(tmp_path / f"{seed}.safetensors", seed) for seed in (10, 20))
    pictures = []
    for loras in ({}, {a: 1.0}, {b: 0.6}, {a: 1.0, b: 0.6}, {a: 1.0}, {}):
        pipe.set_loras(loras)
        assert pipe.loras == loras
        pictures.append(pipe(PROMPT, **FEW, num_images_per_prompt=1 + len(loras) % 2).latents[0])
    base, with_a, with_b, with_both, again, back = pictures
    assert np.array_equal(base, back)
    assert np.array_equal(with_a, again)
    for one, other in ((base, with_a), (with_a, with_b), (with_b, with_both), (with_a, with_both)):
        assert np.abs(one - other).max() > 0.05


def test_both_backends_agree(refittable: Path, tmp_path: Path) -> None:
    """Including engines that are loaded after the change."""
    lora = shapes_file(tmp_path / "a.safetensors", 3)
    with machine(), Pipeline.load(backend=RTX, engines=refittable) as rtx, Pipeline.load(device="cpu") as ort:
        rtx(PROMPT, **FEW)
        for pipe in (rtx, ort):
            pipe.set_loras({lora: 0.9})
        for images in (1, 2):
            got, expected = (p(PROMPT, **FEW, num_images_per_prompt=images).latents for p in (rtx, ort))
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_pictures_of_other_threads_are_finished_first(pipe: Pipeline, tmp_path: Path) -> None:
    lora = shapes_file(tmp_path / "a.safetensors", 3)
    expected = pipe(PROMPT, **FEW).latents
    stream = pipe.stream(PROMPT, **FEW)
    next(stream)
    with pytest.raises(InputError, match="finish or close all streams"):
        pipe.set_loras({lora: 1.0}, timeout=0.1)
    swap = threading.Thread(target=pipe.set_loras, args=({lora: 1.0},))
    swap.start()
    *_, last = stream
    swap.join(60)
    assert not swap.is_alive()
    assert np.array_equal(last.result.latents, expected)
    assert not np.array_equal(pipe(PROMPT, **FEW).latents, expected)


def test_a_failed_refit_leaves_what_was_there(
    gpu: Machine, refittable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (shapes_file(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    with Pipeline.load(backend=RTX, engines=refittable) as pipe:
        pipe.set_loras({a: 1.0})
        expected = pipe(PROMPT, **FEW).latents
        engine = gpu.libraries[RTX].Refitter
        refit, calls = engine.refit_cuda_engine, []
        monkeypatch.setattr(
            engine, "refit_cuda_engine", lambda self: calls.append(1) or (len(calls) < 3 and refit(self))
        )
        with pytest.raises(BackendError, match="could not be refitted"):
            pipe.set_loras({b: 1.0})
        monkeypatch.undo()
        assert pipe.loras == {a: 1.0}
        assert np.array_equal(pipe(PROMPT, **FEW).latents, expected)


def test_refitting_an_engine_at_work_is_caught(gpu: Machine, refittable: Path) -> None:
    del gpu
    with Pipeline.load(backend=RTX, engines=refittable) as pipe:
        steps = pipe.stream(PROMPT, **FEW)
        next(steps)
        with pytest.raises(BackendError, match="cannot change during a call"):
            pipe._backend.set_weights({"denoise": {}})
        (engine,) = pipe._backend._engines.loaded({"denoise"})
        with pytest.raises(Fault, match="refitted while it runs"):
            engine.refit({})
        steps.close()


def test_weights_change_after_a_cancelled_picture(gpu: Machine, refittable: Path, tmp_path: Path) -> None:
    """Work that it had queued is waited for before the engines are refitted."""
    lora = shapes_file(tmp_path / "a.safetensors", 5)
    with Pipeline.load(backend=RTX, engines=refittable) as pipe:
        pipe(PROMPT, **FEW)
        steps = pipe.stream(PROMPT, **FEW)
        next(steps)
        next(steps)
        steps.close()
        assert gpu.cuda.pending > 0
        pipe.set_loras({lora: 1.0})


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_engines_with_fixed_weights_say_how_to_build_others(tmp_path: Path) -> None:
    with machine() as gpu:
        gpu.build(SHAPES.bundle, RTX, engines=tmp_path)
    with Pipeline.load(backend=RTX, engines=tmp_path) as pipe:
        with pytest.raises(BackendError, match=r"cannot change their weights.*latentrt build .* --refittable"):
            pipe.set_loras({shapes_file(tmp_path / "a.safetensors", 1): 1.0})
        pipe(PROMPT, **FEW)


def renamed(tmp_path: Path, names: dict[str, torch.Tensor]) -> Path:
    save_file(names, tmp_path / "bad.safetensors")
    return tmp_path / "bad.safetensors"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_qq.lora_down.weight"],
            r"1 of 1 tensors match nothing in this bundle.*nearest names are lora_unet_mid_block.*to_q ",
        ),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], r"match nothing.*model family"),
        (["lora_unet_mid_block_resnets_0_conv1.hada_w1_a"], r"not a whole LoRA: .*hada_w1_a is LoHa without hada_w1_b"),
        (["unet.conv_in.lora_magnitude_vector"], r"lora_magnitude_vector is only magnitude"),
        (["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"], r"lora_up\.weight is LoRA without down"),
        ([], r"is not a LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(sd1: Exported, tmp_path: Path, names: list[str], message: str) -> None:
    path = renamed(tmp_path, {name: torch.zeros(64, 4) for name in names})
    with pytest.raises(InputError, match=message):
        changed_weights(Bundle.open(sd1.bundle), {path: 1.0})


def test_a_lora_for_wider_models_is_refused(sd1: Exported, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = renamed(
        tmp_path, {f"{key}.lora_down.weight": torch.ones(4, 1024), f"{key}.lora_up.weight": torch.ones(64, 4)}
    )
    with pytest.raises(InputError, match=r"does not fit .*attn2\.to_k\.weight of shape \(64, 32\).*model family"):
        changed_weights(Bundle.open(sd1.bundle), {path: 1.0})


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"not a file of tensors at all"])
def test_files_that_are_no_safetensors_are_refused(sd1: Exported, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a valid safetensors file"):
        changed_weights(Bundle.open(sd1.bundle), {tmp_path / "x.safetensors": 1.0})
    with pytest.raises(InputError, match="does not exist"):
        changed_weights(Bundle.open(sd1.bundle), {tmp_path / "y.safetensors": 1.0})


def test_a_file_that_is_cut_short_is_refused(sd1: Exported, tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "x.safetensors", sd1.bundle)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not a valid safetensors file"):
        changed_weights(Bundle.open(sd1.bundle), {path: 1.0})


def test_the_command_line_takes_loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    lora = shapes_file(tmp_path / "odd.safetensors", 8)
    command = ["generate", PROMPT, "--device", "cpu", "--steps", "2", "--seed", "1", "-o", str(tmp_path / "a.png")]
    assert main([*command, "--lora", f"{lora}:0.75"]) == 0
    text = Image.open(tmp_path / "a.png").text
    assert json.loads(text["latentrt"])["loras"] == [
        {"path": str(lora), "sha256": hashlib.sha256(lora.read_bytes()).hexdigest(), "weight": 0.75}
    ]
    assert text["parameters"].startswith(f"{PROMPT} <lora:odd:0.75>\n")
    assert main([*command, "--lora", str(tmp_path / "no:such.safetensors")]) == 1
    assert re.search(r"latentrt: .*no:such\.safetensors does not exist", capsys.readouterr().err)


@pytest.mark.parametrize("loras", [None, ["a"], {3: 1.0}, {"a": "b"}, {"a": None}, {"a": True}, {"a": float("inf")}])
def test_other_values_than_files_and_factors_are_refused(loras: Any) -> None:
    with Pipeline.load(device="cpu") as pipe, pytest.raises(InputError, match="expected"):
        pipe.set_loras(loras)
