"""Image files are decoded by threads while the model runs: OpenCV and onnxruntime both let go of Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .rows import Image

if TYPE_CHECKING:
    from concurrent.futures import Future

Row = npt.NDArray[Any]
Prepare = Callable[[Image, str], Row]
_MOST_THREADS = 4


def prepared(prepare: Prepare, images: Iterable[Image], ahead: int) -> Iterator[Row]:
    """`prepare(image, "image i")` of every image, in order; files are decoded by threads, at most `ahead` images ahead.

    `images` may be endless: one is asked for when there is room for it. What `prepare` raises comes when its image is
    due. Arrays, and a file that is the last image, need no thread.
    """
    source = enumerate(images)
    for at, image in source:
        after = None if isinstance(image, np.ndarray) else next(source, None)
        if after is not None:
            yield from _by_threads(prepare, chain([(at, image), after], source), ahead)
            return
        yield prepare(image, f"image {at}")


def _by_threads(prepare: Prepare, source: Iterable[tuple[int, Image]], ahead: int) -> Iterator[Row]:
    from concurrent.futures import ThreadPoolExecutor  # its import is measured, and one image needs none

    waiting: deque[Future[Row]] = deque()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "debride-decode") as pool:
        try:
            for at, image in source:
                waiting.append(pool.submit(prepare, image, f"image {at}"))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
