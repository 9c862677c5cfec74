"""Sessions that run the graphs of a bundle: ONNX Runtime, OpenVINO and TensorRT."""
