"""Ranks of the tensors of a parsed `Graph`, as far as the operators tell; found in one pass over its nodes."""

from __future__ import annotations

from debride.graph.ir import Graph, Node

_SAME = frozenset(
    ("Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Dropout", "Identity", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")
) | {"Softmax", "LogSoftmax", "Cast", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "Transpose"}
_SAME |= {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Conv", "ConvTranspose", "Pad", "Resize"}
_SAME |= {"Concat", "Slice", "Erf", "Gelu", "Sqrt", "Exp", "Neg", "Softplus", "Upsample", "LRN", "Abs", "Mish"}
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Max", "Min", "Sum", "PRelu", "Where"))


def ranks_of(graph: Graph) -> dict[str, int]:
    """Rank by tensor name; tensors of unknown rank are left out."""
    ranks = {name: array.ndim for name, array in graph.constants.items()}
    ranks.update((v.name, len(v.shape)) for v in graph.inputs if v.shape is not None)
    for node in graph.nodes:
        rank = None if node.domain else _rank(graph, node, [ranks.get(i) for i in node.inputs])
        if rank is not None:
            ranks[node.outputs[0]] = rank
    return ranks


def _rank(graph: Graph, node: Node, inputs: list[int | None]) -> int | None:
    if node.op in ("Gemm", "Flatten"):
        return 2
    if node.op in _SAME:
        return inputs[0]
    if node.op in _BROADCAST:
        known = [r for r in inputs if r is not None]
        return max(known) if len(known) == len(inputs) and min(known) >= (node.op == "MatMul") * 2 else None
    if node.op == "Reshape":
        target = graph.constants.get(node.inputs[1])
        return None if target is None else int(target.size)
    if node.op.startswith("Reduce") and node.attributes.get("keepdims", 1):
        return inputs[0]
    if node.op in ("ReduceMean", "ReduceSum", "ReduceMax", "Squeeze", "Unsqueeze"):
        axes = _axes(graph, node)
        if not axes or inputs[0] is None:
            return None
        return inputs[0] + len(axes) if node.op == "Unsqueeze" else inputs[0] - len(axes)
    return None


def _axes(graph: Graph, node: Node) -> list[int] | None:
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in graph.constants:
        axes = graph.constants[node.inputs[1]].reshape(-1).tolist()
    return axes
