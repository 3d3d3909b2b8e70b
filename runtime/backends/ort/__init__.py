"""The ONNX Runtime backends, for CPUs and NVIDIA GPUs."""
