"""The command line: the only part of debride that prints, exits and reads arguments."""

from debride.cli.app import app, main

__all__ = ["app", "main"]
