"""Checkpoint to bundle: three ONNX graphs, golden vectors, and the check of a bundle against them."""
