"""What an adapter gives -> the ONNX file that the rest of debride reads: checked, brought up to date, scrubbed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from debride.conversion.parity import measured
from debride.conversion.request import TOLERANCE, Request, graph_at, stated
from debride.errors import ParityError
from debride.graph.parse import opset_of
from debride.graph.read import model_of
from debride.graph.tidy import ModelProto, scrubbed, upgraded
from debride.graph.write import write_model
from debride.sessions import Runtime, Session
from debride.spec import sidecar_of
from debride.specfile import METADATA_KEY, SpecFlags, merged, parse_fields, read_fields
from debride.types import Agreement, Conversion, Converted, FloatArray, Reference

_EXACT = 1e-5
"""How far a graph of a newer opset may be from the delivered one to be taken in its place."""


_SAME_CLASS = 0.9
"""Least share of the clean images on which both must put the same class first."""


def finish(converted: Converted, framework: str, request: Request, folder: Path) -> Conversion:
    """Check, upgrade, scrub and write `converted`, in `folder`, to where `graph_at` says, and measure its parity.

    Raises:
        ModelError: the graph fails debride's own checks, or is no image classifier.
        ParityError: it differs from the framework by more than the tolerance.
    """
    output = graph_at(folder, request)
    output.parent.mkdir()
    # External data lie in the folder that the adapter names; the file's name there is for messages alone.
    model = model_of(converted.onnx, (converted.folder or request.model.parent) / request.model.name)
    newer = upgraded(model.proto, request.options.opset)
    notes: tuple[str, ...] = ()
    proto, reference = model.proto, converted.reference
    if newer is not None or reference is None:
        delivered = _runs(_session(model.proto, folder / "delivered.onnx", request))
        reference = reference or delivered
        if newer is not None:
            proto, notes = _newest(model.proto, newer, delivered, folder / "newer.onnx", request)
    spec = _spec(converted, model.proto, request)
    clean = scrubbed(proto, keep_metadata=converted.passed_on)
    session = _session(clean, output, request, {METADATA_KEY: spec} if spec else {})
    tolerance = next(t for t in (request.tolerance, converted.tolerance, TOLERANCE) if t is not None)
    parity = _parity(session, reference, request, request.images)
    _require(parity, tolerance, framework, request.model)
    return Conversion(
        framework=framework,
        packages=dict(converted.packages),
        opset=opset_of(proto),
        parity=parity,
        tolerance=tolerance,
        notes=(*converted.notes, *notes),
    )


def _newest(
    old: ModelProto, new: ModelProto, delivered: Reference, place: Path, request: Request
) -> tuple[ModelProto, tuple[str, ...]]:
    """`new` where it gives the outputs of `old`, else `old`, and a remark."""
    before, after = opset_of(old), opset_of(new)
    found = max(a.difference for a in _parity(_session(new, place, request), delivered, request, None))
    if found <= _EXACT:
        return new, (f"opset {before} was brought up to {after}",)
    return old, (f"opset {before} was kept, since onnx's converter to {after} changes outputs by {found:.1g}",)


def _parity(session: Session, reference: Reference, request: Request, images: Path | None) -> tuple[Agreement, ...]:
    return measured(
        session,
        reference,
        request.model,
        flags=request.flags,
        images=images,
        resize=request.resize,
        seed=request.seed,
    )


def _session(proto: ModelProto, place: Path, request: Request, metadata: dict[str, str] | None = None) -> Session:
    """`proto`, written to `place` (it may be too large for one piece of memory) and loaded from there."""
    write_model(proto, place, metadata=metadata)
    # The CPU: a GPU's rounding is no fault of the exporter.
    return Session(place, Runtime(request.threads, ("CPUExecutionProvider",)), request.model.name)


def _runs(session: Session) -> Reference:
    entry = session.inputs[0]

    def run(batch: FloatArray) -> list[FloatArray]:
        return session.run({entry.name: batch.astype(entry.dtype, copy=False)})

    return run


def _spec(converted: Converted, proto: ModelProto, request: Request) -> str:
    """All that is stated of the input, as the entry of the metadata: by the user, the side-car, then the model."""
    sidecar = sidecar_of(request.model)
    said = request.flags if sidecar is None else merged(request.flags, read_fields(sidecar))
    said = merged(said, stated(converted.spec, f"{request.model}: the adapter's spec"))
    if converted.passed_on:
        for entry in proto.metadata_props:
            if entry.key == METADATA_KEY:
                said = merged(said, parse_fields(entry.value, f"{request.model}: metadata {METADATA_KEY}"))
    fields = {key: value for key, value in asdict(said).items() if value is not None}
    return json.dumps(fields, indent=2, allow_nan=False) if said != SpecFlags() else ""


def _require(parity: tuple[Agreement, ...], tolerance: float, framework: str, model: Path) -> None:
    for found in parity:
        if found.difference > tolerance:
            raise ParityError(
                f"{model}: on {found.kind} inputs the ONNX graph differs from {framework} by {found.difference:.2g} of "
                f"the scores' spread (limit {tolerance:g}): the exporter gets it wrong; try another of its versions"
            )
        same = found.same_class
        if found.kind == "images" and same.value < _SAME_CLASS:
            raise ParityError(
                f"{model}: the ONNX graph and {framework} put the same class first on {same.hits} of {same.n} images: "
                "what the exporter rounds or leaves out decides; export the model in float32"
            )
