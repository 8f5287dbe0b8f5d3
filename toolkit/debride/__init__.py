"""debride finds backdoors in neural image classifiers and cuts them out of the ONNX graph."""

__version__ = "0.1.0"
