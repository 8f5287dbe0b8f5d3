"""Random small classifiers from a grammar of operators: maps, tokens and vectors of many spellings."""

from __future__ import annotations

import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from random_heads import HEADS, VECTOR_BLOCKS, ending, to_vector
from random_maker import Flow, Maker
from random_maps import MAP_BLOCKS, conv
from random_tokens import TOKEN_BLOCKS, to_map, to_tokens

GRAPH_OPSETS = (9, 10, 11, 12, 13, 14, 16, 17, 18, 20, 21, 23)


@st.composite
def graphs(draw) -> onnx.ModelProto:
    """A classifier of 3x8x8 images "x" in 2 to 6 classes "scores"; now and then a hidden tensor is an output too."""
    opset = draw(st.sampled_from(GRAPH_OPSETS))
    b = Maker(draw, opset, draw(st.sampled_from([3, 4] if opset < 10 else [5, 8] if opset < 21 else [10])))
    b.fixed = draw(st.booleans())
    flow, flows = conv(b, Flow(name="x", shape=(3, 8, 8))), []
    stages = [(MAP_BLOCKS, 5, None), (TOKEN_BLOCKS, 3, to_tokens), (MAP_BLOCKS, 2, to_map)]
    for blocks, most, enter in stages[: draw(st.sampled_from([1, 1, 1, 2, 2, 3]))]:
        flow = enter(b, flow) if enter else flow
        for block in draw(st.lists(st.sampled_from(blocks), max_size=most)):
            flow = block(b, flow)
            flows.append(flow)
    flow = to_vector(b, flow)
    for block in draw(st.lists(st.sampled_from(VECTOR_BLOCKS), max_size=2)):
        flow = block(b, flow)
        flows.append(flow)
    flow = ending(b, draw(st.sampled_from(HEADS))(b, flow, b.whole(2, 6)))
    size = 1 if b.fixed else "batch"
    made = {name for node in b.nodes for name in node.output}
    told = [f for f in flows if f.name in made and f.name != flow.name]
    hidden = [b.pick(*told)] if told and b.rarely() else []
    extra = [helper.make_tensor_value_info(f.name, TensorProto.FLOAT, [size, *f.shape]) for f in hidden]
    return b.model([size, 3, 8, 8], "scores", [size, *flow.shape], listed=b.rarely(), outputs=extra)
