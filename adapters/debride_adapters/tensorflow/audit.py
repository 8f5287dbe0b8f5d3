"""Which operators of a TensorFlow graph may run, decided on the parsed protobuf before TensorFlow sees the graph.

What leads to the scores may hold only operators that tf2onnx translates and that keep no state; importing a graph can
already run its constant parts, so nothing is imported before it has passed. What does not lead there is never loaded;
all the same, a file that holds an operator for files, networks or Python anywhere is no honest classifier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from debride.errors import ModelError

MAX_CONSTANT_BYTES = 2**31 - 1

# Stateful by their registration, harmless by what they do: variables, calls, branches and checks of values.
_STATEFUL = {
    *("Assert", "CheckNumerics", "DisableCopyOnRead", "If", "ReadVariableOp", "StatefulPartitionedCall"),
    *("VarHandleOp", "Variable", "VariableV2", "While"),
}
# Pure, and gone before tf2onnx translates: inlined, folded, or rewritten (Erfc, Switch and Merge).
_PURE = {
    *("BroadcastArgs", "Erfc", "Expm1", "LinSpace", "Log1p", "Merge", "PartitionedCall", "PlaceholderWithDefault"),
    *("PreventGradient", "Snapshot", "Switch"),
}
# Files (some operators read one named by an attribute), networks, other processes, Python, and the terminal.
_FORBIDDEN = re.compile(
    r"""PyFunc | ^(Read|Write)File$ | ^MatchingFiles | Reader(V2)?$ | ^Reader | TextFile | ^ImmutableConst$
    | ^(CSV|Sql|LMDB|TextLine|TFRecord|FixedLengthRecord|DataService|Generator|Load|Save|Snapshot)\w*Dataset
    | ^(Cache|ListSnapshotChunks|Register)\w*Dataset | ^RecordInput$ | ^Skipgram$
    | ^XlaCustomCall | ^MlirPassthroughOp$ | ^TPU
    | ^Experimental\w*Dataset | ToTFRecord | ^DistributedSave$ | ^FileSystem | ^(Decode|Encode)Proto
    | ^GenerateVocabRemapping$ | ^LoadAndRemapMatrix$ | CandidateSampler$
    | SummaryWriter | ^Create\w*Writer$ | ^Write\w*Summary$ | ^ImportEvent$ | ^CalibrationStatisticsSaver$
    | ^DumpTensor$ | ^Debug | ^Print | Rpc | ^Remote | ^_?(Host)?(Send|Recv)$ | ^_?(Collective|Nccl)
    | ^WorkerHeartbeat$ | ^Abort$ | ^Sleep""",
    re.VERBOSE,
)


@cache
def _allowed() -> frozenset[str]:
    """The operators that may lead to the scores: translated by tf2onnx, registered, and without state."""
    import tf2onnx.onnx_opset  # noqa: F401  (fills the table)
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session
    from tf2onnx.handler import tf_op

    registry = op_def_pb2.OpList()
    registry.ParseFromString(session.TF_GetBuffer(session.TF_GetAllOpList()))
    pure = {op.name for op in registry.op if not op.is_stateful}
    translated = {name for versions in tf_op.get_opsets().values() for version in versions for name in version}
    return frozenset((translated & pure) | _STATEFUL | _PURE)


def forbid(nodes: Iterable[Any], path: Path) -> None:
    """Refuse a file in which any of `nodes` (NodeDefs) touches files, networks, processes or Python.

    Raises `ModelError` naming operator and node.
    """
    for node in nodes:
        if _FORBIDDEN.search(node.op):
            raise ModelError(
                f"{path}: holds the operator {node.op} (node '{node.name[:80]}'), which reaches outside the model; "
                "nothing was loaded; ask the vendor for a model without it"
            )


def permit(nodes: Iterable[Any], path: Path) -> None:
    """Refuse whatever leads to the scores and is not known to be harmless.

    Raises `ModelError` naming operator and node, or a constant that would take more than 2 GiB.
    """
    total = 0
    for node in nodes:
        if node.op not in _allowed():
            raise ModelError(
                f"{path}: its scores depend on the operator {node.op} (node '{node.name[:80]}'), which is not among "
                "those that debride converts; export the plain classifier"
            )
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            # A constant may state one value and a huge shape; 16 bytes is the widest number there is.
            total += 16 * prod(max(int(dim.size), 1) for dim in tensor.tensor_shape.dim)
    if total > 4 * MAX_CONSTANT_BYTES:
        raise ModelError(f"{path}: its constants would take over 2 GiB; get an undamaged model")
