"""Which players leave and which stay, and why: told of the graph as it was, however many passes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from debride.graph.channels import find_groups
from debride.graph.ir import Graph
from debride.slimming.problem import Problem
from debride.types import BoolArray, ChannelGroup, InputSpec, Refused, Slice

Player = tuple[str, int]
"""(layer, channel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All players, each with the reason why it stays ("" where it leaves), and those of them that are zeroed."""

    reasons: Mapping[Player, str]
    dead: frozenset[Player]

    @property
    def channels(self) -> int:
        """How many players leave."""
        return sum(not reason for reason in self.reasons.values())

    @property
    def left(self) -> int:
        """How many of the dead leave."""
        return sum(not self.reasons[player] for player in self.dead)

    @property
    def stayed(self) -> tuple[Refused, ...]:
        """The dead that stay."""
        return tuple(
            Refused(layer=layer, channel=channel, reason=reason)
            for (layer, channel), reason in self.reasons.items()
            if reason and (layer, channel) in self.dead
        )

    def then(self, later: Account) -> Account:
        """This account, once another pass went over what was left; `later` counts channels as they were by then."""
        reasons = dict(self.reasons)
        places: dict[str, int] = {}
        for (layer, channel), reason in self.reasons.items():
            if reason:
                place = places.setdefault(layer, 0)
                places[layer] += 1
                # A layer that has no players any more keeps what was said of it.
                reasons[layer, channel] = later.reasons.get((layer, place), reason)
        return Account(reasons=reasons, dead=self.dead)


def account_of(problem: Problem, spec: InputSpec | None) -> Account:
    """The players of a solved `problem`."""
    graph, axes = problem.graph, problem.axes
    ranks = {tensor: len(shape) for tensor, shape in problem.observed.shapes.items()}
    groups, _ = find_groups(graph, (spec and spec.output) or graph.outputs[0].name, ranks)
    is_zero = _Zeros(graph)

    def reason(group: ChannelGroup) -> str:
        if not axes.knows(group.edge):
            return "in a shape that is not known"
        return axes.reason(group.edge, group.axis % axes.rank(group.edge), group.channel)

    return Account(
        reasons={(group.layer, group.channel): reason(group) for group in groups},
        dead=frozenset((g.layer, g.channel) for g in groups if all(is_zero(piece) for piece in g.slices)),
    )


class _Zeros:
    """Which slices of constants are zero; each constant is looked at once for each of its axes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {node.name: node for node in graph.nodes}
        self._live: dict[tuple[str, int], BoolArray] = {}

    def __call__(self, piece: Slice) -> bool:
        name = self._makers[piece.node].inputs[piece.position]
        if (name, piece.axis) not in self._live:
            array = self._graph.constants[name]
            others = tuple(axis for axis in range(array.ndim) if axis != piece.axis)
            self._live[name, piece.axis] = np.asarray((array != 0).any(axis=others))
        return not self._live[name, piece.axis][list(piece.indices)].any()
