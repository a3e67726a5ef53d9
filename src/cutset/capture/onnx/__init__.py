"""ONNX files as models: read as data, their rows freed, their pieces extracted and run."""
