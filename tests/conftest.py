"""The same examples in every run: a suite that draws anew fails on what nobody changed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
