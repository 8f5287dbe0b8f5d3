"""Channel shuffles: reshapes and transposes that, taken together, only put the channels in another order.

Each step alone binds channels to a grid, which nothing may leave unless whole rows do; the whole is a permutation, and
a Gather can stand for it once channels are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index
from debride.slimming.observe import Observed

_LAYOUT = frozenset(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"))
_MOST = 2**24
_LONGEST = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shuffle:
    """Index i along `axis` of `out` is index `order[i]` of `x`; `nodes` are the names of the steps, in order."""

    x: str
    out: str
    axis: int
    order: npt.NDArray[np.int64]
    nodes: tuple[str, ...]


Shuffles = Mapping[str, Shuffle]
"""Shuffles by the name of each of their nodes."""


def find_shuffles(graph: Graph, observed: Observed, index: Index) -> Shuffles:
    """All chains of layout operators that permute one axis, each read by the next one only."""
    found: dict[str, Shuffle] = {}
    for node in graph.nodes:
        if node.op != "Reshape" or node.domain or node.name in found:
            continue
        shuffle = _from(node, observed, index)
        if shuffle is not None:
            found.update(dict.fromkeys(shuffle.nodes, shuffle))
    return found


def _from(first: Node, observed: Observed, index: Index) -> Shuffle | None:
    shape = observed.shapes.get(first.inputs[0], ())
    if not 1 < int(np.prod(shape)) <= _MOST:
        return None
    places = np.arange(int(np.prod(shape))).reshape(shape)
    chain: list[str] = []
    node: Node | None = first
    moved = places
    while node is not None and node.op in _LAYOUT and not node.domain and len(chain) < _LONGEST:
        chain.append(node.name)
        out = node.outputs[0]
        if observed.shapes.get(out) is None or int(np.prod(observed.shapes[out])) != places.size:
            return None
        if node.op == "Transpose":
            moved = moved.transpose(node.attributes.get("perm") or list(range(moved.ndim))[::-1])
        else:
            moved = moved.reshape(observed.shapes[out])
        if moved.shape == shape and len(chain) > 2:
            permuted = _permutation(places, moved)
            if permuted is not None:
                axis, order = permuted
                return Shuffle(x=first.inputs[0], out=out, axis=axis, order=order, nodes=tuple(chain))
        reader = index.sole_reader(out)
        node = reader[0] if reader is not None and reader[1] == 0 else None
    return None


def _permutation(
    places: npt.NDArray[np.int64], moved: npt.NDArray[np.int64]
) -> tuple[int, npt.NDArray[np.int64]] | None:
    """(axis, order) where `moved` is `places` with one axis in another order."""
    for axis, size in enumerate(places.shape):
        # The first entry along every other axis tells the order; the rest must agree.
        start = tuple(slice(None) if a == axis else 0 for a in range(places.ndim))
        order = moved[start] // int(np.prod(places.shape[axis + 1 :])) % size
        if not np.array_equal(order, np.arange(size)) and np.array_equal(places.take(order, axis=axis), moved):
            return axis, order
    return None
