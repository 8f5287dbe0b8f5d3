"""Classifying images with a cleaned model: onnxruntime, numpy and OpenCV only, neither torch nor onnx."""

from .classifier import Classifier
from .ranking import Prediction
from .rows import Image

__all__ = ["Classifier", "Image", "Prediction"]
