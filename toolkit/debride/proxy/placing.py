"""Which of a plan's tensors lie on the CPU while the data lie on another device, and where they change sides.

Shapes, axes and the like are read as Python numbers: on a GPU, each reading would wait for all that is still being
computed there. So what shapes alone decide stays on the CPU, and so do constants where they are read as numbers; where
such a tensor meets data (an index, a mask, an integer weight) it is moved. The moves are steps of the plan, so that
they are done once for constants, and once per shape of the inputs for what follows from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from debride.graph.ir import Node
from debride.proxy.op import Operator
from debride.proxy.shapes import ASKS, MOST, MOVE

_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_NUMBERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "Upsample", "TopK"), (1,)),
    **dict.fromkeys(("CenterCropPad", "Compress", "CumProd", "CumSum", "OneHot", "Trilu", "AffineGrid"), (1,)),
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), (1,)),
    **dict.fromkeys(("Clip", "Col2Im", "DFT", "Dropout"), (1, 2)),
    **dict.fromkeys(("Pad", "Resize"), (1, 2, 3)),
    "ConstantOfShape": (0,),
    "MaxUnpool": (2,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
}
"""Inputs, by place, that an operator reads as numbers; all its others are data and must lie on one device."""


def _move(x: Tensor, *, device: str) -> Tensor:
    return x.to(device, non_blocking=device != "cpu")


_MOVING = Operator(name=MOVE, since=(1,), compute=_move)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """Nodes and operators with the moves among them; `lent` are the integer constants that must lie on the device too.

    A lent constant is read by the name `there(constant)`.
    """

    nodes: tuple[tuple[Node, Operator], ...]
    lent: tuple[str, ...]


def there(name: str) -> str:
    """What the tensor `name`, made on the CPU, is called where it lies on the device."""
    return f"{name}.debride.there"


def here(name: str) -> str:
    """What the tensor `name`, made on the device, is called where it lies on the CPU."""
    return f"{name}.debride.here"


def placed(
    nodes: Sequence[tuple[Node, Operator]],
    constants: Mapping[str, int],
    exact: Collection[str],
    fed: Collection[str],
    device: str,
) -> Placed:
    """`nodes` in the same order, with moves between the CPU and `device` where they need some.

    `constants` are given with their numbers of elements; those in `exact` lie on the CPU, all others and what is `fed`
    on the device.
    """
    moves = _Moves(exact, device)
    small = {name for name, size in constants.items() if size <= MOST}
    shapes, settled = set[str](), {*constants}
    for node, operator in nodes:
        numbers = () if node.domain else _NUMBERS.get(node.op, ())
        data = {name for i, name in enumerate(node.inputs) if name and i not in numbers}
        asks = node.op in ASKS and not node.domain
        # Beside what follows from shapes, arithmetic on them reads small constants.
        arithmetic = data <= moves.on_cpu | small and (not data or not data.isdisjoint(shapes))
        moves.read(node, operator, numbers, settled, on_cpu=arithmetic, as_is=asks)
        made = {name for name in node.outputs if name} - {*fed}
        if settled.issuperset(name for name in node.inputs if name):
            settled |= made
        if asks or arithmetic:
            shapes |= made
            moves.on_cpu |= made
    return Placed(nodes=tuple(moves.nodes), lent=tuple(moves.lent))


class _Moves:
    """The nodes so far, with the moves among them, and which tensors lie on the CPU."""

    def __init__(self, exact: Collection[str], device: str) -> None:
        self.nodes: list[tuple[Node, Operator]] = []
        self.lent: dict[str, None] = {}  # in order
        self.on_cpu = {*exact}
        self._exact, self._device = exact, device
        self._made: set[str] = set()

    def read(
        self,
        node: Node,
        operator: Operator,
        numbers: Collection[int],
        settled: Collection[str],
        *,
        on_cpu: bool,
        as_is: bool,
    ) -> None:
        """Add `node`, which computes on the CPU or on the device, or reads its input `as_is`, wherever that lies."""
        inputs = list(node.inputs)
        for place, name in enumerate(node.inputs):
            if not name or as_is:
                continue
            if place in numbers:
                # A number that is not known ahead costs a wait either way, where it is read at all.
                inputs[place] = self._here(name) if name in settled else name
            else:
                inputs[place] = self._here(name) if on_cpu else self._there(name)
        self.nodes.append((node if inputs == [*node.inputs] else replace(node, inputs=tuple(inputs)), operator))

    def _here(self, name: str) -> str:
        return name if name in self.on_cpu else self._moved(name, here(name), "cpu")

    def _there(self, name: str) -> str:
        if name not in self.on_cpu:
            return name
        if name not in self._exact:
            return self._moved(name, there(name), self._device)
        self.lent[name] = None
        return there(name)

    def _moved(self, name: str, moved: str, device: str) -> str:
        if moved not in self._made:
            self._made.add(moved)
            node = Node(
                op=MOVE,
                domain="",
                name=f"move of {name}",
                inputs=(name,),
                outputs=(moved,),
                attributes={"device": device},
                since_version=1,
            )
            self.nodes.append((node, _MOVING))
        return moved
