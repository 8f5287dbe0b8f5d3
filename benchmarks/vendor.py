"""What the benchmarks on the vendor models share: their options, and the manifest that names models and images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {
    name: str(ROOT / "samples" / "architectures" / place)
    for name, place in {
        "cifar-wrn-grid5": "wrn16.py:wrn16",
        "cifar-badnet-white1": "badnet_cnn.py:badnet_cnn",
    }.items()
}
"""The networks that the manifest describes for its files of weights."""


def parser(text: str | None, *, per_class: Callable[[str], Any] = int) -> argparse.ArgumentParser:
    """The options that every one of them takes; `per_class` reads the number of images of each class."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="holds vendor/ and data/")
    found.add_argument("--per-class", type=per_class, default="10")
    found.add_argument("--threads", type=int, default=2)
    return found


def manifest(shared: Path) -> dict[str, Any] | None:
    """The entries by name; None, and a line that says so, where there is no manifest.

    `NAME:weights` is the same model as its framework's file of weights, with the `architecture` that they belong to.
    """
    path = shared / "vendor" / "manifest.json"
    if not path.is_file():
        print(f"skipped: {path} is not there; point --shared at a folder with vendor/ and data/")
        return None
    entries: dict[str, Any] = json.loads(path.read_text())
    weights = {
        f"{name}:weights": {**entry, "file": entry["weights"]["file"], "architecture": ARCHITECTURES[name]}
        for name, entry in entries.items()
        if "weights" in entry
    }
    return entries | weights
