"""ONNX's own node cases, run on the proxy's operator table: every case whose operators the table holds."""

from __future__ import annotations

import re
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from debride.graph.parse import parse
from debride.proxy.convert import to_tensor
from debride.proxy.runner import GraphRunner
from debride.proxy.table import TABLE

EXCLUDED = {
    r"(INT|UINT)[24]|FLOAT4E2M1|FLOAT8E8M0|linear_u?int[24]$|linear_float4e2m1": "types that torch cannot compute in",
    r"blocked_symmetric$": "quantises to int4",
    r"quantizelinear_e[45]m[23]": "quantisation to 8-bit floats has no straight-through gradient here",
    r"test_equal_string": "strings are no tensors",
    r"test_identity_(sequence|opt)": "sequences and optionals are no tensors",
    r"training_mode$": "BatchNormalization in training mode",
    r"test_training_dropout(_default)?(_mask)?$": "dropout's noise",
    r"resize_downsample_scales_(linear|cubic)_align_corners$": "as onnxruntime does it, with whole sizes",
}
"""Cases left out, by regular expression, each with its reason."""

ROUNDED = r"attention.*(bf16|fp16)"
"""Chains of half-precision steps: each step's rounding is the runtime's own, so two units are allowed."""

NEWEST = 23
"""The newest opset that debride reads; newer versions are in the table only where their meaning is the same."""

_KNOWN = {name for _, name, _ in TABLE} | {"Constant"}


def _keys(model):
    """The table's keys of the nodes of `model`."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    for node in model.graph.node:
        yield "", node.op_type, onnx.defs.get_schema(node.op_type, opset, "").since_version


def _cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        if {node.op_type for node in case.model.graph.node} <= _KNOWN:
            later = [n for n in _keys(case.model) if n not in TABLE and n[1] != "Constant" and n[2] > NEWEST]
            reason = "a later meaning than that of the opsets read" if later else None
            reason = reason or next((why for pattern, why in EXCLUDED.items() if re.search(pattern, case.name)), None)
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            yield pytest.param(case, id=case.name, marks=marks)


CASES = list(_cases())


def _array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


@pytest.mark.parametrize("case", CASES)
def test_operator_agrees_with_onnx_node_case(case):
    runner = GraphRunner(parse(case.model))
    names = [value.name for value in case.model.graph.output]
    half = re.search(ROUNDED, case.name)
    for inputs, outputs in case.data_sets:
        feeds = {v.name: to_tensor(_array(a)) for v, a in zip(case.model.graph.input, inputs, strict=False)}
        with torch.no_grad():
            made = runner.run(feeds, names)
        for name, value in zip(names, outputs, strict=True):
            actual, expected = made[name], to_tensor(_array(value))
            assert actual.shape == expected.shape
            # A quantised tensor keeps a float type, for its gradient's sake.
            assert actual.dtype == expected.dtype or "quantizelinear" in case.name
            tolerance = {"rtol": 2**-6, "atol": 1e-3} if half else {"rtol": case.rtol, "atol": max(case.atol, 1e-7)}
            np.testing.assert_allclose(actual.double().numpy(), expected.double().numpy(), **tolerance)


def test_every_exclusion_is_still_needed_by_some_case():
    names = [case.id for case in CASES]
    assert all(any(re.search(pattern, name) for name in names) for pattern in EXCLUDED)


def test_nearly_every_operator_of_the_table_has_a_node_case():
    covered = {node.op_type for case in CASES for node in case.values[0].model.graph.node}
    # Older meanings of an operator, and these, are compared with onnxruntime in test_proxy.py instead.
    assert {name for _, name, _ in TABLE} - covered == {"GlobalLpPool"}


def test_table_holds_exactly_the_versions_of_each_operator_from_its_first_on():
    every, current = {}, {}
    for schema in onnx.defs.get_all_schemas_with_history():
        every.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
        if not schema.deprecated and schema.since_version <= NEWEST:
            current.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    ours = {}
    for domain, name, version in TABLE:
        if version <= NEWEST:
            ours.setdefault((domain, name), set()).add(version)
    for key, held in ours.items():
        assert {v for v in current[key] if v >= min(held)} <= held <= every[key], key
