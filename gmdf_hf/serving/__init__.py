"""Use of a trained detector: pipeline, demo page, hub, ONNX export."""
