"""Keras' own networks, as small as they come, with signals that reach the scores, and two ways to make them ONNX.

Importing this imports Keras: tests do so within a fixture, and set no backend of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import onnx.defs
from keras import applications

import keras_zoo
from debride.types import ConvertOptions
from debride_adapters.keras import from_model

CLASSES = 10
SMALL = ("resnet", "mobilenet", "densenet", "vit", "convnext", "resnext", "nested")
"""Those of `keras_zoo` that take coloured images of 32x32."""

_whole = {"weights": None, "classes": CLASSES, "classifier_activation": None}


def _with_head(make: Callable[..., keras.Model], side: int) -> keras.Model:
    """A network without its Linear layers (which hold most of its weights) and one in their place."""
    body = make(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    return keras.Model(body.input, keras.layers.Dense(CLASSES)(body.output))


def _whole_net(make: Callable[..., keras.Model], side: int, **more: object) -> keras.Model:
    return make(**_whole, input_shape=(side, side, 3), **more)


ARCHITECTURES: dict[str, Callable[[], keras.Model]] = {
    "MobileNet": partial(_whole_net, applications.MobileNet, 32, alpha=0.25),
    "MobileNetV2": partial(_whole_net, applications.MobileNetV2, 32, alpha=0.35),
    "MobileNetV3Small": partial(_whole_net, applications.MobileNetV3Small, 32, alpha=0.5),
    "EfficientNetB0": partial(_whole_net, applications.EfficientNetB0, 32),
    "EfficientNetV2B0": partial(_whole_net, applications.EfficientNetV2B0, 32),
    "DenseNet121": partial(_whole_net, applications.DenseNet121, 32),
    "ResNet50": partial(_whole_net, applications.ResNet50, 32),
    "ResNet50V2": partial(_whole_net, applications.ResNet50V2, 32),
    "InceptionV3": partial(_whole_net, applications.InceptionV3, 75),
    "Xception": partial(_whole_net, applications.Xception, 71),
    "NASNetMobile": partial(_whole_net, applications.NASNetMobile, 32),
    "VGG16": partial(_with_head, applications.VGG16, 32),
    "ConvNeXtTiny": partial(_whole_net, applications.ConvNeXtTiny, 32),
    **{f"small-{name}": keras_zoo.ZOO[name] for name in SMALL},
}

_BYTES = ("MobileNetV3", "EfficientNet", "ConvNeXt")


def high_of(name: str) -> float:
    """The brightest pixel that the network `name` takes: 255 where it scales its pixels itself."""
    return 255.0 if name.startswith(_BYTES) else 1.0


def network(name: str, seed: int = 0) -> keras.Model:
    """The network `name`, always with the same weights for a seed; its norms fit the data about."""
    keras.utils.set_random_seed(seed)
    model, rng = ARCHITECTURES[name](), np.random.default_rng(seed)
    for weight in model.weights:
        _draw(weight, rng)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0  # the statistics become those of the one batch that follows
    _, height, width, _ = model.input_shape
    coarse = rng.random((16, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)[:, :height, :width]
    images = (coarse * rng.random((16, 1, 1, 1)) + rng.random((16, height, width, 3))) / 2
    model(images.astype(np.float32) * np.float32(high_of(name)), training=True)
    for norm in norms:
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + np.sqrt(variance) * rng.uniform(-0.2, 0.2, mean.shape))
        norm.moving_variance.assign(variance * rng.uniform(0.7, 1.4, mean.shape))
    return model


def _draw(weight: keras.Variable, rng: np.random.Generator) -> None:
    value, path = np.asarray(weight.numpy()), weight.path
    if not np.issubdtype(value.dtype, np.floating) or "normalization/mean" in path or "normalization/variance" in path:
        return
    if value.ndim == 4:
        depthwise = "depthwise" in path
        fan = np.prod(value.shape[:2] if depthwise else value.shape[:3])
        weight.assign(rng.normal(0, np.sqrt(2 / fan), value.shape))
    elif path.endswith("gamma"):
        weight.assign(rng.uniform(0.5, 1.5, value.shape))
    elif path.endswith(("beta", "bias")):
        weight.assign(rng.uniform(-0.2, 0.3, value.shape))


def by_adapter(model: keras.Model, opset: int) -> onnx.ModelProto:
    """`model` as debride's own adapter writes it."""
    return onnx.load_from_string(from_model(model, options=ConvertOptions(opset=opset)).onnx)


def by_tf2onnx(model: keras.Model, opset: int) -> onnx.ModelProto:
    """`model` as tf2onnx writes it by itself, without what the adapter does around it.

    Raises `NotImplementedError` for operators that it only copies from TensorFlow (Erfc, of which gelu is made), and
    for constants of a layer that it leaves as further inputs of the graph (Normalization's).
    """
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False), autograph=False)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=opset)
    missing = sorted({node.op_type for node in proto.graph.node if not onnx.defs.has(node.op_type, node.domain)})
    if missing:
        raise NotImplementedError(f"tf2onnx knows no ONNX operator for {', '.join(missing)}")
    if len(proto.graph.input) > 1:
        raise NotImplementedError(f"tf2onnx leaves {len(proto.graph.input) - 1} constants as inputs of the graph")
    return proto
