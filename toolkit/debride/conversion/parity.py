"""Whether a converted graph computes what the model computes in its own framework."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from debride.errors import ModelError, ParityError
from debride.images import encode, load_for
from debride.sessions import Session
from debride.spec import declare, resolve_spec, sidecar_of
from debride.specfile import SpecFlags, merged
from debride.types import Agreement, FloatArray, InputSpec, Rate, Reference, Samples

Kind = Literal["random", "images"]
_RANDOM = 8
_IMAGES = 64
_TINY = 1e-9
_FREE_SIZE = (96, 96)
"""Height and width of random images where the model takes any."""


def measured(
    session: Session,
    reference: Reference,
    model: Path,
    *,
    flags: SpecFlags,
    images: Path | None = None,
    resize: bool = False,
    seed: int = 0,
) -> tuple[Agreement, ...]:
    """`session` against `reference` on 8 random inputs and on up to 64 of `images` (drawn by `seed`), where given.

    The images are encoded as `flags`, the side-car beside `model` or the graph's metadata say, else as measured on
    them. Raises the errors of `declare`, `load_for` and `resolve_spec`, and `ParityError` where a result is not
    finite or of another shape.
    """
    sidecar = sidecar_of(model)
    declared = declare(session, flags=flags, sidecar=sidecar)
    rng = np.random.default_rng(seed)
    clean = []
    if images is not None:
        loaded = load_for(declared, images, resize=resize)
        spec = resolve_spec(session, flags=flags, sidecar=sidecar, samples=loaded.samples(), seed=seed).spec
        drawn = np.sort(rng.permutation(len(loaded.images))[:_IMAGES])
        clean.append(_compared(session, reference, encode(loaded.images[drawn], spec), spec, "images"))
    else:
        assumed = SpecFlags(
            range=None if declared.source != "measured" else (0.0, 1.0), size=declared.size or _FREE_SIZE
        )
        blank = Samples(images=np.zeros((1, declared.depth or 3, 1, 1), np.float32))
        spec = resolve_spec(session, flags=merged(flags, assumed), sidecar=sidecar, samples=blank, seed=seed).spec
    noise = encode(rng.random((_RANDOM, spec.depth, *spec.size), np.float32), spec)
    if images is None and declared.source == "measured":
        # Nothing says how pixels are scaled: half of them are as bytes, since in 0..1 a network for those sees black.
        noise[::2] *= 255
    return (_compared(session, reference, noise, spec, "random"), *clean)


def _compared(session: Session, reference: Reference, batch: FloatArray, spec: InputSpec, kind: Kind) -> Agreement:
    names = [output.name for output in session.outputs]
    entry = next(info for info in session.inputs if info.name == spec.name)
    step = entry.shape[0] or len(batch)

    def graph(part: FloatArray) -> Sequence[FloatArray]:
        return session.run({spec.name: part.astype(entry.dtype, copy=False)}, names)

    ours, theirs = _in_steps(graph, batch, step), _in_steps(reference, batch, step)
    if len(ours) != len(theirs):
        raise ParityError(f"{session.name}: the graph has {len(ours)} outputs and the framework gives {len(theirs)}")
    difference = max(_difference(session.name, *pair, kind) for pair in zip(ours, theirs, strict=True))
    scores = names.index(spec.output) if spec.output in names else 0
    same = ours[scores].argmax(axis=1) == theirs[scores].argmax(axis=1)
    return Agreement(kind=kind, difference=difference, same_class=Rate(int(same.sum()), len(batch)))


def _in_steps(run: Reference, batch: FloatArray, step: int) -> list[FloatArray]:
    """`run` on `batch` in parts of `step` (the last one filled up with repeats), each output in one array."""
    parts: list[list[FloatArray]] = []
    for start in range(0, len(batch), step):
        chunk = batch[start : start + step]
        n = len(chunk)
        full = np.concatenate([chunk, np.repeat(chunk[-1:], step - n, axis=0)]) if n < step else chunk
        parts.append([np.asarray(out)[:n] for out in run(full)])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _difference(name: str, ours: FloatArray, theirs: FloatArray, kind: Kind) -> float:
    if ours.shape != theirs.shape:
        raise ParityError(f"{name}: on {kind} inputs the graph gives {ours.shape} and the framework {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ParityError(f"{name}: on {kind} inputs an output is not finite; get an undamaged model")
    if not ours.size:
        raise ModelError(f"{name}: an output is empty; export the model again")
    exact = theirs.astype(np.float64).reshape(len(theirs), -1)
    # Not the values' size: what all classes have in common, as an offset of logits, would hide any difference.
    common = exact.mean(axis=1, keepdims=True) if exact.shape[1] > 1 else 0.0
    return float(np.abs(ours.reshape(exact.shape) - exact).max() / (np.abs(exact - common).max() + _TINY))
