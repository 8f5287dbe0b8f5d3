"""Which input convention a model wants: said by flags, side-car or metadata, else measured on the clean images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelError, SpecError
from .sessions import Session, TensorInfo, predictor
from .specfile import (
    METADATA_KEY,
    SpecFlags,
    check_framing,
    check_scaling,
    from_json,
    merged,
    parse_fields,
    read_fields,
    sidecar_of,
    to_json,
)
from .types_input import InputSpec, Layout, SpecSource

if TYPE_CHECKING:
    from .types import Samples

__all__ = ["Declared", "Resolved", "SpecFlags", "declare", "from_json", "resolve_spec", "sidecar_of", "to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What is known of a model's input before an image is seen; `depth` and `size` are None where it takes any.

    `fields` holds all that was stated, and `source` who stated the scaling ("measured": nobody did).
    """

    name: str
    output: str
    layout: Layout
    depth: int | None
    size: tuple[int, int] | None
    n_classes: int | None
    fields: SpecFlags
    source: SpecSource

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names stated, or none."""
        return self.fields.class_names or ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The spec to use, and what a reader of the report should be warned of."""

    spec: InputSpec
    warnings: tuple[str, ...] = ()


def declare(session: Session, *, flags: SpecFlags | None = None, sidecar: Path | None = None) -> Declared:
    """Input, output, layout, depth and size, by flags, then side-car, then metadata, then the graph's shapes.

    Raises `ModelError` where the model has no image input or no class score, `SpecError` where what is stated
    contradicts the graph or itself, or the layout cannot be told.
    """
    stated, source = _stated(session, flags or SpecFlags(), sidecar)
    entry = _image_input(session, stated.name)
    output = _score_output(session, stated.output)
    layout = _layout(session, entry, stated.layout)
    depth, size = _depth_and_size(session, entry, layout, stated)
    check_framing(size, stated.short_side, session.name)
    n_classes = output.shape[1] if len(output.shape) == 2 else None
    if stated.class_names and n_classes and len(stated.class_names) != n_classes:
        raise SpecError(f"{session.name}: {len(stated.class_names)} class_names are given for {n_classes} classes")
    return Declared(
        name=entry.name,
        output=output.name,
        layout=layout,
        depth=depth,
        size=size,
        n_classes=n_classes,
        fields=stated,
        source=source,
    )


def resolve_spec(
    session: Session,
    *,
    flags: SpecFlags | None = None,
    sidecar: Path | None = None,
    samples: Samples | None = None,
    seed: int = 0,
) -> Resolved:
    """The model's `InputSpec`: by flags, then side-car, then metadata; what nobody says is measured on `samples`.

    Range, mean and std come from one source together; where one is stated, channels default to RGB and nothing is
    measured. Warns where labelled samples are classified no better than by chance. Raises as `declare` does, and
    `SpecError` where something must be measured and there are no samples.
    """
    declared = declare(session, flags=flags, sidecar=sidecar)
    spec = _drafted(session, declared, samples)
    if declared.source != "measured":
        check_scaling(spec, session.name)
    elif samples is None:
        raise SpecError(
            f"{session.name}: nothing says how pixels become its input; give --range (and --mean, --std), "
            "a side-car MODEL.json, or clean images to measure it on"
        )
    else:
        from .measure import measure  # serving never comes here, and its import is measured

        spec = measure(session, spec, samples, seed, channels_stated=declared.fields.channels is not None)
    return Resolved(spec=spec, warnings=_warnings(session, spec, samples))


def _stated(session: Session, flags: SpecFlags, sidecar: Path | None) -> tuple[SpecFlags, SpecSource]:
    metadata = session.metadata.get(METADATA_KEY)
    origins: list[tuple[SpecSource, SpecFlags]] = [("flags", flags)]
    if sidecar is not None:
        origins.append(("side-car", read_fields(sidecar)))
    if metadata is not None:
        origins.append(("metadata", parse_fields(metadata, f"{session.name}: metadata {METADATA_KEY}")))
    stated = SpecFlags()
    for _, more in origins:
        stated = merged(stated, more)
    source: SpecSource = next((name for name, more in origins if more.scales), "measured")
    return stated, source


def _image_input(session: Session, name: str | None) -> TensorInfo:
    images = [i for i in session.inputs if len(i.shape) == 4 and i.dtype.kind == "f"]
    listed = ", ".join(f"{i.name} {_shape(i)}" for i in session.inputs) or "none"
    if name is not None:
        images = [i for i in images if i.name == name]
    if len(images) != 1 or len(session.inputs) != 1:
        wanted = f"input {name!r} as" if name else "one input,"
        raise ModelError(
            f"{session.name}: want {wanted} a 4-D float image batch, and nothing else to feed; found {listed}; "
            "export the classifier so"
        )
    return images[0]


def _score_output(session: Session, name: str | None) -> TensorInfo:
    listed = ", ".join(f"{o.name} {_shape(o)}" for o in session.outputs) or "none"
    floats = [o for o in session.outputs if o.dtype.kind == "f" and name in (None, o.name)]
    # An empty shape is an unknown rank: it is judged when the first scores come out.
    scores = [o for o in floats if len(o.shape) == 2 and o.shape[1] not in (0, 1)] or [o for o in floats if not o.shape]
    if not scores:
        wanted = f"output {name!r} is" if name else "there is"
        raise ModelError(f"{session.name}: {wanted} no class score, float (N, K) with K >= 2; found {listed}")
    if len(scores) > 1:
        raise ModelError(
            f"{session.name}: several outputs could be the class scores ({listed}); say which: --output-name"
        )
    return scores[0]


def _layout(session: Session, entry: TensorInfo, stated: Layout | None) -> Layout:
    axes: dict[Layout, int] = {"NCHW": 1, "NHWC": 3}
    possible = [layout for layout, axis in axes.items() if entry.shape[axis] in (None, 1, 3)]
    if stated in possible:
        return stated
    if stated or not possible:
        raise SpecError(
            f"{session.name}: input {_shape(entry)} is no {stated or 'NCHW or NHWC'} batch of 1 or 3 channels"
        )
    certain = [layout for layout in possible if entry.shape[axes[layout]] is not None]
    if len(possible) > 1 and len(certain) != 1:
        raise SpecError(f"{session.name}: input {_shape(entry)} does not tell its layout; say --layout NCHW or NHWC")
    return (certain or possible)[0]


def _depth_and_size(
    session: Session, entry: TensorInfo, layout: Layout, stated: SpecFlags
) -> tuple[int | None, tuple[int, int] | None]:
    c, h, w = entry.shape[1:] if layout == "NCHW" else (entry.shape[3], *entry.shape[1:3])
    asked = None if stated.channels is None else 1 if stated.channels == "L" else 3
    if asked is not None and c not in (None, asked):
        raise SpecError(f"{session.name}: channels {stated.channels} are stated and the input {_shape(entry)} has {c}")
    size = stated.size or ((h, w) if h and w else None)
    if size and (h not in (None, size[0]) or w not in (None, size[1])):
        raise SpecError(f"{session.name}: size {size[0]},{size[1]} is stated and the input is {_shape(entry)}")
    return (c or asked), size


def _drafted(session: Session, declared: Declared, samples: Samples | None) -> InputSpec:
    """The spec with what is stated or fixed, and the depth and size of the samples where the model takes any."""
    depth, size = declared.depth, declared.size
    if samples is not None:
        depth, size = depth or samples.images.shape[1], size or (samples.images.shape[2], samples.images.shape[3])
    if depth is None or size is None:
        raise SpecError(
            f"{session.name}: the input's {'size' if depth else 'channels'} is dynamic; state it in the side-car"
        )
    fields = declared.fields
    check_framing(size, fields.short_side, session.name)
    return InputSpec(
        name=declared.name,
        layout=declared.layout,
        channels=fields.channels or ("L" if depth == 1 else "RGB"),
        size=size,
        range=fields.range or (0.0, 1.0),
        mean=fields.mean or (),
        std=fields.std or (),
        output=declared.output,
        class_names=declared.class_names,
        source=declared.source,
        short_side=fields.short_side,
    )


def _warnings(session: Session, spec: InputSpec, samples: Samples | None) -> tuple[str, ...]:
    if samples is None or samples.labels is None:
        return ()
    from .types import Rate

    scores = predictor(session, spec)(samples.images)
    right = Rate(int((scores.argmax(axis=1) == samples.labels).sum()), len(samples))
    if right.interval()[0] > 1 / scores.shape[1]:
        return ()
    said = "fits best of those tried" if spec.source == "measured" else f"is what the {spec.source} say"
    return (
        f"{session.name}: {right.hits} of {right.n} labelled images are classified rightly, no better than chance: "
        f"either the labels are wrong or the input convention ({spec.channels}, range {spec.range}, "
        f"mean {spec.mean}, std {spec.std}, which {said})",
    )


def _shape(info: TensorInfo) -> str:
    return f"{info.dtype} ({', '.join('?' if d is None else str(d) for d in info.shape)})"
