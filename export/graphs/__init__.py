"""ONNX graphs from PyTorch modules. Knows no checkpoint files and no bundles."""
