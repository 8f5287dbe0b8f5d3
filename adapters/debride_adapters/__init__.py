"""Adapters: one module per framework, each found through the entry-point group `debride.adapters`."""
