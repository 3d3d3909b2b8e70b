"""Checkpoints of every supported form, loaded as PyTorch modules. Knows nothing of ONNX."""
