"""What a server may do and take: every limit in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Limits of one server.

    `max_batch` rows run together at most (fewer where they take longer than a tenth of a second), gathered for at most
    `max_delay` seconds after the first; `workers` batches of one model run at the same time; `queue` rows may wait per
    model before requests are turned away. A body has at most `max_request` bytes, an image `max_pixels`, a request
    `timeout` seconds from its first byte to its answer. `token`, where not empty, is asked of every request but those
    for pages and health.
    `hosts`, where not empty, are the names that requests may ask for in their Host header.
    """

    max_batch: int = 8
    max_delay: float = 0.0
    queue: int = 256
    workers: int = 2
    max_request: int = 32 * MEBIBYTE
    max_pixels: int = 1 << 25
    timeout: float = 30.0
    hosts: frozenset[str] = frozenset()
    # Not in the repr: settings end up in logs.
    token: str = field(default="", repr=False)

    @property
    def max_values(self) -> int:
        """As many values as one tensor may hold: a byte each in the largest body."""
        return self.max_request

    @property
    def max_in_flight(self) -> int:
        """How many bytes of bodies may be held at the same time, over all connections."""
        return max(8 * self.max_request, 256 * MEBIBYTE)
