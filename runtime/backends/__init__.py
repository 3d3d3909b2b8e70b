"""What runs the graphs: ONNX Runtime, OpenVINO, TensorRT."""
