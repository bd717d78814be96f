"""A finished model at work: its answers, its speed, its ONNX graph. May import: validation and below."""
