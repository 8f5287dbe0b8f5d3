"""The fused self-attention that a trace of `nn.MultiheadAttention` holds, written as plain ONNX operators.

In inference mode PyTorch takes this operator by itself, and its exporter of TorchScript does not know it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_NAME = "aten::_native_multi_head_attention"


@contextlib.contextmanager
def attention_as_onnx(opset: int) -> Iterator[None]:
    """Within it, torch's exporter of TorchScript writes `_native_multi_head_attention` at `opset`."""
    import torch

    onnx: Any = torch.onnx
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # what is recorded here needs no fused operator
    onnx.register_custom_op_symbolic(_NAME, _attention, opset)
    try:
        yield
    finally:
        onnx.unregister_custom_op_symbolic(_NAME, opset)
        torch.backends.mha.set_fastpath_enabled(fast)


def _attention(g: Any, query: Any, key: Any, value: Any, *rest: Any) -> tuple[Any, Any]:
    """Self-attention of `query` (N, L, width) = `key` = `value`, without a mask; the second output is not used."""
    from torch.onnx import errors

    width, heads = (_number(number) for number in rest[:2])
    weight, bias, project, shift, mask = rest[2:7]
    if len({tensor.debugName() for tensor in (query, key, value)}) > 1 or not mask.node().mustBeNone():
        raise errors.SymbolicValueError("only self-attention without a mask is known", query)
    if [output for output in g.original_node.outputs() if output.uses()][1:]:
        raise errors.SymbolicValueError("attention whose weights are used further on is not known", query)
    mixed = g.op("Add", g.op("MatMul", query, g.op("Transpose", weight, perm_i=[1, 0])), bias)
    parts = g.op("Split", mixed, _constant(g, [width] * 3), axis_i=-1, outputs=3)
    split = _constant(g, [0, -1, heads, width // heads])
    q, k, v = (g.op("Reshape", part, split) for part in parts)
    q, v = (g.op("Transpose", tensor, perm_i=[0, 2, 1, 3]) for tensor in (q, v))
    scale = _constant(g, (width / heads) ** -0.5)
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm_i=[0, 2, 3, 1])), scale)
    seen = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis_i=-1), v), perm_i=[0, 2, 1, 3])
    joined = g.op("Reshape", seen, _constant(g, [0, -1, width]))
    return g.op("Add", g.op("MatMul", joined, g.op("Transpose", project, perm_i=[1, 0])), shift), scores


def _number(value: Any) -> int:
    from torch.onnx import symbolic_helper

    number: int = symbolic_helper._parse_arg(value, "i")
    return number


def _constant(g: Any, value: list[int] | float) -> Any:
    import torch

    return g.op(
        "Constant", value_t=torch.tensor(value, dtype=torch.int64 if isinstance(value, list) else torch.float32)
    )
