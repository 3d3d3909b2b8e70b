"""A bundle's weights as arrays, and LoRA. Knows nothing about backends."""

from .lora import changed_weights, file_and_weight
from .shared_lock import SharedLock
from .stored import stored_weight, to_float32

__all__ = ["SharedLock", "changed_weights", "file_and_weight", "stored_weight", "to_float32"]
