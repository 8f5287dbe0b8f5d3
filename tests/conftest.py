"""What all tests share: the same drawn examples in every run, and the wheel, built once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
ROOTS = {"debride": ROOT / "toolkit", "debride_adapters": ROOT / "adapters"}

# A suite that draws anew fails on what nobody changed.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a copy of the sources, so that no old build folder takes part and none is left."""
    copy = tmp_path_factory.mktemp("sources")
    for root in ROOTS.values():
        shutil.copytree(root, copy / root.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    run = subprocess.run(command, check=False, cwd=copy, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built
