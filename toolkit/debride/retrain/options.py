"""The methods of retraining, as what their loss is made of, and what a retraining may spend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from debride.errors import UsageError

MethodName = Literal["unlearn", "distill", "ft-sam", "fine-tune"]
StatisticsChoice = Literal["keep", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method as one loss: cross entropy on clean images, and further terms where their weight is not 0.

    `stamped` weighs images stamped with the found triggers, wanted as their clean selves are and never in the
    target (unlearning; Neural Cleanse, Wang et al., IEEE S&P 2019, section VI-C, with answers in place of labels).
    `margin` is added to the target's logit of all images of other classes before the loss is taken: the network has to
    be that much surer that none of these is of the target (label-distribution-aware margins, Cao et al., NeurIPS 2019).
    `features` weighs the distance to the delivered network's last features of the same clean image (after Neural
    Attention Distillation, Li et al., ICLR 2021). `radius` is that of the neighbourhood of the weights, in shares of
    their own size, whose worst loss is lowered (FT-SAM, Zhu et al., ICCV 2023, arXiv 2304.11823; 0: plain steps).
    `truth` is the share of the given labels in what is wanted of clean images, beside the delivered network's answers.
    """

    stamped: float = 0.0
    margin: float = 0.0
    features: float = 0.0
    radius: float = 0.0
    truth: float = 0.0


METHODS: Mapping[MethodName, Method] = MappingProxyType(
    {
        "unlearn": Method(stamped=0.25, margin=2.0),
        "distill": Method(stamped=0.25, margin=2.0, features=1.0),
        "ft-sam": Method(radius=0.5, truth=1.0),
        "fine-tune": Method(truth=1.0),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainOptions:
    """`method` by name, at most `steps` updates at `rate` (Adam's, at its highest), with `images` clean images each:
    half as many where no trigger works any more before the first step, and there is little to unlearn; and of
    large images down to half as many (`Compute.images`).

    `statistics` says whether the running mean and variance of batch normalisation are kept or, before the first step,
    estimated on the clean images. A retraining of several rounds takes so many steps in each.
    """

    method: MethodName = "unlearn"
    steps: int = 400
    images: int = 64
    rate: float = 7e-4
    statistics: StatisticsChoice = "keep"

    def __post_init__(self) -> None:
        """Raises `UsageError` where a value is out of range."""
        if self.method not in METHODS:
            raise UsageError(f"{self.method!r} is no method of retraining; give one of {', '.join(METHODS)}")
        if not 1 <= self.steps <= 100_000:
            raise UsageError(f"{self.steps} steps of retraining; give 1 to 100000")
        if not 2 <= self.images <= 4096 or not 0 < self.rate <= 1:
            raise UsageError("retraining takes 2 to 4096 images a step, and a rate above 0 and up to 1")
