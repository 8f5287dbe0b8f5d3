"""Playing coalitions as a tree: they share all that is computed before the first layer in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from debride.graph.chain import Chain, Link
from debride.images import encode
from debride.portions import images_at_once
from debride.resident import Held
from debride.sessions import Runtime, Session
from debride.types import FloatArray, InputSpec, IntArray

_ROWS = 128
"""Coalitions whose scores are held at a time."""

_Tensors = Mapping[str, Held]


class Tree:
    """Plays masks on a chain: a link runs once for each set of absent players that it and those before it read.

    What one link passes on to the next stays where they compute. `image_bytes` is as in `images_at_once`.
    """

    def __init__(
        self, chain: Chain, spec: InputSpec, images: FloatArray, runtime: Runtime, image_bytes: int = 0
    ) -> None:
        first, *links = chain.links
        runtime = replace(runtime, arena=False)  # many sessions, each of which would keep what its largest run took
        self._links, self._scores = [_Bound(link, runtime) for link in links], chain.scores
        session = Session(first.model, runtime, "the graph before the masked layers")
        self._first, self._exits, self._entry = session, first.exits, spec.name
        # A portion is small enough for all that waits along a branch.
        dtype, step = session.inputs[0].dtype, images_at_once(session.place, image_bytes)
        portions = [encode(images[i : i + step], spec).astype(dtype, copy=False) for i in range(0, len(images), step)]
        # What the first link makes of all large images is more than memory may hold: it is made anew for each play.
        self._portions: list[Held] = [session.held(portion) for portion in portions]

    def play(self, masks: FloatArray) -> Iterator[FloatArray]:
        """Scores (b, N, K) for portions of the masks (B, P), in order."""
        for first in range(0, len(masks), _ROWS):
            portion = masks[first : first + _ROWS]
            yield np.concatenate([self._played(portion, images) for images in self._portions], axis=1)

    def _played(self, masks: FloatArray, images: Held) -> FloatArray:
        """Scores (B, n, K) of encoded images."""
        found: dict[int, FloatArray] = {}
        root = self._first.bound({self._entry: images}, self._exits)
        self._branch(masks, np.arange(len(masks)), 0, root, found)
        return np.stack([found[row] for row in range(len(masks))])

    def _branch(
        self, masks: FloatArray, rows: IntArray, place: int, tensors: _Tensors, found: dict[int, FloatArray]
    ) -> None:
        """Put the scores of the masks `rows`, which all link before `place` took for the same, into `found`."""
        link = self._links[place]
        alike: dict[bytes, list[int]] = {}
        for row in rows.tolist():
            alike.setdefault(masks[row, link.columns].tobytes(), []).append(row)
        for same in alike.values():
            made = link.run(tensors, masks[same[:1]])
            if place + 1 < len(self._links):
                self._branch(masks, np.array(same), place + 1, made, found)
            else:
                scores = np.asarray(made[self._scores])
                found.update(dict.fromkeys(same, scores.reshape(len(scores), -1).astype(np.float32)))


class _Bound:
    """A link that runs: `columns` are those of the mask that it reads."""

    def __init__(self, link: Link, runtime: Runtime) -> None:
        self._link, self.columns = link, list(link.columns)
        self._session = Session(link.model, runtime, "the graph from a masked layer on")
        self._reads = [entry.name for entry in self._session.inputs if entry.name != link.mask]

    def run(self, tensors: _Tensors, mask: FloatArray) -> _Tensors:
        """The link's exits, from those before it and one row of the mask, (1, P)."""
        made = [name for name in self._link.exits if name not in tensors]
        feeds = {name: tensors[name] for name in self._reads}
        new = self._session.bound({**feeds, self._link.mask: mask[:, self.columns]}, made)
        return {name: new[name] if name in new else tensors[name] for name in self._link.exits}
