"""A model file and clean images -> everything that the stages share, checked before it is trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.conversion.source import Source
from debride.errors import ImagesError, ModelError
from debride.graph.channels import find_groups
from debride.graph.read import Model, read_model
from debride.graph.seen import Seen, seen
from debride.graph.wire import pieces_of, size_of
from debride.images import check_labels, draw_per_class, load_for, split
from debride.proxy.backend import round_as
from debride.proxy.device import resolve_device
from debride.proxy.interpreter import Proxy
from debride.proxy.parity import check_parity
from debride.proxy.precision import choose_compute
from debride.sessions import Runtime, Session, predictor
from debride.settings import Settings
from debride.slimming.observe import observe
from debride.spec import declare, resolve_spec, sidecar_of
from debride.types import (
    ChannelGroup,
    Compute,
    Conversion,
    FileFacts,
    FloatArray,
    InputSpec,
    Meter,
    Predict,
    Refused,
    Samples,
)

_TOGETHER = 3
_FIT = 0.7
"""Share of the images that triggers and cuts are fitted to; the rest only judges."""
_BATCH_TOLERANCE = 1e-4
_MOST = 2**31 - 1
"""Bytes of the largest model that is searched: graphs are handed on as one protobuf, which can hold no more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """`fit` and `held_out` always carry labels: the given ones (`labelled`), or the delivered model's own answers.

    `seen` are the tensors' types and shapes as they were when the graph ran. `facts` are those of the file that the
    user named, `conversion` how `model` was made of it (None: it is ONNX). `compute` says how the proxy is to compute.
    """

    model: Model
    facts: FileFacts
    conversion: Conversion | None
    spec: InputSpec
    predict: Predict
    runtime: Runtime
    provider: str
    fit: Samples
    held_out: Samples
    labelled: bool
    n_classes: int
    groups: tuple[ChannelGroup, ...]
    seen: Seen
    refused: tuple[Refused, ...]
    parity: float
    compute: Compute
    warnings: tuple[str, ...]


def load(source: Source, images_path: Path, settings: Settings, meter: Meter | None = None) -> Loaded:
    """Read, check and measure; `meter` counts what the proxies compute later.

    Raises `ParityError` where the proxy cannot be trusted, and as each stage does.
    """
    device = resolve_device(settings.device)
    runtime = settings.runtime()
    model = _read(source.path, runtime)
    session = Session(model.working.SerializeToString(), runtime, source.origin.name)
    sidecar = sidecar_of(source.path)
    declared = declare(session, flags=settings.flags, sidecar=sidecar)
    images = load_for(declared, images_path, resize=settings.resize)
    if declared.n_classes:
        check_labels(images, declared.n_classes, images_path)
    samples = images.samples()
    resolved = resolve_spec(session, flags=settings.flags, sidecar=sidecar, samples=samples, seed=settings.seed)
    predict = predictor(session, resolved.spec)
    n_classes = predict(samples.images[:1]).shape[1]
    if declared.n_classes is None:
        check_labels(images, n_classes, images_path)
    if settings.per_class is not None:
        samples = draw_per_class(samples, settings.per_class, settings.seed, n_classes)
    together = predictor(session, resolved.spec, batch=_TOGETHER)  # large images would go one by one
    _check_rewritten(model, resolved.spec, together, samples, runtime)
    fit, held_out = split(samples, settings.seed, _FIT)
    parity = _parity(model, resolved.spec, predict, fit.images[:64], settings, device)
    compute = choose_compute(
        model.graph, resolved.spec, predict, fit.images, device=device, asked=settings.precision, meter=meter
    )
    fit, held_out = labelled(fit, predict), labelled(held_out, predict)
    _check_classes(images_path, fit, held_out)
    observed = observe(model.working, model.graph, resolved.spec, runtime, source.origin.name)
    ranks = {tensor: len(shape) for tensor, shape in observed.shapes.items()}
    groups, refused = find_groups(model.graph, resolved.spec.output or model.graph.outputs[0].name, ranks)
    facts = FileFacts(name=source.path.name, sha256=model.sha256, size=model.size)
    return Loaded(
        model=model,
        facts=source.facts or facts,
        conversion=source.conversion,
        spec=resolved.spec,
        predict=predict,
        runtime=runtime,
        provider=session.provider,
        fit=fit,
        held_out=held_out,
        labelled=samples.labels is not None,
        n_classes=n_classes,
        groups=groups,
        seen=seen(observed.open_shapes(), observed.dtypes),
        refused=refused,
        parity=parity,
        compute=compute,
        warnings=(*resolved.warnings, *_slow(model)),
    )


def _read(path: Path, runtime: Runtime) -> Model:
    """The model with its batch free; as it is where onnxruntime says that this changes it, to run in such batches."""
    model = read_model(path)
    if size_of(pieces_of(model.proto, model.proto.graph)) > _MOST:
        raise ModelError(
            f"{path}: larger than 2 GiB with its weights, more than can be scanned or sanitized; evaluate, predict and "
            "slim take it, and an export in half precision may be small enough"
        )
    if model.rewritten is None or model.graph.inputs[0].shape is None or model.graph.inputs[0].shape[0] is not None:
        return model
    try:
        delivered, free = (Session(m.SerializeToString(), runtime, path.name) for m in (model.proto, model.working))
        entry, rng = delivered.inputs[0], np.random.default_rng(0)
        shape = [dim for dim in entry.shape if dim is not None]
        if len(shape) < len(entry.shape) or len(delivered.inputs) > 1:
            return model
        scale = 1 if entry.dtype.kind == "f" else 255
        parts = [(rng.random(shape) * scale).astype(entry.dtype) for _ in range(2)]
        single = np.concatenate([delivered.run({entry.name: part})[0] for part in parts])
        together = free.run({entry.name: np.concatenate(parts)})[0]
        if single.shape == together.shape and _close(single, together):
            return model
    except ModelError:
        pass  # said again, in full, if it is the delivered graph that does not run
    return replace(read_model(path, free=False), bound="with it free the model gives other scores")


def _close(single: npt.NDArray[Any], together: npt.NDArray[Any]) -> bool:
    return bool(np.abs(single - together).max() <= _BATCH_TOLERANCE * (np.abs(single).max() + 1e-6))


def _check_classes(images_path: Path, fit: Samples, held_out: Samples) -> None:
    """Each part must show two classes, or no rate of it says anything."""
    if len({*_labels(fit), *_labels(held_out)}) < 2:
        raise ImagesError(f"{images_path}: images of fewer than two classes were seen; give images of more classes")
    if min(len(set(_labels(part))) for part in (fit, held_out)) < 2:
        raise ImagesError(
            f"{images_path}: of {len(fit)} images to fit and {len(held_out)} to check, one part shows a single class; "
            "give two images of every class or more"
        )


def labelled(samples: Samples, predict: Predict) -> Samples:
    """`samples`, labelled by the model's own answers where they carry no labels."""
    if samples.labels is not None:
        return samples
    return replace(samples, labels=predict(samples.images).argmax(axis=1).astype(np.int64))


def _labels(samples: Samples) -> list[int]:
    return [] if samples.labels is None else samples.labels.tolist()


def _parity(
    model: Model, spec: InputSpec, predict: Predict, images: FloatArray, settings: Settings, device: str = "cpu"
) -> float:
    """How far the proxy is, on `device`, from onnxruntime; for quantised models from one that fuses nothing, see
    `check_parity`."""
    exact = Compute(device=device)
    round_as(exact)
    proxy = Proxy(model.graph, spec, compute=exact)
    if proxy.rounds:
        plain = replace(settings.runtime(), optimised=False)
        predict = predictor(Session(model.working.SerializeToString(), plain, model.path.name), spec)
    return check_parity(proxy, predict, images, seed=settings.seed)


def _check_rewritten(model: Model, spec: InputSpec, predict: Predict, samples: Samples, runtime: Runtime) -> None:
    """What was rewritten (functions, branches, weights, the batch) must not change what the model says of images."""
    if model.rewritten is None:
        return
    delivered = Session(model.proto.SerializeToString(), runtime, model.path.name)
    few = samples.images[:_TOGETHER]
    single, together = predictor(delivered, spec)(few), predict(few)
    if _close(single, together):
        return
    if delivered.inputs[0].shape[0] is None:
        raise ModelError(
            f"{model.path}: without its local functions, decided branches and computed weights the graph gives other "
            "scores; export it with plain operators alone"
        )
    raise ModelError(
        f"{model.path}: the graph has a fixed batch baked in that cannot be freed; export it with a dynamic batch"
    )


def _slow(model: Model) -> tuple[str, ...]:
    """The warning that images go through a few at a time, where the batch could not be freed."""
    if not model.bound:
        return ()
    size = (model.graph.inputs[0].shape or (None,))[0]
    images = "1 image" if size == 1 else f"{size or 'a fixed number of'} images"
    return (
        f"the graph takes {images} at a time, which makes searching slower, and cannot be made to take more: "
        f"{model.bound}; export it with a dynamic batch",
    )
