"""ONNX's own node cases as one table: which of them the proxy must pass, and why it need not pass the others."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from debride.errors import DebrideError
from debride.graph.parse import parse
from debride.proxy.convert import to_tensor
from debride.proxy.runner import GraphRunner
from debride.proxy.table import TABLE
from debride.sessions import Runtime, Session

NEWEST = 23
"""The newest opset that debride reads; newer versions are in the table only where their meaning is the same."""

_OPERATORS_LEFT_OUT = {
    "control flow, which the proxy refuses by name": "If Loop Scan",
    "sequences and optionals are no tensors": "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert "
    "SequenceLength SequenceMap ConcatFromSequence SplitToSequence Optional OptionalGetElement OptionalHasElement",
    "strings are no tensors": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "recurrent: reads sequences, not images": "RNN LSTM GRU",
    "sound": "STFT MelWeightMatrix HannWindow HammingWindow BlackmanWindow",
    "losses and optimisers belong to training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss "
    "Momentum Adagrad Adam",
    "noise: two runs would differ": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform "
    "RandomUniformLike",
    "a detector's: boxes go in or come out": "NonMaxSuppression RoiAlign MaxRoiPool",
    "the shape depends on the values, and no gradient passes": "Unique",
    "decodes files; images come decoded": "ImageDecoder",
    "trees and tables of classical learning (ai.onnx.ml)": "ArrayFeatureExtractor Binarizer LabelEncoder TreeEnsemble",
    "newer than opset 23": "BitCast CausalConvWithState FlexAttention LinearAttention TensorScatter",
}
OPERATORS_LEFT_OUT = {op: why for why, ops in _OPERATORS_LEFT_OUT.items() for op in ops.split()}
"""Operators that the table does not hold, each with its reason."""

CASES_LEFT_OUT = {
    r"(INT|UINT)[24]|FLOAT4E2M1|FLOAT8E8M0|linear_u?int[24]$|linear_float4e2m1": "types that torch cannot compute in",
    r"blocked_symmetric$": "quantises to int4",
    r"quantizelinear_e[45]m[23]": "quantisation to 8-bit floats has no straight-through gradient here",
    r"test_equal_string": "strings are no tensors",
    r"test_identity_(sequence|opt)": "sequences and optionals are no tensors",
    r"training_mode$": "BatchNormalization in training mode",
    r"test_training_dropout(_default)?(_mask)?$": "dropout's noise",
    r"resize_downsample_scales_(linear|cubic)_align_corners$": "as onnxruntime does it, with whole sizes",
}
"""Cases left out though the table holds their operators, by regular expression, each with its reason."""

LATER = "a later meaning than that of the opsets read"
ROUNDED = r"attention.*(bf16|fp16)"
"""Chains of half-precision steps: each step's rounding is the runtime's own, so two units are allowed."""

SHORT = {"test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic"}
"""Cases whose data were written with four digits."""

QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
"""Operators whose integers the proxy keeps in floats, for the gradient's sake."""

_FLOAT8 = set(range(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2FNUZ + 1))
_HELD = {name for _, name, _ in TABLE} | {"Constant"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A model with arrays for its inputs and, where it is known beforehand, what comes out."""

    name: str
    model: ModelProto
    feeds: dict[str, Any]
    expected: tuple[Any, ...] = ()
    rtol: float = 1e-4
    atol: float = 1e-6

    @property
    def operators(self) -> set[str]:
        """The operators of the main graph."""
        return {node.op_type for node in self.model.graph.node}


def array_of(value: Any) -> Any:
    """A case's datum as an array where it is one."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list) or value is None else np.asarray(value)


@cache
def node_cases() -> tuple[Case, ...]:
    """All of `onnx.backend.test`'s node cases, one `Case` per set of data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    return tuple(
        Case(
            name=case.name,
            model=case.model,
            feeds={v.name: array_of(a) for v, a in zip(case.model.graph.input, inputs, strict=False)},
            expected=tuple(map(array_of, outputs)),
            rtol=case.rtol,
            atol=case.atol,
        )
        for case in loaded
        for inputs, outputs in case.data_sets
    )


def keys(model: ModelProto) -> Iterator[tuple[str, str, int]]:
    """The table's keys of the nodes of `model` that are in the default domain."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type != "Constant":
            yield "", node.op_type, onnx.defs.get_schema(node.op_type, opset, "").since_version


def left_out(case: Case) -> str | None:
    """Why the proxy need not pass `case`; None if it must."""
    for op in sorted(case.operators - _HELD):
        return OPERATORS_LEFT_OUT.get(op)
    for pattern, why in CASES_LEFT_OUT.items():
        if re.search(pattern, case.name):
            return why
    later = [key for key in keys(case.model) if key not in TABLE and key[2] > NEWEST]
    return LATER if later else None


def run_proxy(case: Case) -> list[torch.Tensor]:
    """What the proxy's table makes of `case`."""
    names = [value.name for value in case.model.graph.output]
    with torch.no_grad():
        made = GraphRunner(parse(case.model)).run({k: to_tensor(v) for k, v in case.feeds.items()}, names)
    return [made[name] for name in names]


def run_reference(case: Case) -> list[Any]:
    """What onnxruntime makes of it, or ONNX's reference where onnxruntime lacks the operator's version or type."""
    kinds = {v.type.tensor_type.elem_type for v in case.model.graph.output}
    try:
        if kinds & _FLOAT8:
            raise TypeError("onnxruntime hands 8-bit floats out as uint8")
        return Session(case.model.SerializeToString(), Runtime(threads=1)).run(case.feeds)
    except (DebrideError, RuntimeError, TypeError, ValueError):
        return list(ReferenceEvaluator(case.model).run(None, case.feeds))


def _plain(array: Any) -> Any:
    """numpy's `unsigned long long` is another type than uint64, of the same bits; torch knows the one only."""
    return array.astype(np.uint64) if array.dtype.kind == "u" and array.itemsize == 8 else array


def compare(case: Case, actual: list[torch.Tensor], expected: list[Any] | tuple[Any, ...]) -> None:
    """Shapes and types must be the same, values within 1e-4, or for half precision what ONNX allows the case."""
    assert len(actual) == len(expected)
    for ours, value in zip(actual, expected, strict=True):
        theirs = to_tensor(_plain(np.asarray(value)))
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype or case.operators & QUANTISED
        wide = theirs.double().numpy()
        half = theirs.dtype.is_floating_point and theirs.dtype.itemsize < 4
        if half and re.search(ROUNDED, case.name):
            rtol, atol = 2**-6, 1e-3
        else:
            rtol, atol = (case.rtol if half or case.name in SHORT else min(case.rtol, 1e-4)), max(case.atol, 1e-7)
        largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
        np.testing.assert_allclose(ours.double().numpy(), wide, rtol=rtol, atol=max(atol, 1e-6 * largest))
