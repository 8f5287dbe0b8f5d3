"""onnxruntime's converters print, log to the root logger, and give it a handler; none of that is the user's concern."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import onnxruntime


@contextmanager
def quiet() -> Iterator[None]:
    """Silence on stdout and in `logging`; the root logger is afterwards as it was before."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    onnxruntime.set_default_logger_severity(4)
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
