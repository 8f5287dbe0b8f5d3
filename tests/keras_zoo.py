"""Small Keras models with the parts of the well-known families, random weights and lived-in BatchNormalization.

Importing this imports Keras: tests do so within a fixture, and set no backend of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

CLASSES = 10


def lived_in(model: keras.Model, seed: int = 0) -> keras.Model:
    """`model` with weights drawn anew: scales around 1, shifts around 0, so that no layer passes for another."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = np.asarray(weight.numpy())
        if not np.issubdtype(value.dtype, np.floating):
            continue
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, value.shape))
        elif value.ndim < 2:
            weight.assign(rng.normal(0, 0.2, value.shape))
        else:
            weight.assign(rng.normal(0, 1 / np.sqrt(np.prod(value.shape[:-1])), value.shape))
    return model


def _normed(x, filters: int, size: int = 3, strides: int = 1, activation: str | None = "relu"):
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def resnet() -> keras.Model:
    """Two residual blocks, one with a projection."""
    image = keras.Input((32, 32, 3), name="image")
    x = _normed(image, 8)
    y = layers.Add()([_normed(_normed(x, 8), 8, activation=None), x])
    y = layers.ReLU()(y)
    z = _normed(_normed(y, 16, strides=2), 16, activation=None)
    z = layers.ReLU()(layers.Add()([z, _normed(y, 16, size=1, strides=2, activation=None)]))
    x = layers.GlobalAveragePooling2D()(z)
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax")(x), name="resnet")


def mobilenet() -> keras.Model:
    """Depthwise convolutions, relu6, hard swish, squeeze and excitation."""
    image = keras.Input((32, 32, 3))
    x = _normed(image, 8, strides=2, activation="relu6")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    x = _normed(x, 16, size=1, activation="hard_silu")
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(16, 1, activation="hard_sigmoid")(layers.Conv2D(4, 1, activation="relu")(s))
    x = layers.Multiply()([x, s])
    x = layers.SeparableConv2D(16, 3, padding="same", activation="silu")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(CLASSES)(x), name="mobilenet")


def densenet() -> keras.Model:
    """Pre-activation, concatenation, average and maximum pooling."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, padding="same")(image)
    for _ in range(2):
        y = layers.Activation("relu")(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same")(y)])
    x = layers.MaxPooling2D(2)(layers.AveragePooling2D(2)(x))
    x = layers.Flatten()(x)
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax")(x), name="densenet")


def vit() -> keras.Model:
    """Patches, one block of attention and one of dense layers, LayerNormalization."""
    image = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 8, strides=8)(image))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(num_heads=2, key_dim=8)(y, y)])
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.GlobalAveragePooling1D()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(CLASSES)(x), name="vit")


def convnext() -> keras.Model:
    """A 7x7 depthwise convolution, LayerNormalization and gelu in one residual block."""
    image = keras.Input((32, 32, 3))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 4, strides=4)(image))
    y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(7, padding="same")(x))
    y = layers.Dense(8)(layers.Dense(32, activation="gelu")(y))
    x = layers.LayerNormalization()(layers.GlobalAveragePooling2D()(layers.Add()([x, y])))
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax")(x), name="convnext")


def resnext() -> keras.Model:
    """Grouped convolutions, one of them depthwise, down to a map of 1x1."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 4, strides=4, activation="relu")(image)
    x = layers.Conv2D(8, 3, padding="same", groups=4)(x)
    x = layers.Conv2D(12, 8, groups=2)(x)
    x = layers.LayerNormalization()(layers.Conv2D(12, 1)(x))
    x = layers.Add()([x, layers.Conv2D(12, 3, padding="same", groups=12)(x)])
    return keras.Model(image, layers.Dense(CLASSES)(layers.Flatten()(x)), name="resnext")


def sequential() -> keras.Model:
    """A Sequential model of grey images that scales its pixels itself."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="sequential",
    )


def nested() -> keras.Model:
    """A model within a model, and operations of keras.ops in the graph."""
    image = keras.Input((32, 32, 3))
    inner_in = keras.Input((32, 32, 8))
    inner = keras.Model(inner_in, _normed(inner_in, 8), name="inner")
    x = inner(layers.Conv2D(8, 3, padding="same")(image))
    x = keras.ops.relu(x) * 2.0 - 0.5
    x = keras.ops.mean(x, axis=(1, 2))
    return keras.Model(image, layers.Dense(CLASSES)(x), name="nested")


def channels_first() -> keras.Model:
    """The same kind of network with the channels first."""
    first = {"data_format": "channels_first"}
    image = keras.Input((3, 32, 32))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, **first)(image)
    x = layers.Activation("relu")(layers.BatchNormalization(axis=1)(x))
    x = layers.MaxPooling2D(2, **first)(x)
    x = layers.GlobalAveragePooling2D(**first)(layers.Conv2D(16, 3, strides=2, padding="same", **first)(x))
    return keras.Model(image, layers.Dense(CLASSES)(x), name="channels_first")


def efficientnet() -> keras.Model:
    """Keras' own EfficientNetB0, which scales and normalises its pixels itself."""
    return keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=CLASSES)


def bytes_in() -> keras.Model:
    """A network that takes its pixels as bytes."""
    image = keras.Input((16, 16, 3), dtype="uint8")
    x = _normed(layers.Rescaling(1 / 255)(image), 8)
    return keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="bytes_in")


ZOO: dict[str, Callable[[], keras.Model]] = {
    make.__name__: make
    for make in (
        resnet,
        mobilenet,
        densenet,
        vit,
        convnext,
        resnext,
        sequential,
        nested,
        channels_first,
        bytes_in,
        efficientnet,
    )
}


def build(name: str) -> keras.Model:
    """The model `name`, always with the same weights."""
    keras.utils.set_random_seed(0)
    return lived_in(ZOO[name]())
