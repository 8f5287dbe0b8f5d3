"""Inference requests to a small model: a good one, and how it is changed."""

import numpy as np

from debride.serve.http.datatypes import DATATYPES
from debride.serve.http.protocol import parse_infer
from debride.sessions import TensorInfo

DTYPES = {kind.name: kind.dtype for kind in DATATYPES.values()}


def info(name, dtype, *shape):
    return TensorInfo(name, shape, np.dtype(dtype))


def parse(body, length=None, *, dtype=np.float32, shape=(None, 3), outputs=None, max_values=1000):
    outputs = outputs or [info("y", np.float32, None, 4), info("half", np.float16, None)]
    return parse_infer(body, length, inputs=[info("x", dtype, *shape)], outputs=outputs, max_values=max_values)


def request(entry=None, **fields):
    """A good request but for what is given: fields of its one input in `entry`, of the whole in `fields`; ... drops."""
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **(entry or {})}
    whole = {"inputs": [tensor], "outputs": [{"name": "y"}], **fields}
    dropped = [{k: v for k, v in part.items() if v is not ...} for part in (tensor, whole)]
    if "inputs" not in fields:
        dropped[1]["inputs"] = [dropped[0]]
    return dropped[1]


def binary(size, **entry):
    return request({"data": ..., "parameters": {"binary_data_size": size}, **entry})
