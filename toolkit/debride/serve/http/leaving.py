"""The end of the process, whatever its threads still do."""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic

# The idle need no more to see that it is over.
_IDLE = 0.5


def leave(code: int) -> None:
    """Ends the process with exit code `code` where an image or a model still keeps one of its daemon threads busy.

    Else it returns, and the interpreter may end as usual. It must not while OpenCV or onnxruntime compute: what comes
    back from them to an interpreter that is being taken down aborts the process.
    """
    until = monotonic() + _IDLE
    threads = [thread for thread in threading.enumerate() if thread.daemon]
    for thread in threads:
        thread.join(max(until - monotonic(), 0))
    if any(thread.is_alive() for thread in threads):
        logging.shutdown()  # writes what is held
        os._exit(code)
