"""SavedModel folders, read as data: a graph, a signature and the values of variables.

TensorFlow's own loader is not used. It rebuilds the objects that the file describes and, to do so, runs functions of
the file: those that create and initialise resources, that restore variables and that the "main op" names. Here the
variables are read from the checkpoint, and of the graph only what leads from the image to the scores is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters.common import LIMIT, one_line, read_bounded
from debride_adapters.tensorflow.audit import forbid, permit
from debride_adapters.tensorflow.graph import every_node, extract
from debride_adapters.tensorflow.signature import Signature, pick
from debride_adapters.tensorflow.variables import checkpoint_keys

MODEL = "saved_model.pb"
_MAX_FILES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """An audited graph (GraphDef), its image input and outputs, and the value of each variable by its node's name."""

    graph: Any
    signature: Signature
    variables: dict[str, npt.NDArray[Any]]
    notes: tuple[str, ...] = ()


def read_saved_model(folder: Path, options: ConvertOptions) -> Source:
    """The SavedModel in `folder`, audited; nothing of it has run.

    Raises `ModelError` for a folder that is damaged, leads out of itself or holds operators that must not run.
    """
    check_folder(folder)
    meta = _meta_graph(folder)
    forbid(every_node(meta.graph_def), folder)
    name, signature = pick(meta.signature_def, folder, options)
    graph = extract(meta.graph_def, signature.outputs, signature.feed, folder)
    permit(every_node(graph), folder)
    notes = (f"converted from the signature '{name}'",)
    return Source(graph=graph, signature=signature, variables=_variables(meta, graph, folder), notes=notes)


def check_folder(folder: Path) -> None:
    """Refuse a folder with links, special files, too many files or more than 2 GiB (`ModelError`)."""
    total = 0
    try:
        for number, entry in enumerate(folder.rglob("*")):
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                raise ModelError(f"{folder}: '{entry.name[:80]}' is a link or no plain file; copy the files themselves")
            if number > _MAX_FILES:
                raise ModelError(f"{folder}: holds over {_MAX_FILES} files; give the folder of one SavedModel")
            total += entry.stat().st_size
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    if total > LIMIT:
        raise ModelError(f"{folder}: larger than 2 GiB; convert it to ONNX where it was made")
    if not (folder / MODEL).is_file():
        raise ModelError(f"{folder}: holds no {MODEL}; give the folder of a SavedModel")


def _meta_graph(folder: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel()
    try:
        saved.ParseFromString(read_bounded(folder / MODEL))
    except DecodeError as error:
        raise ModelError(f"{folder}: its {MODEL} is damaged or cut short; copy or export the model again") from error
    graphs = [meta for meta in saved.meta_graphs if "serve" in meta.meta_info_def.tags] or list(saved.meta_graphs)
    if len(graphs) != 1:
        raise ModelError(f"{folder}: holds {len(graphs)} graphs for serving, not one; export the classifier alone")
    return graphs[0]


def _variables(meta: Any, graph: Any, folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The value of every variable of `graph`, by node name, as the checkpoint in `folder` holds it."""
    from tensorflow import errors
    from tensorflow.python.training import py_checkpoint_reader

    needed = {node.name: node for node in graph.node if node.op in ("VarHandleOp", "VariableV2", "Variable")}
    if not needed:
        return {}
    prefix = folder / "variables" / "variables"
    # A folder in the prefix's place would be asked for its latest checkpoint, which may be any on the machine.
    if prefix.exists() or not prefix.with_name("variables.index").is_file():
        raise ModelError(f"{folder}: holds no variables/variables.index; copy or export the whole folder again")
    try:
        reader = py_checkpoint_reader.NewCheckpointReader(str(prefix))
        keys = checkpoint_keys(meta, graph, reader, folder)
        return {name: _value(node, reader.get_tensor(keys[name]), folder) for name, node in needed.items()}
    except (errors.OpError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: its variables cannot be read ({one_line(error)}); copy or export the whole folder again"
        ) from error
    except KeyError as error:
        raise ModelError(f"{folder}: its checkpoint holds no value for {error}; export the model again") from error


def _value(node: Any, value: npt.NDArray[Any], folder: Path) -> npt.NDArray[Any]:
    from tensorflow import dtypes

    dims = node.attr["shape"].shape
    fits = dims.unknown_rank or (
        len(dims.dim) == value.ndim and all(d.size in (-1, n) for d, n in zip(dims.dim, value.shape, strict=True))
    )
    if not fits or dtypes.as_dtype(node.attr["dtype"].type).as_numpy_dtype != value.dtype:
        raise ModelError(f"{folder}: the variable '{node.name[:80]}' does not fit its checkpoint; export it again")
    return np.asarray(value)
