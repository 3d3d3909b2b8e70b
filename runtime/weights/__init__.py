"""A bundle's weights as arrays, and LoRA. Knows nothing about backends."""

from .lora import changed_weights, file_and_weight
from .lora_paths import checked_factors, sha256_of_lora
from .stored import scaled, stored_weight, to_float32

__all__ = [
    "changed_weights",
    "checked_factors",
    "file_and_weight",
    "scaled",
    "sha256_of_lora",
    "stored_weight",
    "to_float32",
]
