"""What is asked of every graph of the zoo: parity, gradient, groups, zeroing and slimming, measured in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from architectures_parts import pictures
from debride.graph.channels import find_groups
from debride.graph.read import Model, read_model
from debride.graph.surgery import zero
from debride.images import encode
from debride.proxy.interpreter import Proxy
from debride.sessions import Runtime, Session
from debride.slimming import slim
from debride.types import ChannelGroup, InputSpec, Refused, Slimming

SHARE = 0.4
"""Of the channel indices, this many are zeroed."""
_STEPS = (1e-7, 1e-9)
_DIRECTIONS = 4
ONE = Runtime(threads=1)
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Slim:
    """How slimming went: debride's `facts`, and the difference from the zeroed file that was measured here.

    `difference` is the largest |a - b| as a share of the scores' spread within an image, over batches of 1 and 3;
    `alive` is how much the zeroed model's scores move from image to image, as a share of that spread.
    """

    facts: Slimming
    difference: float
    alive: float

    @property
    def equal(self) -> bool:
        """Whether channels left and the outputs stayed."""
        return self.facts.left > 0 and self.difference <= 1e-5


class Subject:
    """One file of the zoo, read, with random images; `folder` takes the files that are written on the way."""

    def __init__(
        self, proto: onnx.ModelProto, folder: Path, *, nhwc: bool = False, high: float = 1.0, seed: int = 0
    ) -> None:
        self.folder, self._rng = folder, np.random.default_rng(seed)
        self.model: Model = read_model(_written(proto, folder / "delivered.onnx"))
        entry = self.model.graph.inputs[0]
        shape = entry.shape or ()
        height, width = (shape[1:3] if nhwc else shape[2:4]) if len(shape) == 4 else (None, None)
        if not height or not width:
            raise ValueError(f"the input {entry.name} has the shape {shape}; export the model with a fixed image size")
        self.spec = InputSpec(
            name=entry.name,
            layout="NHWC" if nhwc else "NCHW",
            channels="RGB",
            size=(height, width),
            range=(0.0, high),
            output=self.model.graph.outputs[0].name,
        )
        self.images = pictures(3, (3, height, width), seed + 1).numpy()

    @cached_property
    def proxy(self) -> Proxy:
        """The graph in torch."""
        return Proxy(self.model.graph, self.spec)

    @cached_property
    def _found(self) -> tuple[tuple[ChannelGroup, ...], tuple[Refused, ...]]:
        return find_groups(self.model.graph, self.spec.output)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All players."""
        return self._found[0]

    @property
    def refused(self) -> tuple[Refused, ...]:
        """The layers that are none, but for those that make the scores."""
        return tuple(r for r in self._found[1] if r.reason != "makes the class scores")

    def parity(self) -> float:
        """The largest difference of the proxy's scores from onnxruntime's, as a share of these."""
        expected = self._run(self.model.working, self.images)
        with torch.no_grad():
            actual = self.proxy.scores(torch.from_numpy(self.images)).numpy()
        return float(np.abs(actual - expected).max() / np.abs(expected).max())

    def gradient_error(self) -> float:
        """The input gradient against central differences along random directions, in float64.

        The largest error as a share of the root mean square of the slopes. Of two steps the better one counts: a kink
        between the ends (of Relu, of MaxPool) makes the difference wrong, not the gradient.
        """
        proxy = Proxy(self.model.graph, self.spec).double()
        x = torch.from_numpy(self.images[:1].astype(np.float64)).requires_grad_()
        scores = proxy.scores(x)
        weights = torch.from_numpy(self._rng.normal(size=tuple(scores.shape)))
        (gradient,) = torch.autograd.grad((scores * weights).sum(), x)
        slopes, errors = [], []
        for _ in range(_DIRECTIONS):
            along = torch.from_numpy(self._rng.normal(size=tuple(x.shape)))
            slopes.append(float((gradient * along).sum()))
            errors.append(min(abs(self._slope(proxy, x, along, weights, step) - slopes[-1]) for step in _STEPS))
        return max(errors) / float(np.sqrt(np.mean(np.square(slopes))))

    @staticmethod
    def _slope(proxy: Proxy, x: torch.Tensor, along: torch.Tensor, weights: torch.Tensor, step: float) -> float:
        with torch.no_grad():
            ends = [float((proxy.scores(x + s * step * along) * weights).sum()) for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    def chosen(self, share: float = SHARE) -> list[ChannelGroup]:
        """`share` of all channel indices, the same ones in every layer of a width, so that coupled ones go together."""
        layers: dict[str, list[ChannelGroup]] = {}
        for group in self.groups:
            layers.setdefault(group.layer, []).append(group)
        gone: dict[int, set[int]] = {}
        for width in sorted({len(layer) for layer in layers.values()}):
            count = max(1, round(share * width)) if width > 1 else 0
            gone[width] = set(self._rng.permutation(width)[:count].tolist())
        return [g for layer in layers.values() for g in layer if g.channel in gone[len(layer)]]

    def masked_difference(self, groups: Sequence[ChannelGroup], zeroed: Sequence[ChannelGroup] | None = None) -> float:
        """`groups` masked in the proxy against `zeroed` (the same) zeroed in onnxruntime, as a share of the scores."""
        expected = self._run(zero(self.model, groups if zeroed is None else zeroed), self.images)
        with torch.no_grad():
            actual = self.proxy.scores(torch.from_numpy(self.images), self._masks(groups)).numpy()
        return float(np.abs(actual - expected).max() / np.abs(expected).max())

    def slimmed(self, groups: Sequence[ChannelGroup]) -> Slim:
        """`groups` zeroed, written, read again and slimmed; compared as files."""
        zeroed = read_model(_written(zero(self.model, groups), self.folder / "zeroed.onnx"))
        made = slim(zeroed, runtime=ONE)
        after = onnx.load(_written(made.proto, self.folder / "slimmed.onnx"))
        old, new = self._run(zeroed.proto, self.images), self._run(after, self.images)
        single = [self._run(proto, self.images[:1]) for proto in (zeroed.proto, after)]
        spread = _spread(old)
        difference = max(float(np.abs(a - b).max()) / spread for a, b in ((old, new), (single[0], single[1])))
        return Slim(facts=made.facts, difference=difference, alive=float(old.std(0).max()) / spread)

    def _masks(self, groups: Sequence[ChannelGroup]) -> Mapping[str, torch.Tensor]:
        with torch.no_grad():
            x = {self.spec.name: self.proxy.encode(torch.from_numpy(self.images[: self._fixed or 1]))}
            shapes = {k: v.shape for k, v in self.proxy.run(x, tuple({g.edge for g in groups})).items()}
        masks: dict[str, torch.Tensor] = {}
        for group in groups:
            shape = shapes[group.edge]
            place = [1] * len(shape)
            place[group.axis] = shape[group.axis]
            mask = masks.setdefault(group.edge, torch.ones(place))
            mask.select(group.axis, group.channel).zero_()
        return masks

    @property
    def _fixed(self) -> int | None:
        return (self.model.graph.inputs[0].shape or (None,))[0]

    def _run(self, proto: onnx.ModelProto, images: Array) -> Array:
        """The scores (N, K); a model of fixed batch size is run image by image."""
        session = Session(proto.SerializeToString(), ONE)
        x = encode(images, self.spec)
        entry = next(i for i in session.inputs if i.name == self.spec.name)
        parts = np.split(x, len(x)) if entry.shape[0] == 1 else [x]
        found = [session.run({entry.name: np.ascontiguousarray(p)}, [self.spec.output])[0] for p in parts]
        return np.concatenate(found).reshape(len(images), -1)


def _written(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def _spread(scores: Array) -> float:
    """The largest standard deviation about an image's mean."""
    return float(scores.std(1).max())
