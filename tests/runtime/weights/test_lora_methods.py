"""LoRA's relatives: the same weights as LyCORIS' and PEFT's own layers, and refusals of tensors that do not fit."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exports import ROOT, SHAPES

from latentrt.runtime import InputError
from latentrt.runtime.weights.lora import read_loras, with_changes

LYCORIS = load_file(ROOT / "tests" / "data" / "lycoris.safetensors")
CASES = sorted({name.partition("/")[0] for name in LYCORIS})
MODULE = "unet.time_embedding.linear_1"
KEY = "lora_unet_time_embedding_linear_1"


def merged(files: Mapping[Path, float], base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by name in their module after the files' changes."""
    changes = read_loras(files.items(), [f"{MODULE}.{name}" for name in base])
    return {
        name: torch.from_numpy(with_changes(f"{MODULE}.{name}", tensor.numpy(), changes.get(f"{MODULE}.{name}", ())))
        for name, tensor in base.items()
    }


def case_tensors(case: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{case}/{kind}."
    return {name.removeprefix(prefix): tensor for name, tensor in LYCORIS.items() if name.startswith(prefix)}


def case_file(folder: Path, case: str) -> Path:
    file = folder / f"{CASES.index(case)}.safetensors"
    save_file({f"{KEY}.{name}": tensor for name, tensor in case_tensors(case, "lora").items()}, file)
    return file


def output(case: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    inputs, weight, bias = LYCORIS[f"{case}/input"], weights["weight"], weights["bias"]
    if weight.ndim == 1:
        return torch.nn.functional.layer_norm(inputs, weight.shape, weight, bias)
    if weight.ndim == 2:
        return torch.nn.functional.linear(inputs, weight, bias)
    return torch.nn.functional.conv2d(inputs, weight, bias, padding=1)


@pytest.mark.parametrize("case", CASES)
def test_layers_compute_what_those_of_lycoris_do(tmp_path: Path, case: str) -> None:
    base, expected = case_tensors(case, "base"), LYCORIS[f"{case}/output"]
    got = output(case, merged({case_file(tmp_path, case): 1.0}, base))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (output(case, base) - expected).abs().max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_a_weight_takes_a_part_of_the_change(tmp_path: Path, case: str) -> None:
    """Also with DoRA, where the factor is outside of the norm; and 0 changes nothing."""
    base, file = case_tensors(case, "base"), case_file(tmp_path, case)
    none, whole, part = (merged({file: factor}, base) for factor in (0.0, 1.0, -0.3))
    for name, tensor in base.items():
        assert torch.equal(none[name], tensor)
        torch.testing.assert_close(part[name], tensor - 0.3 * (whole[name] - tensor), rtol=1e-5, atol=1e-5)


def test_several_methods_of_one_weight_add_up_in_any_order(tmp_path: Path) -> None:
    cases = ("dora by output", "loha", "lokr", "glora", "ia3 by output")
    base = {name: tensor for name, tensor in case_tensors("lora", "base").items() if name == "weight"}
    files = {case_file(tmp_path, case): 0.5 + i for i, case in enumerate(cases)}
    alone = [merged({file: factor}, base)["weight"] - base["weight"] for file, factor in files.items()]
    for order in (files, dict(reversed(files.items()))):
        torch.testing.assert_close(merged(order, base)["weight"], base["weight"] + sum(alone), rtol=1e-4, atol=1e-4)


def test_single_elements_of_an_extraction_are_added(tmp_path: Path) -> None:
    base = {"weight": torch.arange(24.0).reshape(4, 2, 3, 1)}
    rest = torch.zeros(4, 6)
    rest[3, 5], rest[0, 1] = 2.5, -1.0
    sparse = rest.to_sparse()
    tensors = {
        "lora_down.weight": torch.ones(1, 2, 3, 1),
        "lora_up.weight": torch.ones(4, 1, 1, 1),
        "bias_indices": sparse.indices().to(torch.int16),
        "bias_values": sparse.values().half(),
        "bias_size": torch.tensor([4, 6], dtype=torch.int16),
    }
    file = tmp_path / "extracted.safetensors"
    save_file({f"{KEY}.{name}": tensor for name, tensor in tensors.items()}, file)
    assert torch.equal(merged({file: 1.0}, base)["weight"], base["weight"] + 1 + rest.reshape(4, 2, 3, 1))


def zeros(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    return {names.get(name, name.replace("__", ".")): torch.ones(shape) for name, shape in shapes.items()}


LARGE = {
    "lora": zeros(up=(20000, 1), down=(1, 20000)),
    "lora of the right size": zeros(up=(20, 1), down=(1, 20000)),
    "loha": zeros(hada_w1_a=(20000, 1), hada_w1_b=(1, 20000), hada_w2_a=(20000, 1), hada_w2_b=(1, 20000)),
    "lokr": zeros(lokr_w1=(150, 150), lokr_w2=(150, 150)),
    "lokr of low rank": zeros(lokr_w1=(1, 1), lokr_w2_a=(20000, 1), lokr_w2_b=(1, 20000)),
    "three factors": zeros(up=(20000, 1, 1, 1), down=(1, 20000, 1, 1), mid=(1, 1)),
    "glora": zeros(a1__weight=(20000, 1), a2__weight=(1, 20000), b1__weight=(20, 1), b2__weight=(1, 12)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_small_files_with_large_products_are_refused_before_they_are_multiplied(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bomb.safetensors"
    save_file({f"{KEY}.{name}": tensor for name, tensor in LARGE[kind].items()}, file)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"does not fit unet\.time_embedding.*shape \(20, 12\).*another model family"):
        merged({file: 1.0}, {"weight": torch.ones(20, 12)})
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # the products have 1.6 GB
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (zeros(up=(20, 3), down=(2, 12)), r"wrong: up has shape \(20, 3\), but the rank is 2"),
        (zeros(up=(20, 0), down=(0, 12)), r"wrong: down has shape \(0, 12\)"),
        (zeros(up=(20,), down=(1, 12)), r"wrong: up has shape \(20,\)"),
        (zeros(up=(20, 1), down=()), r"wrong: down has shape \(\)"),
        (zeros(up=(20, 2), down=(2, 12), mid=(2, 3)), r"wrong: the core has shape \(2, 3\)"),
        (zeros(up=(20, 2, 3), down=(2, 12)), r"wrong: up has shape"),
        (zeros(up=(20, 2)), "is LoRA without down"),
        (zeros(dora_scale=(20, 1)), "is only dora_scale"),
        (zeros(diff=(20, 12), dora_scale=(20, 1)), "is DoRA of diff"),
        (zeros(up=(20, 2), down=(2, 12), dora_scale=(19, 1)), "the lengths of DoRA have shape"),
        (zeros(diff=(12, 20)), "does not fit"),
        (zeros(diff_b=(19,)), r"does not fit unet\.time_embedding\.linear_1\.bias of shape \(20,\)"),
        (zeros(hada_w1_a=(20, 2), hada_w1_b=(2, 12), hada_w2_a=(20, 2)), "is LoHa without hada_w2_b"),
        (zeros(lokr_w1=(4, 3), lokr_w2_a=(5, 1)), "LoKr without lokr_w2"),
        (zeros(lokr_w1=(4, 3), lokr_w2=(5, 4), lokr_t2=(1, 1)) | zeros(up=(20, 1), down=(1, 12)), "LoRA and LoKr of"),
        (zeros(weight=(20,)), r"is no LoRA: it has whole weights, such as .*linear_1\.weight"),
        (zeros(oft_blocks=(5, 4, 4)), "is an OFT .*merge it into the checkpoint"),
        ({"oft_blocks": torch.ones(2, 5, 4, 4)}, "is an OFT"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    file = tmp_path / "bad.safetensors"
    save_file({f"{KEY}.{name}": tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(InputError, match=message):
        merged({file: 1.0}, {"weight": torch.ones(20, 12), "bias": torch.ones(20)})


# --- PEFT -----------------------------------------------------------------------------------------------------------


def unet_of_shapes() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(SHAPES.checkpoint / "unet")


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["to_q", "conv1"], **options})


def loha(**options: Any) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(**{"r": 4, "alpha": 6, "target_modules": ["to_q", "conv1"], **options})


def lokr(**options: Any) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(**{"r": 4, "alpha": 6, "target_modules": ["to_q", "conv1"], **options})


CONFIGS = {
    "lora": lora,
    "patterns": lambda: lora(rank_pattern={"attn1.to_q": 2}, alpha_pattern={"attn1.to_q": 5, "conv1": 9}),
    "stabilized": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "biases of halves": lambda: lora(lora_bias=True, target_modules=["to_out.0"]),
    "all biases": lambda: lora(bias="all"),
    "whole modules": lambda: lora(modules_to_save=["conv_out"]),
    "loha": loha,
    "loha in three factors": lambda: loha(use_effective_conv2d=True),
    "lokr": lokr,
    "lokr in three factors": lambda: lokr(use_effective_conv2d=True, decompose_both=True, r=1),
    "lokr, whole": lambda: lokr(r=400),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders_of_peft_mean_what_it_merges(tmp_path: Path, kind: str) -> None:
    from peft import PeftModel, get_peft_model

    model = get_peft_model(unet_of_shapes(), CONFIGS[kind]())
    draw = torch.Generator().manual_seed(len(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=draw) * 0.1
    model.save_pretrained(tmp_path)
    plain = {f"unet.{name}": tensor for name, tensor in unet_of_shapes().state_dict().items()}
    expected = PeftModel.from_pretrained(unet_of_shapes(), tmp_path).merge_and_unload().state_dict()
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        changes = read_loras([(path, 1.0)], plain)
        for name, tensor in plain.items():
            got = with_changes(name, tensor.numpy(), changes.get(name, ()))
            np.testing.assert_allclose(got, expected[name.removeprefix("unet.")], rtol=1e-4, atol=1e-5, err_msg=name)
        assert len(changes) > 5
