"""The operator table: (domain, operator, since_version) -> implementation, looked up exactly.

Taking the newest implementation not above the opset would silently accept a later change of meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType

from debride.errors import UnsupportedOpError
from debride.graph.ir import Node
from debride.proxy import (
    ops_activation,
    ops_attention,
    ops_conv,
    ops_create,
    ops_index,
    ops_integer,
    ops_linear,
    ops_logic,
    ops_math,
    ops_norm,
    ops_pool,
    ops_quant,
    ops_reduce,
    ops_resize,
    ops_sample,
    ops_shape,
)
from debride.proxy.op import Operator

Key = tuple[str, str, int]

_FAMILIES = (
    ops_activation,
    ops_attention,
    ops_conv,
    ops_create,
    ops_index,
    ops_integer,
    ops_linear,
    ops_logic,
    ops_math,
    ops_norm,
    ops_pool,
    ops_quant,
    ops_reduce,
    ops_resize,
    ops_sample,
    ops_shape,
)


def _operators(module: ModuleType) -> Iterator[Operator]:
    for value in vars(module).values():
        if isinstance(value, Operator):
            yield value
        elif isinstance(value, tuple):
            yield from (v for v in value if isinstance(v, Operator))


def _build(operators: Iterable[Operator]) -> Mapping[Key, Operator]:
    table: dict[Key, Operator] = {}
    for operator in operators:
        for version in operator.since:
            if table.setdefault((operator.domain, operator.name, version), operator) is not operator:
                raise ValueError(f"{operator.name} since {version} is defined twice")
    return MappingProxyType(table)


TABLE: Mapping[Key, Operator] = _build(o for family in _FAMILIES for o in _operators(family))

_BRANCHES = (
    "chooses between graphs while the model runs, so that no one gradient is right; export the model in evaluation "
    "mode, by tracing, with the condition folded to a constant"
)
_REPEATS = (
    "repeats a graph as often as the data say, so that no one gradient is right; export the model by tracing, with its "
    "loops unrolled"
)
_LISTS = (
    "works on sequences or optionals, which are no tensors; export the model by tracing, with fixed shapes, so that "
    "its lists become Concat and Split"
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {"If": _BRANCHES, "Loop": _REPEATS, "Scan": _REPEATS}
    | dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"), _LISTS)
    | dict.fromkeys(("SequenceLength", "SequenceMap", "ConcatFromSequence", "SplitToSequence"), _LISTS)
    | dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), _LISTS)
)
"""Operators that the proxy will not guess at: what they do, and the mend."""


def lookup(node: Node, opset: int) -> Operator:
    """The implementation of `node`; `UnsupportedOpError` names operator, node, opset and the mend."""
    found = TABLE.get((node.domain, node.op, node.since_version))
    if found is not None:
        return found
    name = f"{node.domain}.{node.op}" if node.domain else node.op
    place = f"node {node.name!r}: operator {name} (version {node.since_version}, opset {opset})"
    if not node.domain and node.op in _REFUSED:
        raise UnsupportedOpError(f"{place} {_REFUSED[node.op]}")
    known = sorted(v for d, o, v in TABLE if (d, o) == (node.domain, node.op))
    versions = f"the proxy has it since {', '.join(map(str, known))}" if known else "the proxy has no such operator"
    raise UnsupportedOpError(
        f"{place} cannot be differentiated: {versions}; export the model with plain operators at opset 13 to 23"
    )
