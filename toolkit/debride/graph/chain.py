"""A graph cut before every masked layer into links: what two coalitions have in common up to there is computed once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from debride.errors import SurgeryError
from debride.graph.cut import split_at
from debride.graph.gates import MASK, gate
from debride.graph.seen import Seen
from debride.types import ChannelGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A serialized model that makes the tensors `exits`, which may be some of its inputs; of the mask, it reads
    `columns` (its input `mask`, where there are any)."""

    model: bytes
    exits: tuple[str, ...]
    columns: tuple[int, ...]
    mask: str = MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """`links` one after another map the image to `scores`; the first of them reads no column."""

    links: tuple[Link, ...]
    scores: str


def chained(proto: onnx.ModelProto, groups: Sequence[ChannelGroup], scores: str, known: Seen | None = None) -> Chain:
    """`proto` as a chain whose mask's columns are `groups`; `known` are shapes where inference finds none.

    Where it cannot be cut before a layer, that layer is in the link of the one before.

    Raises:
        SurgeryError: the graph cannot be gated, or not be cut before the first of them; the message says why.
    """
    columns: dict[str, list[int]] = {}
    for column, group in enumerate(groups):
        columns.setdefault(group.edge, []).append(column)
    stops = _stops(proto, columns)
    rest, links, here = proto, [], list[int]()
    for number, stop in enumerate(stops):
        try:
            head, rest, exits = split_at(rest, {e for later in stops[number:] for e in later}, scores, known)
        except SurgeryError:
            if not number:
                raise
        else:
            links.append(_link(head, exits, groups, here, known))
            here = []
        here += [column for edge in stop for column in columns[edge]]
    links.append(_link(rest, (scores,), groups, here, known))
    return Chain(links=tuple(links), scores=scores)


def _stops(proto: onnx.ModelProto, edges: Collection[str]) -> list[list[str]]:
    """The edges in the order of the nodes that make them; those that one node makes, together.

    Raises:
        SurgeryError: no node makes one of them.
    """
    made = ([name for name in node.output if name in edges] for node in proto.graph.node)
    stops = [names for names in made if names]
    missing = sorted(set(edges).difference(*stops))
    if missing:
        raise SurgeryError(f"no node makes the edge '{missing[0]}'; find the groups on this very graph")
    return stops


def _link(
    proto: onnx.ModelProto,
    exits: Sequence[str],
    groups: Sequence[ChannelGroup],
    columns: Sequence[int],
    known: Seen | None,
) -> Link:
    gated = gate(proto, [groups[column] for column in columns], known) if columns else proto
    return Link(model=gated.SerializeToString(), exits=tuple(exits), columns=tuple(columns))
