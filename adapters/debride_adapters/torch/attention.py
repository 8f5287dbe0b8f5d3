"""What a trace of `nn.MultiheadAttention` holds, written as plain ONNX operators.

Without gradients PyTorch takes one fused operator, which its exporter of TorchScript does not know. With gradients it
unflattens, and there the exporter loses count of the dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def attention_as_onnx(opset: int) -> Iterator[None]:
    """Within it, torch's exporter of TorchScript writes these operators at `opset`."""
    import torch

    onnx: Any = torch.onnx
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # what is recorded here needs no fused operator
    written = {"aten::_native_multi_head_attention": _attention, "aten::unflatten": _unflatten}
    for name, symbolic in written.items():
        onnx.register_custom_op_symbolic(name, symbolic, opset)
    try:
        yield
    finally:
        for name in written:
            onnx.unregister_custom_op_symbolic(name, opset)
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


def _unflatten(g: Any, tensor: Any, dim: Any, sizes: Any) -> Any:
    """Dimension `dim` as several of `sizes`, one of which may be -1; the rank of the result is stated."""
    from torch.onnx import errors, symbolic_helper

    rank = symbolic_helper._get_tensor_rank(tensor)
    if rank is None or not symbolic_helper._is_packed_list(sizes):
        raise errors.SymbolicValueError("unflatten of a tensor of unknown rank, or to computed sizes", tensor)
    place, parts = _number(dim) % rank, symbolic_helper._unpack_list(sizes)
    shape = g.op("Shape", tensor)

    def between(start: int, end: int) -> list[Any]:
        return [g.op("Slice", shape, _constant(g, [start]), _constant(g, [end]))] if start < end else []

    inner = [g.op("Reshape", part, _constant(g, [-1])) for part in parts]
    target = g.op("Concat", *between(0, place), *inner, *between(place + 1, rank), axis_i=0)
    result = g.op("Reshape", tensor, target)
    result.setType(tensor.type().with_sizes([None] * (rank - 1 + len(parts))))
    return result


def _number(value: Any) -> int:
    from torch.onnx import symbolic_helper

    number: int = symbolic_helper._parse_arg(value, "i")
    return number


def _constant(g: Any, value: list[int] | float) -> Any:
    import torch

    return g.op(
        "Constant", value_t=torch.tensor(value, dtype=torch.int64 if isinstance(value, list) else torch.float32)
    )
