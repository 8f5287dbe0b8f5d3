"""The values that flow between stages: frozen, slotted, keyword-only; numpy and the standard library only.

Arrays are made read-only on construction. Images are float32 in 0..1, shape (N, C, H, W), colours in RGB order; what
a model wants instead is said by `InputSpec` and applied at the very edge, by `images.encode`.

The definitions are in `types_*.py`, by stage: making a dataclass takes half a millisecond, and serving needs one.
"""

from .types_compute import Compute, ComputeReason, Meter, Precision, PrecisionChoice, Timing
from .types_convert import Agreement, Conversion, Converted, ConvertOptions, Reference
from .types_cut import ChannelGroup, DifferentiableGame, Game, Pruned, Refused, Round, ShapleyValues, Slice
from .types_find import (
    WHOLE,
    Detection,
    Evaluation,
    Finding,
    Progress,
    Rate,
    Repeated,
    Samples,
    Trigger,
    TriggerEvaluation,
    no_progress,
    part_of,
    surveyed_trigger,
)
from .types_input import (
    BoolArray,
    Channels,
    DoubleArray,
    FloatArray,
    InputSpec,
    IntArray,
    Layout,
    Predict,
    SpecSource,
    frozen_array,
)
from .types_report import Cost, FileFacts, Report, Slimming, Verdict
from .types_retrain import LabelSource, Relearning, Retraining, Statistics, WeightChange

__all__ = [
    "WHOLE",
    "Agreement",
    "BoolArray",
    "ChannelGroup",
    "Channels",
    "Compute",
    "ComputeReason",
    "Conversion",
    "ConvertOptions",
    "Converted",
    "Cost",
    "Detection",
    "DifferentiableGame",
    "DoubleArray",
    "Evaluation",
    "FileFacts",
    "Finding",
    "FloatArray",
    "Game",
    "InputSpec",
    "IntArray",
    "LabelSource",
    "Layout",
    "Meter",
    "Precision",
    "PrecisionChoice",
    "Predict",
    "Progress",
    "Pruned",
    "Rate",
    "Reference",
    "Refused",
    "Relearning",
    "Repeated",
    "Report",
    "Retraining",
    "Round",
    "Samples",
    "ShapleyValues",
    "Slice",
    "Slimming",
    "SpecSource",
    "Statistics",
    "Timing",
    "Trigger",
    "TriggerEvaluation",
    "Verdict",
    "WeightChange",
    "frozen_array",
    "no_progress",
    "part_of",
    "surveyed_trigger",
]
