"""Types and shapes of tensors as they were seen when a graph ran, for where shape inference does not reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from debride.graph.batch import BATCH
from debride.graph.infer import shape_of, value_infos

Seen = Mapping[str, onnx.ValueInfoProto]


def seen(shapes: Mapping[str, tuple[int | None, ...]], dtypes: Mapping[str, np.dtype[Any]]) -> Seen:
    """`shapes` (None: follows the batch) and `dtypes`, by tensor, as ONNX writes them; without types it lacks."""
    found = {}
    for name, shape in shapes.items():
        try:
            elem_type = helper.np_dtype_to_tensor_dtype(dtypes[name])
        except (KeyError, ValueError):
            continue
        sizes = [BATCH if size is None else size for size in shape]
        found[name] = helper.make_tensor_value_info(name, elem_type, sizes)
    return found


def bytes_per_image(known: Seen) -> int:
    """What the tensors `known` take for one image, those whose size follows the batch."""
    total = 0
    for value in known.values():
        kind = value.type.tensor_type
        if any(dim.dim_param == BATCH for dim in kind.shape.dim):
            sizes = [dim.dim_value or 1 for dim in kind.shape.dim]
            total += math.prod(sizes) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return total


def infos_of(proto: onnx.ModelProto, known: Seen | None) -> Seen:
    """What inference finds in `proto`, and what is `known` of tensors whose shape it does not."""
    infos = dict(value_infos(proto))
    for name, value in (known or {}).items():
        if shape_of(infos.get(name)) is None:
            infos[name] = value
    return infos
