"""Build engines from a bundle's ONNX files. Needs neither PyTorch nor the extra `export`."""
