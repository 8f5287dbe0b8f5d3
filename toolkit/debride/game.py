"""The game of channels, played by onnxruntime: coalitions of present channels -> payoffs.

Players that some coalition leaves out are gated by a mask input; the graph before the first of them is run once and
kept. Where everything after them is a sum over their channels, a coalition is one row of a matrix product; where they
lie in several layers, coalitions share what they have in common (`debride.tree`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from debride.graph.chain import Chain
from debride.graph.parts import Parts
from debride.images import encode
from debride.portions import ON_CPU, images_at_once
from debride.resident import Held
from debride.sessions import Runtime, Session, probabilities
from debride.stakes import Stake
from debride.tree import Tree
from debride.types import BoolArray, DoubleArray, FloatArray, InputSpec, IntArray

_MAX_BYTES = 256 << 20
"""The most that the inputs of one run, or the table of the closed form, may take."""

Gate = Callable[[Sequence[int]], Parts | Chain]
"""Gates the players of these indices, in this order, and cuts before them."""


class ChannelGame:
    """A `debride.types.Game` with one payoff per stake (`Stake.payoff` of the probabilities).

    `gate` makes the graph parts for a set of players (`debride.graph.parts.gated` on the model as it stands).
    `image_bytes` is what all of the graph's tensors take for one image, for which a GPU must have the memory.
    """

    def __init__(
        self,
        n_players: int,
        gate: Gate,
        spec: InputSpec,
        stakes: Sequence[Stake],
        runtime: Runtime | None = None,
        *,
        image_bytes: int = 0,
    ) -> None:
        self._n_players = n_players
        self._games = [_StakeGame(gate, spec, stake, runtime or Runtime(), image_bytes) for stake in stakes]

    @property
    def n_players(self) -> int:
        """How many players there are."""
        return self._n_players

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, M) of coalitions (B, P). Raises `SurgeryError` where the graph cannot be gated at a player."""
        return np.stack([game(coalitions) for game in self._games], axis=1)

    def payoff(self, stake: int, coalitions: BoolArray) -> DoubleArray:
        """The payoff of one stake alone, (B,); raises as the whole game."""
        return self._games[stake](coalitions)


class _StakeGame:
    """The game for one stake.

    Sessions are made for the players that coalitions leave out, and made anew when others are. No coalition is played
    twice.
    """

    def __init__(self, gate: Gate, spec: InputSpec, stake: Stake, runtime: Runtime, image_bytes: int) -> None:
        self._gate, self._spec, self._stake = gate, spec, stake
        self._runtime, self._image_bytes = runtime, image_bytes
        self._way: _Runs | _Sums | Tree | None = None
        self._columns: IntArray = np.zeros(0, np.int64)
        self._known: dict[bytes, float] = {}

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B,) of coalitions (B, P)."""
        keys = [row.tobytes() for row in np.packbits(coalitions, axis=1)]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            self._known.update(zip(new, self._play(coalitions[list(new.values())]), strict=True))
        return np.array([self._known[key] for key in keys], np.float64)

    def _play(self, coalitions: BoolArray) -> list[float]:
        absent = np.flatnonzero(~coalitions.all(axis=0))
        if self._way is None or not np.isin(absent, self._columns).all():
            # A session needs a player to gate, even where nobody is absent yet.
            self._columns = absent if len(absent) else np.zeros(1, np.int64)
            parts = self._gate(self._columns.tolist())
            given = (self._spec, self._stake.images, self._runtime, self._image_bytes)
            self._way = Tree(parts, *given) if isinstance(parts, Chain) else _way(parts, len(self._columns), *given)
        masks = coalitions[:, self._columns].astype(np.float32)
        return [payoff for scores in self._way.play(masks) for payoff in self._payoffs(scores)]

    def _payoffs(self, scores: FloatArray) -> list[float]:
        """(B, N, K) scores -> B payoffs."""
        chances = probabilities(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)
        found: list[float] = self._stake.payoff(chances).tolist()
        return found


class _Runs:
    """Plays by running the suffix: what the prefix made is put where it computes, and read by all runs.

    A run takes as many images of one coalition as fit, and on a GPU all images of several.
    """

    def __init__(
        self, parts: Parts, spec: InputSpec, images: FloatArray, runtime: Runtime, image_bytes: int = 0
    ) -> None:
        prefix = Session(parts.prefix, runtime, "the graph before the masked layers")
        dtype, step = prefix.inputs[0].dtype, images_at_once(prefix.place, image_bytes)
        large = step < ON_CPU
        # Of large images an arena would keep what the largest run took.
        runtime = replace(runtime, arena=runtime.arena and not large)
        self._suffix = Session(parts.suffix, runtime, "the graph from the masked layers on")
        self._parts, self._n = parts, len(images)
        chunks = [
            prefix.run({spec.name: encode(images[i : i + step], spec).astype(dtype, copy=False)}, parts.frontier)
            for i in range(0, len(images), step)
        ]
        self._cache = {name: np.concatenate([c[i] for c in chunks]) for i, name in enumerate(parts.frontier)}
        size = max(1, sum(array.nbytes for array in self._cache.values()) // self._n)
        on_cpu = self._suffix.place[0] == "cpu"
        rows = images_at_once(self._suffix.place, size if on_cpu else max(image_bytes, size))
        self._rows = max(1, min(rows, _MAX_BYTES // size, step if large else rows)) if on_cpu else rows
        # On the CPU it takes longer to multiply by a mask with a row for each image than is gained by fewer runs.
        self._most_tiles = 1 if on_cpu else max(1, rows // self._n)
        self._kept: dict[str, Held] = {}
        self._tiles = 0

    def play(self, masks: FloatArray) -> Iterator[FloatArray]:
        """Scores (b, N, K) for portions of the masks (B, P), in order."""
        for first in range(0, len(masks), self._most_tiles):
            yield self._run(masks[first : first + self._most_tiles])

    def _run(self, masks: FloatArray) -> FloatArray:
        tiles = len(masks)
        self._keep(tiles)
        # One row serves all images where there is one coalition; a batch of several needs a row per image.
        mask = masks if tiles == 1 else np.repeat(masks, self._n, axis=0)
        total, parts = tiles * self._n, []
        step = self._rows if tiles == 1 else total
        for first in range(0, total, step):
            feeds = {name: tensor[first : min(first + step, total)] for name, tensor in self._kept.items()}
            made = self._suffix.bound({**feeds, self._parts.mask: mask}, [self._parts.scores])
            parts.append(np.asarray(made[self._parts.scores], np.float32))
        return np.concatenate(parts).reshape(tiles, self._n, -1)

    def _keep(self, tiles: int) -> None:
        """Have the prefix's tensors, one after another as often as there are coalitions in a run, where it computes."""
        if tiles > self._tiles:
            self._tiles = tiles
            self._kept = {
                name: self._suffix.held(array if tiles == 1 else np.tile(array, (tiles, *[1] * (array.ndim - 1))))
                for name, array in self._cache.items()
            }


class _Sums:
    """Plays by one matrix product: the scores without anybody, plus what each player present adds to them."""

    def __init__(self, runs: _Runs, n_players: int) -> None:
        self._empty = np.concatenate(list(runs.play(np.zeros((1, n_players), np.float32))))[0]
        ones = np.concatenate(list(runs.play(np.eye(n_players, dtype=np.float32))))
        self._added = (ones - self._empty).reshape(n_players, -1)

    def play(self, masks: FloatArray) -> Iterator[FloatArray]:
        """Scores (b, N, K) for portions of the masks (B, P), in order."""
        step = max(1, _MAX_BYTES // (4 * self._empty.size))
        for first in range(0, len(masks), step):
            added = masks[first : first + step] @ self._added
            yield self._empty + added.reshape(-1, *self._empty.shape)


def _way(
    parts: Parts, n_players: int, spec: InputSpec, images: FloatArray, runtime: Runtime, image_bytes: int
) -> _Runs | _Sums:
    """The closed form where it holds and its table is small enough, else runs of the suffix."""
    runs = _Runs(parts, spec, images, runtime, image_bytes)
    if not parts.linear:
        return runs
    one = next(runs.play(np.ones((1, n_players), np.float32)))
    return _Sums(runs, n_players) if 4 * n_players * one.size <= _MAX_BYTES else runs
