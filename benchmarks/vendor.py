"""What the benchmarks on the vendor models share: their options, and the manifest that names models and images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that every one of them takes."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="holds vendor/ and data/")
    found.add_argument("--per-class", type=int, default=10)
    found.add_argument("--threads", type=int, default=2)
    return found


def manifest(shared: Path) -> dict[str, Any] | None:
    """The entries of the ONNX files, by name; None, and a line that says so, where there is no manifest."""
    path = shared / "vendor" / "manifest.json"
    if not path.is_file():
        print(f"skipped: {path} is not there; point --shared at a folder with vendor/ and data/")
        return None
    entries: dict[str, Any] = json.loads(path.read_text())
    return {name: entry for name, entry in entries.items() if entry["file"].endswith(".onnx")}
