"""Build TensorRT engines from the ONNX files of a bundle."""
