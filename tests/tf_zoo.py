"""Small classifiers as TensorFlow saves them, with what they answer: `python tf_zoo.py FOLDER` writes them all.

In a process of its own, because Keras settles for one backend when it is imported.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import keras
import numpy as np
import tensorflow as tf

from keras_zoo import build, lived_in

V1 = tf.compat.v1
FAMILIES = ("resnet", "mobilenet", "densenet", "vit", "convnext")
BATCHES = (1, 5)


def images(n: int, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(n).random((n, *shape), np.float32)


class Plain(tf.Module):
    """A convolution and a dense layer, in TensorFlow's own words; bytes as input if `kind` says so."""

    def __init__(self, shape=(None, 8, 8, 3), kind=tf.float32):
        super().__init__()
        rng = np.random.default_rng(3)
        self.kernel = tf.Variable(rng.normal(0, 0.3, (3, 3, 3, 4)).astype(np.float32), name="same")
        self.dense = tf.Variable(rng.normal(0, 0.3, (4, 5)).astype(np.float32), name="same")
        self.serve = tf.function(self.run, input_signature=[tf.TensorSpec(shape, kind, name="pixels")])

    def run(self, pixels):
        x = tf.nn.relu(tf.nn.conv2d(tf.cast(pixels, tf.float32), self.kernel, 1, "SAME"))
        x = tf.reduce_mean(x, (1, 2), keepdims=True)
        x = tf.reshape(x, (pixels.shape[0] or -1, 4))  # a fixed batch gets written down here
        scores = tf.nn.softmax(x @ self.dense)
        return {"scores": scores, "class": tf.argmax(scores, 1)}


def keras_models(root: Path) -> None:
    """Each family as SavedModel (`export`), frozen graph and TFLite; two of them quantised as well."""
    for name in FAMILIES:
        model = build(name)
        np.savez(root / f"{name}.npz", **{str(n): np.asarray(model(images(n), training=False)) for n in BATCHES})
        model.export(root / name, verbose=False)
        freeze(model, root / f"{name}.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(str(root / name))
        (root / f"{name}.tflite").write_bytes(converter.convert())
        if name in ("resnet", "mobilenet"):
            quantise(root, name)
        if name == "resnet":
            tf.saved_model.save(model, str(root / "resnet-saved"))


def freeze(model, file: Path) -> None:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    called = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((None, *model.input_shape[1:]))
    )
    file.write_bytes(convert_variables_to_constants_v2(called).graph.as_graph_def().SerializeToString())


def quantise(root: Path, name: str) -> None:
    """Dynamic range, and 8 bits throughout with 8-bit ends."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(root / name))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (root / f"{name}-dynamic.tflite").write_bytes(converter.convert())
    converter.representative_dataset = lambda: ([images(1000 + i)[:1]] for i in range(8))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (root / f"{name}-int8.tflite").write_bytes(converter.convert())
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    (root / f"{name}-uint8.tflite").write_bytes(converter.convert())


def plain_models(root: Path) -> None:
    """Two variables of one name; bytes as input; a fixed batch; open sides."""
    for name, args in {
        "plain": {},
        "bytes": {"kind": tf.uint8},
        "batch1": {"shape": (1, 8, 8, 3)},
        "open": {"shape": (None, None, None, 3)},
    }.items():
        module = Plain(**args)
        tf.saved_model.save(module, str(root / name), signatures=module.serve)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(root / "batch1"))
    (root / "batch1.tflite").write_bytes(converter.convert())
    scores = {str(n): module.run(tf.constant(images(n, (8, 8, 3))))["scores"].numpy() for n in BATCHES}
    np.savez(root / "plain.npz", **scores)


def version1(root: Path) -> None:
    """Placeholders and variables in the main graph, both kinds of variables and of branches."""
    for name, resource in (("v1-resource", True), ("v1-reference", False)):
        (V1.enable_control_flow_v2 if resource else V1.disable_control_flow_v2)()
        with V1.Graph().as_default(), V1.Session() as session:
            V1.set_random_seed(4)
            pixels = V1.placeholder(tf.float32, (None, 8, 8, 3), "pixels")
            with V1.variable_scope("net", use_resource=resource):
                kernel = V1.get_variable("kernel", (3, 3, 3, 4))
                dense = V1.get_variable("dense", (4, 5))
            training = V1.placeholder_with_default(False, ())
            x = tf.nn.relu(tf.nn.conv2d(pixels, kernel, 1, "SAME"))
            pooled = tf.reduce_mean(x, (1, 2))
            pooled = V1.cond(training, partial(tf.add, pooled, 1.0), partial(tf.identity, pooled))
            scores = tf.nn.softmax(pooled @ dense)
            session.run(V1.global_variables_initializer())
            answers = {str(n): session.run(scores, {pixels: images(n, (8, 8, 3))}) for n in BATCHES}
            np.savez(root / f"{name}.npz", **answers)
            V1.saved_model.simple_save(session, str(root / name), {"image": pixels}, {"scores": scores})


def points(root: Path) -> None:
    """Normalisation over the channels of maps of 1x1, as SavedModel, frozen graph and TFLite."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Conv2D(6, 32)(image))
    model = lived_in(keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x))))
    np.savez(root / "points.npz", **{str(n): np.asarray(model(images(n), training=False)) for n in BATCHES})
    model.export(root / "points", verbose=False)
    freeze(model, root / "points.pb")
    (root / "points.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(root / "points")).convert())


def write_all(root: Path) -> None:
    keras_models(root)
    points(root)
    plain_models(root)
    version1(root)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
