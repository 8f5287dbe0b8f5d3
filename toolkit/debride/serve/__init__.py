"""Classifying images with a cleaned model: onnxruntime, numpy and OpenCV only, neither torch nor onnx."""

from .classifier import Classifier, Image, Prediction

__all__ = ["Classifier", "Image", "Prediction"]
