"""Slimming: taking dead channels out of a graph, so that what is left is smaller and says the same."""

from debride.slimming.slim import TOLERANCE, Slimmed, slim

__all__ = ["TOLERANCE", "Slimmed", "slim"]
