"""Quantize bundles: calibration, graphs with QuantizeLinear and DequantizeLinear, and a judgement. No PyTorch."""

from .options import QuantizeOptions
from .quantize import Quantized, quantize_bundle

__all__ = ["QuantizeOptions", "Quantized", "quantize_bundle"]
