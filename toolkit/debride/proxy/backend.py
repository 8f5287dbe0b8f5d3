"""torch's own settings for one run: threads, and no denormal numbers."""

from __future__ import annotations

import torch


def configure(threads: int) -> None:
    """Set torch to `threads` threads (0: leave its own choice) and flush denormals to zero.

    Weights driven towards zero by weight decay make denormal activations, and these are slow on most processors: a
    WideResNet-16-1 ran three times faster without them.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
