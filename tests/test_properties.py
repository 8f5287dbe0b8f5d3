"""On random graphs and random channels: masked = zeroed = slimmed, for onnxruntime and for the proxy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from debride.graph.channels import find_groups
from debride.graph.gates import MASK, gate
from debride.graph.read import Model, parse, read_model
from debride.graph.seen import seen
from debride.graph.surgery import working_zero, zero
from debride.proxy.runner import GraphRunner
from debride.sessions import Runtime
from debride.slimming import slim
from debride.slimming.observe import Observed, observe
from debride.types import ChannelGroup
from graph_models import assert_close, images, run
from random_graphs import graphs

QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1500)
SHARES = st.sampled_from([0.1, 0.3, 0.5, 0.8])


def read(proto: onnx.ModelProto, folder) -> Model:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(folder / "m.onnx")


def chosen(model: Model, share: float, seed: int) -> tuple[tuple[ChannelGroup, ...], np.ndarray]:
    """All players and, for each, whether it goes: about `share` of them, now and then whole layers."""
    groups, _ = find_groups(model.graph, "scores", ranks_of(observed(model)))
    rng = np.random.default_rng(seed)
    whole = {layer: rng.random() < 0.1 for layer in dict.fromkeys(g.layer for g in groups)}
    return groups, np.array([whole[g.layer] or rng.random() < share for g in groups], np.bool_)


def observed(model: Model) -> Observed:
    """The shapes of all tensors, as `debride.loading` sees them."""
    return observe(model.working, model.graph, None, Runtime(threads=1), "m")


def ranks_of(shown: Observed) -> dict[str, int]:
    return {tensor: len(shape) for tensor, shape in shown.shapes.items()}


def check_masks(model: Model, share: float, seed: int) -> None:
    """Gated, zeroed, and the proxy with masks agree, on 3 images at once where the batch could be freed."""
    groups, gone = chosen(model, share, seed)
    x = images(model, model.graph.inputs[0].shape[0] or 3, seed)
    if not groups:
        return
    shown = observed(model)
    gated = gate(model.working, groups, seen(shown.open_shapes(), shown.dtypes))
    onnx.checker.check_model(gated)
    outputs = [value.name for value in model.graph.outputs]
    absent = [g for g, out in zip(groups, gone, strict=True) if out]
    for zeroed, row in ((model.working, np.ones(len(groups))), (working_zero(model, absent), ~gone)):
        expected = run(zeroed, x, outputs)
        masked = run(gated, {**x, MASK: row.astype(np.float32)[None]}, outputs)
        runner = GraphRunner(model.graph)
        with torch.no_grad():
            masks = edge_masks(groups, row, shown.shapes)
            feeds = {name: torch.from_numpy(array) for name, array in x.items()}
            proxied = runner.run(feeds, outputs, masks)
        for name, a, b in zip(outputs, expected, masked, strict=True):
            assert_close(b, a)
            assert_close(proxied[name].numpy(), a)


def edge_masks(groups, row: np.ndarray, shapes: dict) -> dict[str, torch.Tensor]:
    masks = {}
    for group, here in zip(groups, row, strict=True):
        shape, axis = shapes[group.edge], group.axis % len(shapes[group.edge])
        if group.edge not in masks:
            masks[group.edge] = torch.ones([size if a == axis else 1 for a, size in enumerate(shape)])
        masks[group.edge].select(axis, group.channel).fill_(float(here))
    return masks


def check_slimming(model: Model, share: float, seed: int, folder) -> onnx.ModelProto:
    """The zeroed file slimmed: equal outputs, the same ends, and every dead channel answered for."""
    groups, gone = chosen(model, share, seed)
    absent = [g for g, out in zip(groups, gone, strict=True) if out]
    proto = zero(model, absent)
    proto.metadata_props.add(key="kept", value="as it was")
    proto.doc_string = "as it was"
    zeroed = read(proto, folder)
    slimmed = slim(zeroed, runtime=Runtime(threads=1))
    assert slimmed.facts.reason == ""
    onnx.checker.check_model(slimmed.proto, full_check=True)
    check_ends(proto, slimmed.proto)
    check_equal(proto, slimmed.proto, seed)
    check_accounts(absent, zeroed, slimmed)
    return slimmed.proto


def check_ends(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Inputs that are no constants, outputs, opset, metadata and versions are the same."""
    constants = {t.name for p in (before, after) for t in p.graph.initializer}
    fed = [[v for v in p.graph.input if v.name not in constants] for p in (before, after)]
    assert fed[0] == fed[1]
    assert list(before.graph.output) == list(after.graph.output)
    for field in ("opset_import", "metadata_props", "doc_string", "ir_version", "producer_name"):
        assert getattr(before, field) == getattr(after, field)


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto, seed: int) -> None:
    inputs = {v.name: v for v in before.graph.input}
    fixed = inputs["x"].type.tensor_type.shape.dim[0].dim_value
    for n in (1,) if fixed else (1, 3):
        x = {"x": np.random.default_rng(seed).random((n, 3, 8, 8), dtype=np.float32) * 2 - 0.5}
        for a, b in zip(run(before, x), run(after, x), strict=True):
            assert_close(b, a)


def check_accounts(absent, zeroed: Model, slimmed) -> None:
    """Every zeroed group left its layer or stayed with a reason."""
    facts = slimmed.facts
    assert facts.dead >= len(absent) and facts.dead == facts.left + len(facts.stayed)
    assert facts.channels >= facts.left
    assert all(refused.reason for refused in facts.stayed)
    stayed = {(refused.layer, refused.channel) for refused in facts.stayed}
    left = Counter(g.layer for g in absent if (g.layer, g.channel) not in stayed)
    before, after = (
        Counter(g.layer for g in find_groups(parse(p), "scores")[0]) for p in (zeroed.working, slimmed.proto)
    )
    for layer, count in left.items():
        assert after[layer] <= before[layer] - count


@QUICK
@given(proto=graphs(), share=SHARES, seed=st.integers(0, 99))
def test_masked_equals_zeroed_equals_proxy(tmp_path, proto, share, seed):
    check_masks(read(proto, tmp_path), share, seed)


@QUICK
@given(proto=graphs(), share=SHARES, seed=st.integers(0, 99))
def test_zeroed_equals_slimmed(tmp_path, proto, share, seed):
    check_slimming(read(proto, tmp_path), share, seed, tmp_path)


@QUICK
@given(proto=graphs(), share=SHARES, seed=st.integers(0, 99))
def test_slimming_twice_takes_nothing_more(tmp_path, proto, share, seed):
    once = check_slimming(read(proto, tmp_path), share, seed, tmp_path)
    twice = slim(read(once, tmp_path), runtime=Runtime(threads=1))
    assert (twice.facts.channels, twice.facts.reason) == (0, "")
    assert twice.proto == once


@pytest.mark.slow
@LONG
@given(proto=graphs(), share=SHARES, seed=st.integers(0, 99))
def test_masked_zeroed_proxy_and_slimmed_agree_on_many_graphs(tmp_path, proto, share, seed):
    model = read(proto, tmp_path)
    check_masks(model, share, seed)
    check_slimming(model, share, seed, tmp_path)
