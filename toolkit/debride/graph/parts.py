"""A graph gated by some players and cut before them: what the game runs once, and what it runs per coalition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from debride.graph.chain import Chain, chained
from debride.graph.cut import split_at
from debride.graph.gates import MASK, gate, ungated
from debride.graph.parse import parse
from debride.graph.seen import Seen
from debride.graph.tail import linear_tail
from debride.types import ChannelGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Serialized models: `prefix` maps the image to the tensors `frontier`, `suffix` these and `mask` to `scores`.

    Where `linear`, the scores are affine in the mask: `logits(m) = logits(0) + sum_p m_p * (logits(e_p) - logits(0))`.
    """

    prefix: bytes
    suffix: bytes
    frontier: tuple[str, ...]
    mask: str
    scores: str
    linear: bool


def gated(
    proto: onnx.ModelProto, groups: Sequence[ChannelGroup], scores: str, known: Seen | None = None
) -> Parts | Chain:
    """`gated_parts` where `groups` lie on one edge, else a chain that is cut before each of them; raises as these."""
    way = chained if len({group.edge for group in groups}) > 1 else gated_parts
    return way(proto, groups, scores, known)


def gated_parts(
    proto: onnx.ModelProto, groups: Sequence[ChannelGroup], scores: str, known: Seen | None = None
) -> Parts:
    """Gate `groups` and cut before the first of them; `known` are shapes where inference finds none.

    Raises:
        SurgeryError: the graph cannot be gated or cut there; the message says why.
    """
    edges = {group.edge for group in groups}
    # A sum over the channels of one edge only: masks on two edges multiply.
    tail = linear_tail(parse(proto), groups[0].edge, scores, groups[0].axis) if len(edges) == 1 else None
    scores = tail.logits if tail else scores
    gated, known = gate(proto, groups, known), {**(known or {}), **ungated(known or {}, edges)}
    prefix, suffix, frontier = split_at(gated, edges, scores, known)
    return Parts(
        prefix=prefix.SerializeToString(),
        suffix=suffix.SerializeToString(),
        frontier=frontier,
        mask=MASK,
        scores=scores,
        linear=tail is not None,
    )
