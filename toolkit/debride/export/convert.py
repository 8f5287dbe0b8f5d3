"""The candidate of an export: converted, with the metadata that every target keeps, in a temporary folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from debride import __version__
from debride.errors import DebrideError, ModelError
from debride.export.half import halved
from debride.export.integer import quantised
from debride.export.prepare import float_graph
from debride.export.reading import Ready
from debride.export.types import ExportOptions
from debride.graph.write import write_model
from debride.images import encode
from debride.sessions import Runtime, environment, write_ort
from debride.specfile import METADATA_KEY, to_json

EXPORT_KEY = "debride.export"
"""The entry of an exported file's metadata that says what it was made of."""
CALIBRATION_IMAGES = 512
_NAMED = 3


def converted(
    ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path
) -> tuple[Path, Mapping[str, Any], tuple[str, ...]]:
    """The candidate, written in `folder`, what it says of its making, and remarks.

    Raises `ModelError` naming the model where it cannot be converted.
    """
    made: dict[str, Any] = {
        "target": options.target,
        "source": ready.facts.name,
        "sha256": ready.facts.sha256,
        "debride": __version__,
        "onnxruntime": environment()["onnxruntime"],
    }
    try:
        proto, more, notes = _graph(ready, options, runtime, folder)
        made |= more
        path = folder / "exported.onnx"
        write_model(proto, path, metadata=_metadata(ready, made))
        if options.target != "ort":
            return path, made, notes
        write_ort(path, path.with_suffix(".ort"), runtime, native=options.native)
        return path.with_suffix(".ort"), made, notes
    except DebrideError as error:
        where = str(ready.model.path)
        raise type(error)(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _graph(
    ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path
) -> tuple[onnx.ModelProto, dict[str, Any], tuple[str, ...]]:
    """The converted graph, what belongs to its making, and remarks."""
    images, name = _calibration(ready, options), ready.declared.name
    if options.target == "ort":
        return ready.model.proto, {"native": platform.machine() if options.native else None}, ()
    plain = float_graph(ready.model, options.target)
    if options.target == "fp16":
        half, kept = halved(plain, images, name=name, fixed=ready.fixed, runtime=runtime, folder=folder)
        return half, {"float32_nodes": len(kept)}, _kept(kept, len(plain.graph.node))
    if images is None:
        raise ModelError("eight-bit ranges are found on clean images, and there are none")
    integer = quantised(
        plain,
        ready.declared.output,
        images,
        name=name,
        method=options.method,
        fixed=ready.fixed,
        folder=folder,
    )
    return integer, {"calibration": options.method, "images": len(images), "seed": options.seed}, ()


def _metadata(ready: Ready, made: Mapping[str, Any]) -> dict[str, str]:
    """The model's own entries, the input spec as it is now known, and what the file was made of."""
    kept = {entry.key: entry.value for entry in ready.model.proto.metadata_props}
    spec = {METADATA_KEY: to_json(ready.spec)} if ready.spec else {}
    return {**kept, **spec, EXPORT_KEY: json.dumps(made)}


def _calibration(ready: Ready, options: ExportOptions) -> npt.NDArray[Any] | None:
    """What the graph is fed to find ranges: the fit images as the model wants them, a draw where they are many."""
    if ready.split is None or ready.spec is None:
        return None
    images = ready.split.fit.images
    if len(images) > CALIBRATION_IMAGES:
        rows = np.random.default_rng(options.seed).permutation(len(images))[:CALIBRATION_IMAGES]
        images = images[np.sort(rows)]
    return encode(images, ready.spec).astype(ready.entry.dtype, copy=False)


def _kept(nodes: tuple[str, ...], total: int) -> tuple[str, ...]:
    if not nodes:
        return ()
    named = ", ".join(nodes[:_NAMED]) + (f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else "")
    return (f"{len(nodes)} of {total} nodes stay in float32, where half precision would overflow: {named}",)
