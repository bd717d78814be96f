"""Use a finished model: its answers, its speed, its ONNX graph. May import: validation and below."""
