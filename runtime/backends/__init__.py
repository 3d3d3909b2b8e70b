"""The backends that run a bundle's graphs: ONNX Runtime, OpenVINO, TensorRT."""

from .choice import load_backend

__all__ = ["load_backend"]
