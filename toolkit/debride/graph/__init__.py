"""ONNX graphs: read, taken apart into channel groups, gated, cut and written; the one room that imports onnx."""
