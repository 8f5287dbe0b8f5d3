"""Slimming: taking dead channels out of a graph, so that what is left is smaller and says the same."""
