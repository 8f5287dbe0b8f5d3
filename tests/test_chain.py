"""A chain of links is the gated graph, wherever it is cut; what cannot be cut stays in the link before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from debride.errors import SurgeryError
from debride.graph import chain
from debride.graph.chain import chained
from debride.graph.channels import find_groups
from debride.graph.gates import MASK, gate
from debride.graph.read import read_model
from graph_models import Builder, assert_close, classifiers, images, run

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def read(proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(tmp_path / "m.onnx")


def run_chain(links, feeds, mask):
    """The last link's exits, each link fed with what the one before passed on."""
    tensors = dict(feeds)
    for link in links:
        proto = onnx.load_from_string(link.model)
        reads = [value.name for value in proto.graph.input]
        given = {MASK: mask[:, list(link.columns)]} if link.columns else {}
        tensors = dict(zip(link.exits, run(proto, {**{r: tensors[r] for r in reads if r != MASK}, **given},
                                           list(link.exits)), strict=True))  # fmt: skip
    return tensors


@QUICK
@given(proto=classifiers())
def test_the_links_in_turn_are_the_gated_graph(tmp_path, proto):
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    x, mask = images(model), np.float32(np.random.default_rng(0).random((1, len(groups))) < 0.6)
    links = chained(model.working, groups, "scores").links
    assert links[0].columns == () and sorted(c for link in links for c in link.columns) == list(range(len(groups)))
    (expected,) = run(gate(model.working, groups), {**x, MASK: mask})
    assert_close(run_chain(links, x, mask)["scores"], expected)


def three_layers(tmp_path):
    """Three convolutions, the second around which the first goes too."""
    b = Builder(13, seed=3)
    x = b.op("Relu", b.conv("x", 3, 4))
    x = b.op("Relu", b.op("Add", b.conv(x, 4, 4), x))
    x = b.op("Relu", b.conv(x, 4, 5))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.weight(5, 3), b.weight(3))
    return read(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path)


def test_each_layer_begins_a_link(tmp_path):
    model = three_layers(tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    links = chained(model.working, groups[::-1], "scores").links
    assert [len(link.columns) for link in links] == [0, 4, 4, 5]
    assert links[1].columns == (12, 11, 10, 9) or set(links[1].columns) == {9, 10, 11, 12}
    convolutions = [sum(n.op_type == "Conv" for n in onnx.load_from_string(link.model).graph.node) for link in links]
    assert convolutions == [0, 1, 1, 1]


def test_a_layer_before_which_there_is_no_cut_joins_the_link_before(tmp_path, monkeypatch):
    model, split, calls = three_layers(tmp_path), chain.split_at, []
    groups, _ = find_groups(model.graph, "scores")

    def fails_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise SurgeryError("the type of 'this' cannot be inferred")
        return split(*given)

    monkeypatch.setattr(chain, "split_at", fails_once)
    links = chained(model.working, groups, "scores").links
    assert [len(link.columns) for link in links] == [0, 8, 5]
    x, mask = images(model), np.float32(np.random.default_rng(0).random((1, len(groups))) < 0.6)
    assert_close(run_chain(links, x, mask)["scores"], run(gate(model.working, groups), {**x, MASK: mask})[0])


def test_a_graph_that_cannot_be_cut_at_all_and_an_edge_that_nobody_makes_are_refused(tmp_path):
    model = three_layers(tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    with pytest.raises(SurgeryError, match="depends on none of the gated tensors"):
        chained(model.working, groups, groups[0].edge.replace(groups[0].edge, "x"))
    with pytest.raises(SurgeryError, match="no node makes the edge"):
        chained(onnx.load_from_string(chained(model.working, groups, "scores").links[-1].model), groups, "scores")
