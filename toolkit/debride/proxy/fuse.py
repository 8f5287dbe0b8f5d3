"""Chains of nodes that spell GELU or layer normalisation, as older opsets do, read as the one operator they mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy.typing as npt

from debride.graph.ir import Node

Constants = Mapping[str, npt.NDArray[Any]]
_NUMBERS = ("float32", "float64", "int32", "int64")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fused:
    """Nodes in topological order; `assumed` are the constants whose values the fusing took for granted."""

    nodes: tuple[Node, ...]
    assumed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chain:
    """The last node's place is where `node` goes; all of `parts` vanish."""

    node: Node
    parts: tuple[Node, ...]
    assumed: tuple[str, ...]


class _Nodes:
    """The nodes with who makes and who reads each tensor; `kept` tensors must be there in the end."""

    def __init__(self, nodes: Iterable[Node], constants: Constants, kept: Collection[str]) -> None:
        self.constants, self.kept = constants, kept
        self.maker: dict[str, Node] = {}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            self.maker.update((name, node) for name in node.outputs if name)
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)

    def read(self, node: Node, op: str, times: int = 1) -> list[Node]:
        """The readers of `node`'s output if they are `times`, one of them an `op`, and it is not kept; else none."""
        readers = self.readers.get(node.outputs[0], [])
        fits = len(readers) == times and node.outputs[0] not in self.kept and any(_is(r, op) for r in readers)
        return readers if fits else []

    def made(self, name: str, op: str) -> Node | None:
        """The `op` that makes the tensor `name`, if one does."""
        node = self.maker.get(name)
        return node if node is not None and _is(node, op) else None

    def scalar(self, name: str) -> float | None:
        """The value of `name` where it is a constant of one number; None for half precision, whose digits are few."""
        array = self.constants.get(name)
        if array is None or array.size != 1 or array.ndim > 1 or array.dtype.name not in _NUMBERS:
            return None
        return float(array.reshape(()))

    def number(self, name: str, value: float) -> bool:
        """Whether `name` is a constant of this one value, to the digits of float32."""
        found = self.scalar(name)
        return found is not None and abs(found - value) <= 1e-6 * abs(value)

    def beside(self, node: Node, name: str) -> str:
        """The other operand of a node of two."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def _is(node: Node, op: str) -> bool:
    return node.op == op and not node.domain


def fuse(nodes: Sequence[Node], constants: Constants, kept: Collection[str]) -> Fused:
    """`nodes` with each recognised chain as one node, equal in exact arithmetic.

    A chain stays as it is where one of its inner tensors is in `kept` or is read from outside of it.
    """
    web = _Nodes(nodes, constants, kept)
    found = [c for node in nodes if (c := _gelu(web, node) or _layer_norm(web, node)) is not None]
    gone = {id(part) for chain in found for part in chain.parts}
    put = {id(chain.parts[-1]): chain.node for chain in found}
    left = (put.get(id(node), node) for node in nodes if id(node) in put or id(node) not in gone)
    return Fused(nodes=tuple(left), assumed=tuple(sorted({name for chain in found for name in chain.assumed})))


def _gelu(web: _Nodes, erf: Node) -> _Chain | None:
    """x * (1 + erf(x / sqrt 2)) / 2, in any order of its factors."""
    scaled = web.maker.get(erf.inputs[0]) if _is(erf, "Erf") else None
    if scaled is None or len(web.read(scaled, "Erf")) != 1:
        return None
    x = next((n for n in scaled.inputs if n not in web.constants), "")
    root = web.beside(scaled, x)
    divided = _is(scaled, "Div") and scaled.inputs[0] == x and web.number(root, sqrt(2))
    if not divided and not (_is(scaled, "Mul") and web.number(root, sqrt(0.5))):
        return None
    one = next(iter(web.read(erf, "Add")), None)
    product = None if one is None else next(iter(web.read(one, "Mul")), None)
    if one is None or product is None or not web.number(web.beside(one, erf.outputs[0]), 1.0):
        return None
    rest = _halved(web, product, one.outputs[0], x)
    if rest is None:
        return None
    parts, half = rest
    last = parts[-1]
    node = replace(last, op="Gelu", inputs=(x,), attributes={}, since_version=20)
    assumed = (root, web.beside(one, erf.outputs[0]), half)
    return _Chain(node=node, parts=(scaled, erf, one, *parts), assumed=assumed)


def _halved(web: _Nodes, product: Node, one: str, x: str) -> tuple[tuple[Node, ...], str] | None:
    """The multiplications by `x` and a half that follow on `one`, of which `product` is first; and the half's name."""
    other = web.beside(product, one)
    half = web.made(other, "Mul")
    if half is not None and x in half.inputs and web.number(web.beside(half, x), 0.5) and web.read(half, "Mul"):
        return (half, product), web.beside(half, x)
    last = next(iter(web.read(product, "Mul")), None)
    if last is None:
        return None
    second = web.beside(last, product.outputs[0])
    if other == x and web.number(second, 0.5):
        return (product, last), second
    if second == x and web.number(other, 0.5):
        return (product, last), other
    return None


def _layer_norm(web: _Nodes, root: Node) -> _Chain | None:
    """(x - mean) / sqrt(mean of squares + epsilon) * scale + bias over the last axis, from its square root on."""
    added = web.made(root.inputs[0], "Add") if _is(root, "Sqrt") else None
    spread = None if added is None else web.made(added.inputs[0], "ReduceMean")
    power = None if spread is None else web.made(spread.inputs[0], "Pow")
    centred = None if power is None else web.made(power.inputs[0], "Sub")
    mean = None if centred is None else web.made(centred.inputs[1], "ReduceMean")
    if added is None or spread is None or power is None or centred is None or mean is None:
        return None
    divided = next((n for n in web.read(centred, "Div", 2) if _is(n, "Div")), None)
    scaled = None if divided is None else next(iter(web.read(divided, "Mul")), None)
    shifted = None if scaled is None else next(iter(web.read(scaled, "Add")), None)
    if divided is None or scaled is None or shifted is None:
        return None
    inner = ((mean, "Sub"), (power, "ReduceMean"), (spread, "Add"), (added, "Sqrt"), (root, "Div"))
    epsilon = web.scalar(added.inputs[1])
    scale, bias = web.beside(scaled, divided.outputs[0]), web.beside(shifted, scaled.outputs[0])
    fits = (
        all(web.read(node, op) for node, op in inner)
        and mean.inputs[0] == centred.inputs[0]
        and divided.inputs == (centred.outputs[0], root.outputs[0])
        and _over_last(web, mean)
        and _over_last(web, spread)
        and web.number(power.inputs[1], 2.0)
        and all(name in web.constants and web.constants[name].ndim == 1 for name in (scale, bias))
        and web.constants[scale].shape == web.constants[bias].shape
    )
    if not fits or epsilon is None:
        return None
    inputs, attributes = (mean.inputs[0], scale, bias), {"axis": -1, "epsilon": epsilon}
    node = replace(shifted, op="LayerNormalization", inputs=inputs, attributes=attributes, since_version=17)
    parts = (mean, centred, power, spread, added, root, divided, scaled, shifted)
    return _Chain(node=node, parts=parts, assumed=(power.inputs[1], added.inputs[1]))


def _over_last(web: _Nodes, node: Node) -> bool:
    """Whether a ReduceMean keeps its axes and goes over the last one, named as -1."""
    axes = node.attributes.get("axes")
    if len(node.inputs) > 1:
        found = web.constants.get(node.inputs[1])
        axes = None if found is None else found.reshape(-1).tolist()
    return axes is not None and list(axes) == [-1] and bool(node.attributes.get("keepdims", 1))
