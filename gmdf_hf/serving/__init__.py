"""A trained detector for people: hub, demo page, ONNX."""
