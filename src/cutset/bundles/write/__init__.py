"""Writing a bundle: programs, ONNX models, manifest, reference."""
