"""The gradient of every operator of the table against central finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import Case, left_out, node_cases
from conformance_old import OLD, old_case
from debride.graph.parse import parse
from debride.proxy.convert import to_tensor
from debride.proxy.op import Operator
from debride.proxy.runner import GraphRunner
from debride.proxy.table import TABLE, lookup

STEP = 1e-6
ENTRIES = 24
CASES = 6
"""Elements of each input, and cases of each operator, that are looked at."""

_WITHOUT = {
    "truth values and integers come out": "ArgMax ArgMin And Or Xor Not Equal Greater Less GreaterOrEqual LessOrEqual "
    "IsNaN IsInf BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Shape Size NonZero",
    "piecewise constant: the gradient is nought": "Floor Ceil Round Sign Hardmax EyeLike",
    "made of shapes and bounds": "ConstantOfShape Range",
    "straight through, see test_conformance_quantised.py": "QuantizeLinear DynamicQuantizeLinear QLinearConv "
    "QLinearMatMul QLinearAdd QLinearMul QLinearSigmoid QLinearLeakyRelu QLinearSoftmax QLinearConcat "
    "QLinearGlobalAveragePool QLinearAveragePool QGemm ConvInteger MatMulInteger",
}
WITHOUT = {op: why for why, ops in _WITHOUT.items() for op in ops.split()}
"""Operators that have no gradient, or not that of finite differences, each with its reason."""

FIXED = {
    "Resize": {1, 2},  # roi and scales: sizes of tensors follow from them
    "Upsample": {1},
    "Dropout": {1},
    "Pad": {2},  # the padding's value, read as a number
    "CumSum": {1},
    "TopK": {1},
}
"""Float inputs, by place, that no gradient reaches."""


def _operators() -> list[Operator]:
    """The distinct implementations that have a gradient."""
    return list({id(o): o for o in TABLE.values() if o.name not in WITHOUT}.values())


def _cases(operator: Operator) -> Iterator[Case]:
    """Node cases and ours whose only node is computed by `operator` from float32 or float64."""
    ours = (old_case(name) for name, (_, (op, _), _, _) in OLD.items() if op == operator.name)
    for case in (*ours, *node_cases()):
        node = case.model.graph.node[0]
        if node.op_type != operator.name or len(case.model.graph.node) > 1 or left_out(case):
            continue
        graph = parse(case.model)
        kinds = [v.dtype for v in (*graph.inputs, *graph.outputs)]
        exact = all(k.kind in "iub" or k in (np.float32, np.float64) for k in kinds)
        if exact and lookup(graph.nodes[0], graph.opset) is operator:
            yield case


def _loss(runner: GraphRunner, feeds: Mapping[str, Tensor], outputs: list[str]) -> Tensor:
    """A fixed random mix of all elements of the float outputs."""
    made = [v for v in runner.run(feeds, outputs).values() if v.dtype.is_floating_point]
    total = torch.zeros((), dtype=torch.float64)
    for value in made:
        mix = torch.linspace(-1, 1.3, max(value.numel(), 1), dtype=torch.float64)[: value.numel()].cos()
        total = total + (value.double().reshape(-1) * mix).sum()
    return total


def _slope(loss: Callable[[Tensor], Tensor], at: Tensor, entry: int) -> float | None:
    """The central difference along one entry; None at a kink, where the two sides disagree, or beyond a domain."""
    moves = torch.zeros_like(at)
    moves.view(-1)[entry] = STEP
    with torch.no_grad():
        high, here, low = (float(loss(at + k * moves)) for k in (1, 0, -1))
    right, left = (high - here) / STEP, (here - low) / STEP
    if not np.isfinite([right, left]).all() or abs(right - left) > 1e-4 * max(abs(right), abs(left), 1.0):
        return None
    return (high - low) / (2 * STEP)


def _moved(x: Tensor) -> Tensor:
    """Floats moved a little, towards 0 or off it: data of whole numbers lie on kinks and ties."""
    if not x.dtype.is_floating_point:
        return x
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(x == 0, 1e-2 * noise + 1e-3, x.double() * (1 - 1e-2 * noise))


def _check(case: Case) -> int:
    """How many entries of the case's float inputs were compared."""
    graph = parse(case.model)
    runner = GraphRunner(graph).double()
    outputs = [v.name for v in graph.outputs]
    fixed = {name for i, name in enumerate(graph.nodes[0].inputs) if i in FIXED.get(graph.nodes[0].op, ())}
    feeds = {k: to_tensor(v) if k in fixed else _moved(to_tensor(v)) for k, v in case.feeds.items()}
    compared = 0
    for name in [k for k, v in feeds.items() if v.dtype.is_floating_point and v.numel() and k not in fixed]:

        def loss(value: Tensor, name: str = name) -> Tensor:
            return _loss(runner, {**feeds, name: value}, outputs)

        at = feeds[name].clone().requires_grad_()
        total = loss(at)
        if not torch.isfinite(total):
            continue
        (gradient,) = torch.autograd.grad(total, at, allow_unused=True) if total.requires_grad else (None,)
        gradient = torch.zeros_like(at) if gradient is None else gradient
        size = max(float(gradient.abs().max()), 1e-2)
        for entry in range(0, at.numel(), max(at.numel() // ENTRIES, 1)):
            slope = _slope(loss, at.detach(), entry)
            if slope is not None:
                assert abs(slope - float(gradient.reshape(-1)[entry])) <= 1e-5 * size, (case.name, name, entry)
                compared += slope != 0
    return compared


@pytest.mark.parametrize("operator", _operators(), ids=lambda o: f"{o.name}-{min(o.since)}")
def test_gradient_agrees_with_finite_differences(operator: Operator) -> None:
    compared = 0
    for _, case in zip(range(CASES), _cases(operator)):  # noqa: B905 - the first few
        compared += _check(case)
    assert compared > 0, "no entry of any case has a slope: write a case in conformance_old.py"


def test_every_operator_has_a_gradient_or_a_reason_to_have_none() -> None:
    held = {name for _, name, _ in TABLE}
    assert set(WITHOUT) <= held
