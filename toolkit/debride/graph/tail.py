"""Whether a mask on one edge acts on the class scores as a sum: then a coalition costs one row of a matrix product.

Two things make it so. While every element depends on at most one channel's mask, any function of it is affine in that
mask, since a mask is 0 or 1: f(m x) = f(0) + m (f(x) - f(0)). Once channels are mixed, only linear operators keep it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index

State = Literal["channel", "element", "affine"]
"""What an element depends on: the mask of the channel it lies in; one channel's mask; the sum over all masks."""

_UNARY = frozenset(
    (
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "ThresholdedRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Erf",
    )
) | {"Gelu", "Mish", "Softplus", "Softsign", "Clip", "Abs", "Exp", "Sqrt", "Reciprocal", "Log", "Swish"}
_KEEPING = frozenset(("Identity", "Dropout", "Neg", "BatchNormalization"))
_FLOATS = (1, 10, 11, 16)  # TensorProto.DataType: FLOAT, FLOAT16, DOUBLE, BFLOAT16
_ARRANGING = frozenset(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"))
_BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Sum"))
_MIXING = frozenset(("Gemm", "MatMul", "Conv", "ConvTranspose"))
_SOFT = frozenset(("Softmax", "LogSoftmax"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTail:
    """`logits(m) = logits(0) + sum_c m_c * (logits(only c) - logits(0))`, exact for masks of zeros and ones.

    `logits` is the scores tensor, or what a final `softmax` (Softmax or LogSoftmax node name, else "") reads.
    """

    logits: str
    softmax: str = ""


def linear_tail(graph: Graph, edge: str, scores: str, axis: int = 1) -> LinearTail | None:
    """The closed form of masks on `edge` (channels along `axis`); None where what follows it is not a sum over them."""
    index = Index(graph)
    needed = index.ancestors([scores])
    if edge not in {o for node in needed.values() for o in node.outputs}:
        return None
    rank = index.ranks.get(edge)
    states: dict[str, State] = {edge: "channel"}
    for node in graph.nodes:
        if node.name not in needed or edge in node.outputs:
            continue
        if node.op in ("If", "Loop", "Scan"):
            return None  # their bodies may read the masked tensor unseen
        if node.op == "Shape" or not any(i in states for i in node.inputs):
            continue
        if node.op in _SOFT and scores in node.outputs and node.inputs[0] in states:
            return LinearTail(logits=node.inputs[0], softmax=node.name)
        state = None if node.domain else _after(index, node, [states.get(i) for i in node.inputs], axis, rank)
        if state is None:
            return None
        states[node.outputs[0]] = state
    return LinearTail(logits=scores)


def _after(index: Index, node: Node, states: list[State | None], axis: int, rank: int | None) -> State | None:
    """The state of the first output of `node`, given those of its inputs (None: independent of the mask)."""
    if sum(map(bool, node.outputs)) > 1 and node.op not in ("Dropout", "BatchNormalization"):
        return None
    if node.op in _BINARY:
        return _binary(node, states, all(_fits(index, i, rank) for i in node.inputs))
    if states[0] is None or any(states[1:]):
        # A matrix product is linear in its right operand too; everything else takes the masked tensor first.
        return "affine" if node.op == "MatMul" and states[0] is None else None
    state = states[0]
    if node.op in _KEEPING or (node.op == "Cast" and node.attributes.get("to") in _FLOATS):
        return state
    if node.op in _ARRANGING:
        return "affine" if state == "affine" else "element"
    if node.op in _UNARY:
        return None if state == "affine" else state
    if node.op in _MIXING:
        return "affine"
    apart = state == "channel" and _spares_channels(index, node, axis, rank)
    if node.op in ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"):
        return "channel" if apart else "affine"
    if node.op in ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "ReduceL2"):
        return "channel" if apart else None
    return None


def _fits(index: Index, tensor: str, rank: int | None) -> bool:
    """Whether broadcasting against `tensor` surely adds no axis in front of the channels."""
    own = index.ranks.get(tensor)
    return own is not None and rank is not None and own <= rank


def _binary(node: Node, states: list[State | None], same_rank: bool) -> State | None:
    live = [s for s in states if s is not None]
    if all(s == "channel" for s in live) and same_rank:
        return "channel"  # the channel axis is the same in all of them, so channels meet only themselves
    if node.op in ("Add", "Sub", "Sum"):
        separate = len(live) == 1 and live[0] != "affine"
        return "element" if separate else "affine"
    if len(live) > 1:
        return None
    if live[0] != "affine":
        return "element"
    return "affine" if node.op == "Mul" or (node.op == "Div" and states[0] is not None) else None


def _spares_channels(index: Index, node: Node, axis: int, rank: int | None) -> bool:
    """Whether pooling or reducing by `node` leaves the channel axis as it is; False where that is not known."""
    if "Pool" in node.op:
        return axis == 1
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        constant = index.constant(node.inputs[1])
        axes = None if constant is None else constant.reshape(-1).tolist()
    if not axes or rank is None or node.attributes.get("keepdims", 1) != 1:
        return False
    return axis % rank not in {a % rank for a in axes}
