"""The TensorRT backends: TensorRT and TensorRT for RTX."""
