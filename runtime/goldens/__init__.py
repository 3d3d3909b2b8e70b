"""Replays the golden outputs that a bundle keeps from PyTorch, and says how far a backend is from them."""

from .checks import GoldenCheck, psnr, relative_error
from .control import verify_control
from .pipeline import verify_goldens

__all__ = ["GoldenCheck", "psnr", "relative_error", "verify_control", "verify_goldens"]
