"""The adapter keeps debride's contract on a small network. Run with pytest."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from debride_numpy import adapter

from debride.testing import check_adapter


def test_the_adapter_keeps_the_contract(tmp_path: Path) -> None:
    """Every clause of it: see `debride.testing.check_adapter`."""
    rng = np.random.default_rng(0)
    sizes, arrays = (3 * 8 * 8, 16, 4), {"shape": np.array([3, 8, 8])}
    for i, (before, after) in enumerate(pairwise(sizes)):
        arrays[f"weight{i}"] = rng.normal(0, before**-0.5, (before, after)).astype(np.float32)
        arrays[f"bias{i}"] = rng.normal(0, 0.1, after).astype(np.float32)
    np.savez(tmp_path / "network.npz", **arrays)
    conversion = check_adapter(adapter, tmp_path / "network.npz")
    assert max(found.difference for found in conversion.parity) < 1e-5
