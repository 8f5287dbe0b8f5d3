"""TensorFlow itself, imported late, kept quiet and off the accelerators."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from debride.errors import ModelError

_LOGGERS = ("absl", "tensorflow", "tf2onnx", "h5py")


def require(path: Path) -> tuple[Any, Any]:
    """The modules `tensorflow` and `tf2onnx`, silent and without a GPU; `path` is for the message.

    Raises `ModelError` where either is not installed.
    """
    # Read when the library loads, so they have to be set before it does.
    for name, value in {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "GLOG_minloglevel": "3"}.items():
        os.environ.setdefault(name, value)
    try:
        import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        raise ModelError(f"{path}: reading it takes TensorFlow and tf2onnx; install debride[tensorflow]") from error
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tf2onnx.logging.set_level(logging.CRITICAL)
    with contextlib.suppress(RuntimeError):  # already running: then it is the caller who chose the devices
        tf.config.set_visible_devices([], "GPU")
    return tf, tf2onnx


def versions(tf: Any, tf2onnx: Any) -> dict[str, str]:
    """What took part in a conversion; TensorFlow's build for the CPU is another distribution of the same."""
    return {"tensorflow": str(tf.__version__), "tf2onnx": str(tf2onnx.__version__)}


@contextlib.contextmanager
def no_reshapes() -> Iterator[None]:
    """Keeps tf2onnx from writing transposes as reshapes.

    It takes the shapes from before it moved the transposes: on maps of 1x1 LayerNormalization comes out wrong.
    """
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    with patch.object(TransposeOptimizer, "post_optimize_action", lambda _: None):
        yield
