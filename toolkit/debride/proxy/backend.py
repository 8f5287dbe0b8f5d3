"""torch's own settings for one run: threads, no denormal numbers, and how CUDA rounds float32."""

from __future__ import annotations

import torch

from debride.types import Compute


def configure(threads: int) -> None:
    """Set torch to `threads` threads (0: leave its own choice) and flush denormals to zero.

    Weights driven towards zero by weight decay make denormal activations, and these are slow on most processors: a
    WideResNet-16-1 ran three times faster without them.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def round_as(compute: Compute) -> None:
    """Let CUDA round the operands of float32 products to ten bits where `compute` says TF32, and nowhere else.

    torch keeps this for the whole process, and a backward pass needs it as much as a forward one.
    """
    allowed = compute.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
