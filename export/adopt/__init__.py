"""Adoption of existing ONNX graphs as bundles: check, edit, and record their classes and preprocessing."""
