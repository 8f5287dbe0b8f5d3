"""JAX functions (and with them Flax, Equinox and Haiku networks) -> ONNX, by jax2onnx.

There is no adapter for files here: JAX has no file format that holds a network. A checkpoint's weights and the code
that uses them make a function, and functions are converted.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions, FloatArray
from debride_adapters.common import one_line

if TYPE_CHECKING:
    import jax

Function = Callable[["jax.Array"], Any]
"""Images float32 (N, H, W, C) -> class scores (N, K), or a tuple of arrays; in inference mode."""


def from_function(
    function: Function, input_shape: tuple[int, int, int], *, options: ConvertOptions | None = None
) -> Converted:
    """`function` as ONNX, for any number of images of `input_shape` (height, width, channels).

    Raises:
        ModelError: jax2onnx is not installed, or cannot write the function as ONNX.
    """
    try:
        import jax
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ModelError(f"JAX functions cannot be read ({error}); pip install 'debride[jax]'") from error
    name = getattr(function, "__name__", type(function).__name__)
    try:
        graph = to_onnx(function, inputs=[("batch", *input_shape)], opset=(options or ConvertOptions()).opset)
    except Exception as error:
        raise ModelError(
            f"{name}: jax2onnx cannot write it as ONNX ({type(error).__name__}: {one_line(error)}); "
            "write the operation that it names in another way"
        ) from error
    # jax2onnx 0.17 keeps shapes from before its own changes of layout, and onnxruntime warns of them.
    del graph.graph.value_info[:]

    def reference(batch: FloatArray) -> list[FloatArray]:
        return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(function(jax.numpy.asarray(batch)))]

    return Converted(
        onnx=graph.SerializeToString(),
        spec={"name": graph.graph.input[0].name, "layout": "NHWC", "size": [*input_shape[:2]]},
        packages={package: version(package) for package in ("jax", "jax2onnx")},
        reference=reference,
    )
