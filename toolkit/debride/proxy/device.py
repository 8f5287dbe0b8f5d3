"""Which device torch computes on."""

from __future__ import annotations

import torch

from debride.errors import RuntimeMissingError
from debride.sessions import device_number


def resolve_device(asked: str) -> str:
    """`asked` ("auto", "cpu", "cuda" or "cuda:N") as a device that is there: "cpu" or "cuda:N".

    "auto" is the first CUDA device where torch sees one, else the CPU.

    Raises:
        UsageError: `asked` is none of these names.
        RuntimeMissingError: a CUDA device was asked for and torch sees no such device.
    """
    number, seen = device_number(asked) or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not seen):
        return "cpu"
    if number >= seen:
        how = "a build of torch for the CPU alone" if torch.version.cuda is None else "torch with no driver or GPU"
        known = f"torch sees {seen} CUDA device{'s' * (seen != 1)}, from cuda:0 on" if seen else f"this is {how}"
        raise RuntimeMissingError(
            f"--device {asked}: there is no such device ({known}); take --device cpu, or install a CUDA build of torch "
            "and debride[gpu] on a machine with a GPU"
        )
    return f"cuda:{number}"
