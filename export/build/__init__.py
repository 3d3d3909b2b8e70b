"""Engines from a bundle's ONNX files. Does not need the extra `export`."""
