"""The differentiable proxy: an ONNX graph run by torch, held to agree with onnxruntime."""
