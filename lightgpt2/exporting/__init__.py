"""A model out of the system: ONNX graphs and GGUF files that run without it, verified while they are written."""
