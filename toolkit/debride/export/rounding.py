"""What a graph in half precision says where it is computed in half precision.

onnxruntime's CPU operators compute in float32 and drop the conversions between them, so that nothing is rounded there
and nothing overflows. Conversions that a float32 graph itself asks for are kept: this is such a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableSequence

import onnx

from debride.graph.infer import value_infos

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_AS_IT_IS = frozenset(("Constant", "Identity", "Shape", "Size", "Cast"))
"""Operators that compute nothing; what they pass on is rounded where it is read."""
_FIRST_ALONE = frozenset(("Resize", "Upsample"))
"""The rest of their inputs are scales and sizes, which stay in float32."""


def rounded(proto: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """A copy of `proto` (float32, nodes named) that rounds to half all that nodes not in `kept` read and make.

    Sums within an operator stay in float32, as accelerators compute them.
    """
    floats = {name for name, info in value_infos(proto).items() if info.type.tensor_type.elem_type == _FLOAT}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    del copy.graph.value_info[:]
    read = dict[str, str]()
    for node in proto.graph.node:
        if node.name in kept or node.op_type in _AS_IT_IS:
            copy.graph.node.add().CopyFrom(node)
            continue
        places = node.input[:1] if node.op_type in _FIRST_ALONE else node.input
        for name in places:
            if name in floats and name not in read:
                read[name] = f"debride.half:{name}"
                _round(copy.graph, name, read[name])
        made = copy.graph.node.add()
        made.CopyFrom(node)
        _rename(made.input, read, len(places))
        outputs = {name: f"debride.float:{name}" for name in node.output if name in floats}
        _rename(made.output, outputs, len(node.output))
        for name, before in outputs.items():
            _round(copy.graph, before, name)
            read[name] = name
    return copy


def _round(graph: onnx.GraphProto, before: str, after: str) -> None:
    low = f"debride.low:{after}"
    graph.node.append(onnx.helper.make_node("Cast", [before], [low], name=low, to=_HALF))
    graph.node.append(onnx.helper.make_node("Cast", [low], [after], name=f"debride.high:{after}", to=_FLOAT))


def _rename(ends: MutableSequence[str], names: Mapping[str, str], count: int) -> None:
    for place, name in enumerate(ends[:count]):
        ends[place] = names.get(name, name)
