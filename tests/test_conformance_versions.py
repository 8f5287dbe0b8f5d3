"""Every version of every operator that opsets 7 to 23 can hold, against onnxruntime or ONNX's reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import onnx
import onnx.checker
import onnx.defs
import pytest
from onnx import ModelProto, helper

from conformance import NEWEST, Case, compare, keys, left_out, node_cases, run_proxy, run_reference
from conformance_old import OLD, old_case
from debride.graph.parse import opset_of
from debride.proxy.table import TABLE

UNCHANGED = {("GlobalLpPool", 22)}
"""Versions that neither reference has, and whose schema only took in more types: what came out before must come out."""

UNLIKE = {
    "MaxUnpool": "with_output_shape",  # it counts the indices in the larger shape
    "Attention": "qk_matmul_bias_[34]d_mask_causal",  # the scores that it hands out hold -3.4e38 for minus infinity
}
"""Cases that onnxruntime reads in another way than ONNX does, whose own data say otherwise."""

OWN = [old_case(name) for name in OLD]


def _wanted() -> list[tuple[str, int]]:
    """(operator, version) of the table that a model of opset 7 to 23 can mean."""
    versions: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema.since_version)
    wanted = []
    for domain, name, version in TABLE:
        later = min((v for v in versions.get(name, ()) if v > version), default=99)
        if domain == "" and version <= NEWEST and later > 7:
            wanted.append((name, version))
    return sorted(wanted)


@cache
def _by_operator() -> dict[str, list[Case]]:
    """Node cases of one node, and ours, by operator."""
    found: dict[str, list[Case]] = {}
    for case in (*OWN, *node_cases()):
        if len(case.model.graph.node) == 1 and left_out(case) is None:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def _retargeted(model: ModelProto, opset: int, *, infer: bool) -> ModelProto | None:
    """`model` with another opset, where that is legal: it may mean something else there. `infer` checks types too."""
    if opset_of(model) == opset:
        return model
    other = ModelProto()
    other.CopyFrom(model)
    del other.opset_import[:]
    other.opset_import.extend([helper.make_opsetid("", opset)])
    other.ir_version = max(min(model.ir_version, 10), 4)
    try:
        onnx.checker.check_model(other, full_check=infer)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return other


def _cases(op: str, version: int) -> Iterator[Case]:
    """Cases of `op` in its meaning of `version`."""
    opset = max(version, 7)
    for case in _by_operator().get(op, ()):
        if re.search(UNLIKE.get(op, "^$"), case.name):
            continue
        model = _retargeted(case.model, opset, infer=case not in OWN)
        if model is not None and next(keys(model)) == ("", op, version):
            known = case.expected if (op, version) in UNCHANGED else ()
            yield replace(case, model=model, expected=known)


def _check(op: str, version: int) -> int:
    """How many cases agreed; a case that no reference runs (a type of a later version, say) counts for nothing."""
    agreed = 0
    for case in _cases(op, version):
        try:
            expected = case.expected or run_reference(case)
        except Exception:
            continue
        compare(case, run_proxy(case), expected)
        agreed += 1
    return agreed


@pytest.mark.parametrize(("op", "version"), _wanted())
def test_operator_version_agrees_with_the_reference_in_every_legal_case(op: str, version: int) -> None:
    assert _check(op, version) > 0, "no case covers this version: write one in conformance_old.py"


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_operator_agrees_with_onnxruntime_where_onnx_has_no_case(case: Case) -> None:
    compare(case, run_proxy(case), case.expected)
