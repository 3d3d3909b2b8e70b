"""Rewrites of ONNX graphs to ONNX Runtime's own, faster operators. Knows nothing of bundles."""
