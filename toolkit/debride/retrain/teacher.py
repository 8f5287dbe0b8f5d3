"""The delivered network as a teacher: its answers to clean images, and rounds of learning from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from debride.graph.read import Model
from debride.proxy.interpreter import Proxy
from debride.retrain.draws import Draws
from debride.retrain.loss import Loss
from debride.retrain.network import Network
from debride.retrain.options import METHODS, RetrainOptions
from debride.retrain.train import Course, train
from debride.types import Compute, FloatArray, InputSpec, Progress, Samples, Trigger, no_progress

_WATCHED = 256
"""Variations of held-out images that tell which of ten steps is the best: so little is chosen on them, and no more."""


class Teacher:
    """Teaches networks what the `delivered` model says of clean images, by the method of `options`.

    `labelled`: the samples' labels are the truth and not the delivered model's own answers.
    """

    def __init__(
        self,
        delivered: Model,
        spec: InputSpec,
        options: RetrainOptions,
        *,
        labelled: bool,
        compute: Compute | None = None,
    ) -> None:
        self.method, self._options = METHODS[options.method], options
        self._truth = self.method.truth if labelled else 0.0
        self._proxy = Proxy(delivered.graph, spec, compute=replace(compute or Compute(), precision="float32"))
        self._loss = Loss(self.method, Network(delivered, spec, (), compute) if self.method.features else None)

    def answers(self, images: FloatArray) -> FloatArray:
        """Class probabilities (N, K) of images (N, C, H, W) in 0..1.

        They come from the proxy's logits, as what is taught does: a graph may end in something else than a softmax.
        """
        at, step = self._proxy.device, self._proxy.compute.batch
        parts = [torch.from_numpy(images[i : i + step].copy()).to(at) for i in range(0, len(images), step)]
        with torch.no_grad():
            found = torch.cat([self._proxy(part) for part in parts]).float().softmax(1)
        return np.asarray(found.cpu().numpy(), np.float32)

    def teach(
        self,
        network: Network,
        fit: Samples,
        watched: Samples,
        triggers: Sequence[Trigger],
        *,
        seed: int,
        deadline: float | None = None,
        progress: Progress = no_progress,
        stage: str = "retraining",
    ) -> Course:
        """Train `network` on `fit`, away from `triggers` (where the method stamps any), watched on `watched`."""
        stamps = triggers if self.method.stamped else ()
        draws, look = (Draws(samples, self.answers, stamps, truth=self._truth, seed=seed) for samples in (fit, watched))
        return train(
            network,
            self._loss,
            draws,
            look(network.proxy.compute.images(_WATCHED)),
            self._options,
            deadline=deadline,
            progress=progress,
            stage=stage,
        )
