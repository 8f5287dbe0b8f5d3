"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from debride import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What the server counts. Labels come from the routes and the served models alone, never from a request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        of = ("model", "version")
        self._requests = Counter("debride_requests", "Answers.", ("route", *of, "status"), registry=self.registry)
        self._seconds = _histogram("debride_request_seconds", "From headers to answer.", ("route",), self.registry)
        self._rows = Histogram(
            "debride_batch_rows", "Rows that ran together.", of, buckets=_ROWS, registry=self.registry
        )
        self._inference = _histogram("debride_inference_seconds", "One batch in onnxruntime.", of, self.registry)
        self._queued = _histogram("debride_queue_seconds", "Wait of a batch's oldest row.", of, self.registry)
        self._waiting = Gauge("debride_queue_rows", "Rows that wait.", of, registry=self.registry)
        info = (*of, "sha256", "provider")
        self._children: dict[tuple[str, str, str, int], tuple[Counter, Histogram]] = {}
        self._models = Gauge("debride_model_info", "Served models; always 1.", info, registry=self.registry)
        Gauge("debride_info", "Always 1.", ("version",), registry=self.registry).labels(__version__).set(1)

    def model(self, name: str, version: str, *, sha256: str, provider: str, waiting: Callable[[], int]) -> ModelMetrics:
        """What one model counts; `waiting` gives the rows in its queue now."""
        self._models.labels(name, version, sha256, provider).set(1)
        self._waiting.labels(name, version).set_function(waiting)
        of = (name, version)
        return ModelMetrics(self._rows.labels(*of), self._inference.labels(*of), self._queued.labels(*of))

    def answered(self, route: str, model: str, version: str, status: int, seconds: float) -> None:
        """One request was answered."""
        key = (route, model, version, status)
        found = self._children.get(key)
        if found is None:
            found = self._requests.labels(route, model, version, str(status)), self._seconds.labels(route)
            self._children[key] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The batches of one model; called from its threads."""

    def __init__(self, rows: Histogram, inference: Histogram, queued: Histogram) -> None:
        self._rows, self._inference, self._queued = rows, inference, queued

    def batch(self, rows: int, waited: float, seconds: float) -> None:
        """`rows` ran together in `seconds`; the oldest had waited `waited` seconds."""
        self._rows.observe(rows)
        self._inference.observe(seconds)
        self._queued.observe(waited)


def _histogram(name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, labels, buckets=_SECONDS, registry=registry)
