"""Writes lycoris.safetensors: what LyCORIS' own layers compute, for the formulas of `runtime/weights/lora_methods.py`.

    uv run --no-project --with lycoris-lora==4.1.3 --with torch python tests/data/make_lycoris.py

Each case is a small layer with random weights: its weights, an input, the tensors that LyCORIS saves, and the output of
its forward pass, as "CASE/base.weight", "CASE/input", "CASE/lora.lora_up.weight", "CASE/output".
"""

from pathlib import Path

import torch
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file
from torch import nn

RANK = {"lora_dim": 3, "alpha": 2.0}
LAYERS = {
    "linear": lambda: (nn.Linear(12, 20), torch.randn(5, 12)),
    "square": lambda: (nn.Linear(12, 12), torch.randn(5, 12)),
    "conv": lambda: (nn.Conv2d(6, 8, 3, padding=1), torch.randn(1, 6, 4, 5)),
    "norm": lambda: (nn.LayerNorm(12), torch.randn(5, 12)),
}
CASES = {
    "lora": (LoConModule, "linear", RANK),
    "lora of a convolution": (LoConModule, "conv", RANK),
    "lora in three factors": (LoConModule, "conv", {**RANK, "use_tucker": True}),
    "lora, stabilized": (LoConModule, "linear", {**RANK, "rs_lora": True}),
    "dora by output": (LoConModule, "linear", {**RANK, "weight_decompose": True}),
    "dora by input": (LoConModule, "square", {**RANK, "weight_decompose": True, "wd_on_out": False}),
    "dora of a convolution by output": (LoConModule, "conv", {**RANK, "weight_decompose": True}),
    "dora of a convolution by input": (LoConModule, "conv", {**RANK, "weight_decompose": True, "wd_on_out": False}),
    "loha": (LohaModule, "linear", RANK),
    "loha of a convolution": (LohaModule, "conv", RANK),
    "loha in three factors": (LohaModule, "conv", {**RANK, "use_tucker": True}),
    "loha, decomposed": (LohaModule, "linear", {**RANK, "weight_decompose": True}),
    "lokr": (LokrModule, "linear", {"lora_dim": 2, "alpha": 3.0, "factor": 2}),
    "lokr, both of low rank": (LokrModule, "linear", {"lora_dim": 1, "alpha": 3.0, "decompose_both": True}),
    "lokr, both whole": (LokrModule, "linear", {"lora_dim": 900, "alpha": 3.0}),
    "lokr of a convolution": (LokrModule, "conv", {"lora_dim": 1, "alpha": 3.0}),
    "lokr in three factors": (LokrModule, "conv", {"lora_dim": 1, "alpha": 3.0, "use_tucker": True}),
    "lokr, decomposed": (LokrModule, "conv", {"lora_dim": 1, "alpha": 3.0, "weight_decompose": True}),
    "glora": (GLoRAModule, "linear", RANK),
    "glora of a convolution": (GLoRAModule, "conv", RANK),
    "ia3 by output": (IA3Module, "linear", {}),
    "ia3 by input": (IA3Module, "conv", {"train_on_input": True}),
    "diff": (FullModule, "conv", {}),
    "norm": (NormModule, "norm", {}),
}


@torch.no_grad()
def main() -> None:
    tensors = {}
    for case, (cls, layer, options) in CASES.items():
        torch.manual_seed(sum(case.encode()))
        base, inputs = LAYERS[layer]()
        for parameter in base.parameters():
            parameter.normal_()
        tensors |= {f"{case}/base.{name}": value.clone() for name, value in base.named_parameters()}
        module = cls("lora", base, **options)
        module.apply_to()
        for name, parameter in module.named_parameters():
            if not name.startswith("org_module"):
                parameter += torch.randn(parameter.shape) * 0.3
        saved = module.custom_state_dict() if hasattr(module, "custom_state_dict") else None
        saved = saved or {k: v for k, v in module.state_dict().items() if not k.startswith("org_module")}
        tensors |= {f"{case}/lora.{name}": value.clone() for name, value in saved.items()}
        tensors |= {f"{case}/input": inputs, f"{case}/output": module(inputs)}
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, Path(__file__).with_name("lycoris.safetensors")
    )


if __name__ == "__main__":
    main()
