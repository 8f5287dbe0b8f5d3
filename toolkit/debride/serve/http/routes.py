"""The endpoints under /v2: the Open Inference Protocol v2 (REST), and classification of image files.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from debride import __version__
from debride.errors import ImagesError, ModelError

from .batching import Batcher
from .bodies import Body, Budget
from .decoding import Decoders
from .errors import BadRequest, NoAnswer, NotFound, Unavailable
from .forms import file_of_form
from .models import Models, Served
from .protocol import InferRequest, parse_infer, render_infer, tensor_metadata
from .settings import ServeSettings

Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS = ("binary_tensor_data", "classification", "classify_image")
MAX_TOP = 1000
_QUICK = 1 << 20


class Api:
    """The endpoints over `models`, each with its `Batcher` of the same key in `batchers`."""

    def __init__(self, models: Models, batchers: Mapping[tuple[str, str], Batcher], settings: ServeSettings) -> None:
        self._models, self._batchers, self._settings = models, batchers, settings
        self._budget = Budget(settings.max_in_flight)
        self._decoders = Decoders(settings.max_pixels)
        self._parser = asyncio.Lock()
        self.ready = False

    def routes(self) -> list[Route]:
        """The routes, those that carry the load first."""
        found = []
        for end, endpoint, method in (
            ("/infer", self.infer, "POST"),
            ("/classify", self.classify, "POST"),
            ("", self.model, "GET"),
            ("/ready", self.model_ready, "GET"),
            ("/report", self.report, "GET"),
            ("/report/{file}", self.picture, "GET"),
        ):
            for root in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
                found.append(Route(root + end, endpoint, methods=[method]))
        return [
            *found,
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/models", self.models, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.server_ready, methods=["GET"]),
        ]

    def close(self) -> None:
        """Lets the decoding threads end."""
        self._decoders.close()

    async def server(self, request: Request) -> Response:
        """Server metadata."""
        return answer({"name": "debride", "version": __version__, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return answer({"live": True})

    async def server_ready(self, request: Request) -> Response:
        """Whether all models are ready."""
        return answer({"ready": self.ready}, status=200 if self.ready else 503)

    async def models(self, request: Request) -> Response:
        """All models: ours, since the protocol has no listing without repository."""
        rows = [
            {"name": m.name, "version": m.version, "ready": self.ready, "sha256": m.sha256, "report": bool(m.report)}
            for m in self._models
        ]
        return answer({"models": rows})

    async def model(self, request: Request) -> Response:
        """Model metadata."""
        served = self._served(request)
        session, spec = served.session, served.classifier.spec
        return answer(
            {
                "name": served.name,
                "versions": self._models.versions(served.name),
                "platform": "onnxruntime_onnx",
                "inputs": [tensor_metadata(info) for info in session.inputs],
                "outputs": [tensor_metadata(info) for info in session.outputs],
                "parameters": {
                    "sha256": served.sha256,
                    "classes": served.classifier.n_classes,
                    "size": spec.size,
                    "channels": spec.channels,
                },
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether the model is ready."""
        served = self._served(request)
        found = {"name": served.name, "ready": self.ready}
        return answer(found, status=200 if self.ready else 503)

    async def infer(self, request: Request) -> Response:
        """Tensors in, tensors out."""
        served = self._served(request)
        body = self._body(request)
        try:
            wanted = await self._parsed(request, served, await self._read(request, body))
            names = tuple(output.name for output in wanted.outputs)
            rows = wanted.inputs[served.plan.input]
            tensors = await self._batcher(served).submit(rows, names)
        finally:
            body.release()
        found = dict(zip(names, tensors, strict=True))
        labels = served.classifier.spec.class_names
        content, header = render_infer(served.name, served.version, wanted, found, labels)
        if header is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(header)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def classify(self, request: Request) -> Response:
        """An image file in, its classes out."""
        served = self._served(request)
        top, body = _top(request), self._body(request)
        try:
            data = await self._image(request, body)
            row = await self._decoders.prepared(served.classifier, data)
            output = served.classifier.spec.output or served.session.outputs[0].name
            (scores,) = await self._batcher(served).submit(row[None], (output,))
        except ImagesError as error:
            raise BadRequest(str(error)) from error
        finally:
            body.release()
        try:
            (best,) = served.classifier.ranked(scores, top)
        except ModelError as error:
            raise NoAnswer(f"image: {error}") from error
        return answer(
            {
                "model_name": served.name,
                "model_version": served.version,
                "predictions": [{"label": p.label, "index": p.index, "probability": p.probability} for p in best],
            }
        )

    async def report(self, request: Request) -> Response:
        """The report of the run that made the model."""
        served = self._served(request)
        if served.report is None:
            raise NotFound(f"model {served.name!r} version {served.version} has no report beside it")
        return Response(served.report.body, media_type="application/json")

    async def picture(self, request: Request) -> Response:
        """A picture that the report names."""
        served, file = self._served(request), request.path_params["file"]
        pictures = served.report.pictures if served.report else {}
        if file not in pictures:
            raise NotFound(f"the report of model {served.name!r} names no picture {file[:100]!r}")
        return Response(pictures[file], media_type="image/png")

    def _served(self, request: Request) -> Served:
        served = self._models.find(request.path_params["model"], request.path_params.get("version"))
        request.scope["served"] = served  # for log and metrics
        return served

    def _batcher(self, served: Served) -> Batcher:
        return self._batchers[served.name, served.version]

    def _body(self, request: Request) -> Body:
        if not self.ready:
            raise Unavailable("the server is not ready or shutting down", {"Retry-After": "1"})
        return Body(request.receive, limit=self._settings.max_request, budget=self._budget)

    async def _read(self, request: Request, body: Body) -> bytes:
        headers = request.headers
        return await body.read(headers.get("content-length"), headers.get("content-encoding"))

    async def _parsed(self, request: Request, served: Served, data: bytes) -> InferRequest:
        session = served.session
        parse = partial(
            parse_infer,
            data,
            request.headers.get("inference-header-content-length"),
            inputs=session.inputs,
            outputs=session.outputs,
            max_values=self._settings.max_values,
        )
        if len(data) <= _QUICK:
            return parse()
        async with self._parser:  # one at a time, beside the loop: numbers by the million take a second
            return await asyncio.to_thread(parse)

    async def _image(self, request: Request, body: Body) -> bytes:
        """The image file's bytes, sent as they are or as the only file of a form."""
        kind = request.headers.get("content-type", "")
        data = await self._read(request, body)
        if kind.partition(";")[0].strip().lower() == "multipart/form-data":
            data = await file_of_form(request.scope, kind, data)
        if not data:
            raise BadRequest("the body is empty; send the bytes of an image file")
        return data


def answer(content: Any, status: int = 200) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def _top(request: Request) -> int:
    text = request.query_params.get("top", "5") if request.scope["query_string"] else "5"
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP):
        raise BadRequest(f"top: {text[:50]!r} is no whole number in 1..{MAX_TOP}")
    return int(text)
