"""Rewrites of ONNX graphs into forms that ONNX Runtime runs faster."""
