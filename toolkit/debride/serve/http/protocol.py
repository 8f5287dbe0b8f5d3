"""The codec of the Open Inference Protocol v2: requests to arrays, arrays to answers; no HTTP in it."""

from .datatypes import tensor_metadata
from .outputs import Wanted
from .request import InferRequest, parse_infer
from .response import render_infer

__all__ = ["InferRequest", "Wanted", "parse_infer", "render_infer", "tensor_metadata"]
