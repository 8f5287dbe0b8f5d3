"""What a report says of a model that was converted: where it came from, and how equal the ONNX graph is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from debride.types import Conversion

_KINDS = {"random": "random inputs", "images": "the images"}


def conversion_fields(conversion: Conversion) -> dict[str, Any]:
    """`conversion` as a JSON object."""
    return {
        "framework": conversion.framework,
        "packages": dict(conversion.packages),
        "opset": conversion.opset,
        "parity": [
            {
                "inputs": found.kind,
                "difference": found.difference,
                "same_class": found.same_class.value,
                "n": found.same_class.n,
            }
            for found in conversion.parity
        ],
        "tolerance": conversion.tolerance,
        "notes": list(conversion.notes),
    }


def conversion_facts(conversion: Conversion) -> Iterator[tuple[str, str]]:
    """`conversion` as pairs of a field's name and its text."""
    yield "From", f"{conversion.framework}{_versions(conversion.packages)}, to ONNX opset {conversion.opset}"
    for found in conversion.parity:
        same = found.same_class
        yield (
            "Parity",
            f"on {_KINDS[found.kind]} the largest difference is {found.difference:.2g} of the scores' spread "
            f"(limit {conversion.tolerance:g}), "
            f"the class is the same on {same.hits} of {same.n}",
        )
    for note in conversion.notes:
        yield "Note", note


def _versions(packages: Mapping[str, str]) -> str:
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f" ({named})" if named else ""
