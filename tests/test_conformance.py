"""ONNX's own node cases, run on the proxy's operator table: each passes or is left out for a written reason."""

from __future__ import annotations

import re
from collections import Counter

import onnx
import pytest

from conformance import (
    CASES_LEFT_OUT,
    LATER,
    NEWEST,
    OPERATORS_LEFT_OUT,
    Case,
    compare,
    left_out,
    node_cases,
    run_proxy,
)
from debride.proxy.table import TABLE

RUN = [case for case in node_cases() if left_out(case) is None]


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_operator_agrees_with_onnx_node_case(case: Case) -> None:
    compare(case, run_proxy(case), case.expected)


def test_every_case_is_run_or_left_out_for_a_reason() -> None:
    held = {name for _, name, _ in TABLE} | {"Constant"}
    # left_out gives None for an operator that neither the table nor the reasons hold: such a case must not exist.
    unexplained = [c.name for c in RUN if c.operators - held]
    assert unexplained == []
    assert len(RUN) >= 0.75 * len(node_cases())


def test_every_reason_is_needed_by_some_case_or_operator() -> None:
    names = [case.name for case in node_cases()]
    reasons = Counter(left_out(case) for case in node_cases())
    assert all(any(re.search(pattern, name) for name in names) for pattern in CASES_LEFT_OUT)
    assert set(CASES_LEFT_OUT.values()) | {LATER} <= set(reasons)
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set(OPERATORS_LEFT_OUT) <= known
    assert not set(OPERATORS_LEFT_OUT) & {name for _, name, _ in TABLE}


def test_every_operator_of_opsets_7_to_23_is_held_in_all_its_versions_or_left_out_for_a_reason() -> None:
    every: dict[str, set[int]] = {}
    deprecated: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= NEWEST:
            kind = deprecated if schema.deprecated else every
            kind.setdefault(schema.name, set()).add(schema.since_version)
    held: dict[str, set[int]] = {}
    for domain, name, version in TABLE:
        if domain == "" and version <= NEWEST:
            held.setdefault(name, set()).add(version)
    for name in every.keys() - {"Constant", *OPERATORS_LEFT_OUT}:
        first = max((v for v in every[name] if v <= 7), default=min(every[name]))
        wanted = {v for v in every[name] if v >= first}
        # Upsample and Scatter stop being operators, GroupNormalization's first version is called broken.
        assert wanted <= held.get(name, set()) <= every[name] | deprecated.get(name, set()), name
