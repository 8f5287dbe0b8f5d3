"""The candidate of an export: converted, with the metadata that every target keeps, in a temporary folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from debride import __version__
from debride.errors import DebrideError, ModelError
from debride.export.half import halved
from debride.export.integer import quantised
from debride.export.prepare import float_graph
from debride.export.probe import check_survives, crash_of
from debride.export.reading import Ready
from debride.export.rounding import rounded
from debride.export.types import ExportOptions
from debride.graph.read import read_model
from debride.graph.write import write_model
from debride.images import encode
from debride.sessions import Runtime, environment, write_ort
from debride.specfile import METADATA_KEY, to_json

EXPORT_KEY = "debride.export"
"""The entry of an exported file's metadata that says what it was made of."""
CALIBRATION_IMAGES = 512
_NAMED = 3
_CRASHES: tuple[tuple[str, ...], ...] = ((), ("Transpose",))
"""Kinds of operators left in float32, tried in turn until onnxruntime loads the graph without a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that may become the export; `made` is what it says of its making, `notes` are remarks.

    `twin` computes as a device in half precision would, where onnxruntime on this machine does not.
    """

    path: Path
    made: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    twin: Path | None = None


def converted(ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path) -> Candidate:
    """The candidate, written in `folder`. Raises `ModelError` naming the model where it cannot be converted."""
    try:
        make = {"ort": _in_ort_format, "int8": _in_integers, "fp16": _in_halves}[options.target]
        return make(ready, options, runtime, folder)
    except DebrideError as error:
        where = str(ready.model.path)
        raise type(error)(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _in_ort_format(ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path) -> Candidate:
    made = _made(ready, options, native=platform.machine() if options.native else None)
    plain, path = folder / "plain.onnx", folder / "exported.ort"
    write_model(ready.model.proto, plain, metadata=_metadata(ready, made))
    write_ort(plain, path, runtime, native=options.native)
    check_survives(path, runtime)
    return Candidate(path=path, made=made)


def _in_integers(ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path) -> Candidate:
    images, path = _calibration(ready, options), folder / "exported.onnx"
    if images is None:
        raise ModelError("eight-bit ranges are found on clean images, and there are none; give --images")
    proto = quantised(
        float_graph(ready.model, options.target),
        ready.declared.output,
        images,
        name=ready.declared.name,
        method=options.method,
        fixed=ready.fixed,
        folder=folder,
    )
    made = _made(ready, options, calibration=options.method, images=len(images), seed=options.seed)
    del proto.metadata_props[:]  # the quantiser's notes to itself
    write_model(proto, path, metadata=_metadata(ready, made))
    _check_valid(path)
    check_survives(path, runtime)
    return Candidate(path=path, made=made)


def _in_halves(ready: Ready, options: ExportOptions, runtime: Runtime, folder: Path) -> Candidate:
    images, path, twin = _calibration(ready, options), folder / "exported.onnx", folder / "twin.onnx"
    plain, notes, crash = float_graph(ready.model, options.target), list[str](), ""
    for also in _CRASHES:
        notes += [f"every {op} stays in float32: in half precision it crashes onnxruntime ({crash})" for op in also]
        half, kept = halved(
            plain, images, name=ready.declared.name, fixed=ready.fixed, runtime=runtime, folder=folder, also=also
        )
        made = _made(ready, options, float32_nodes=len(kept))
        write_model(half, path, metadata=_metadata(ready, made), force=True)
        _check_valid(path)
        crash = crash_of(path, runtime)
        if not crash:
            write_model(rounded(plain, kept), twin)
            large = [node.name for node in plain.graph.node if node.name in kept and node.op_type not in also]
            notes += _kept(large, len(plain.graph.node))
            return Candidate(path=path, made=made, notes=tuple(notes), twin=twin)
    raise ModelError(f"onnxruntime itself crashes on it in half precision ({crash}); take --target int8 or ort")


def _check_valid(path: Path) -> None:
    """What a converter makes is read as strictly as what a stranger sends."""
    try:
        read_model(path, free=False)
    except ModelError as error:
        raise ModelError(
            f"onnxruntime's converter makes a broken graph of it ({error}); take another --target"
        ) from error


def _made(ready: Ready, options: ExportOptions, **more: Any) -> dict[str, Any]:
    return {
        "target": options.target,
        "source": ready.facts.name,
        "sha256": ready.facts.sha256,
        "debride": __version__,
        "onnxruntime": environment()["onnxruntime"],
        **more,
    }


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


def _kept(nodes: Sequence[str], total: int) -> list[str]:
    if not nodes:
        return []
    named = ", ".join(nodes[:_NAMED]) + (f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else "")
    return [f"{len(nodes)} of {total} nodes stay in float32, where half precision would overflow: {named}"]
