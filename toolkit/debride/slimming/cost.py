"""What a model costs: parameters, multiply-accumulates, and seconds in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from statistics import median

from debride.graph.ir import Graph
from debride.graph.letters import einsum_of
from debride.sessions import Session
from debride.slimming.noise import Feeds

Shapes = Callable[[str], tuple[int, ...]]
_PAIRS = 25
_SECONDS = 4.0
_WEIGHT_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}


def parameters(graph: Graph) -> int:
    """How many numbers the float constants hold that the nodes of `graph` read."""
    read = {tensor for node in graph.nodes for tensor in node.inputs}
    floats = (array for name, array in graph.constants.items() if name in read and array.dtype.kind not in "biuOSU")
    return sum(array.size for array in floats)


def macs(graph: Graph, shapes: Shapes, batch: int) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one image; `shapes` are at `batch` images."""
    total = 0
    for node in graph.nodes:
        if node.op in _WEIGHT_AT:
            total += prod(shapes(node.outputs[0])) * prod(shapes(node.inputs[_WEIGHT_AT[node.op]])[1:])
        elif node.op == "ConvTranspose":
            total += prod(shapes(node.inputs[0])) * prod(shapes(node.inputs[1])[1:])
        elif node.op in ("MatMul", "Gemm", "Einsum"):
            operands = [shapes(tensor) for tensor in node.inputs[:2]]
            letters = einsum_of(node, operands)
            total += prod(letters.sizes(operands).values()) if letters else 0
    return total // max(batch, 1)


def latencies(sessions: Sequence[Session], feeds: Feeds) -> list[float]:
    """Median seconds of a run of `feeds` in each of `sessions`, taking turns: a busy machine then slows all alike."""
    taken: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(feeds)
    begun = time.monotonic()
    while len(taken[0]) < _PAIRS and (time.monotonic() - begun < _SECONDS or len(taken[0]) < 3):
        for session, own in zip(sessions, taken, strict=True):
            started = time.perf_counter()
            session.run(feeds)
            own.append(time.perf_counter() - started)
    return [median(own) for own in taken]
