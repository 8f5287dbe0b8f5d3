"""The OpenAPI 3.1 document of the HTTP interface, made from the models that are served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from debride.sessions import TensorInfo

from . import openapi_samples as samples
from .openapi_operations import JSON, Operation, answer, json_answer, operation, with_samples
from .openapi_schemas import SCHEMAS, Schema, ref
from .pages import static_files

BYTES, HTML = "application/octet-stream", "text/html"
_LENGTH = "Inference-Header-Content-Length"
_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/bmp", BYTES)
_ABOUT = """Models behind the Open Inference Protocol v2 (KServe, Triton), and image files in, classes out.

Errors are `{"error": "..."}` with the name of the field. A request that finds the queue full gets 429 with
`Retry-After`. Bodies may be compressed (`Content-Encoding: gzip` or `deflate`). Every answer carries `X-Request-ID`,
the request's own where it has one."""
_TAGS = {
    "Classify": "An image file in, its classes out.",
    "Infer": "Tensors in, tensors out: the Open Inference Protocol v2 with its binary tensor extension.",
    "Models": "What is served.",
    "Report": "What was found in a model, and cut out of it.",
    "Server": "Whether it lives, and how it does.",
    "Pages": "For people.",
}
_WORK = (400, 404, 408, 413, 415, 422, 429, 503)


class _Ends(Protocol):
    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...


class Described(Protocol):
    """What the document tells of a served model."""

    @property
    def name(self) -> str:
        """Its name, which needs no quoting in a URL."""
        ...

    @property
    def version(self) -> str:
        """Its version, a number."""
        ...

    @property
    def session(self) -> _Ends:
        """What runs it."""
        ...


def document(models: Sequence[Described], *, token: bool, version: str) -> dict[str, Any]:
    """The OpenAPI document as plain values for JSON. `models` holds one at least; examples use the first.

    `token`: whether a bearer token is asked for. `version` is debride's.
    """
    paths = {
        **_server_paths(token),
        "/v2/models": {"get": _models(token)},
        **_model_paths("/v2/models/{model}", models, token, versioned=False),
        **_model_paths("/v2/models/{model}/versions/{version}", models, token, versioned=True),
        **_pages(),
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "debride serve", "version": version, "description": _ABOUT},
        # Relative to the document, so that it holds behind a proxy's prefix too.
        "servers": [{"url": "."}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": SCHEMAS, **_examples(models)},
    }
    if token:
        found["components"] = {**found["components"], "securitySchemes": {"bearer": _BEARER}}
        found["security"] = [{"bearer": []}]
    return found


def _examples(models: Sequence[Described]) -> dict[str, Any]:
    values = samples.infer_values(_first(models).session.inputs)
    return {} if values is None else {"examples": {"Infer": {"summary": "Every value the same", "value": values}}}


def _first(models: Sequence[Described]) -> Described:
    """The model of the examples: the highest version of the first name, since it answers where none is named."""
    return max((model for model in models if model.name == models[0].name), key=lambda model: int(model.version))


_BEARER = {"type": "http", "scheme": "bearer", "description": "The token that the server was started with."}


def _server_paths(token: bool) -> dict[str, Any]:
    ready = {"anyOf": [ref("Ready"), ref("Error")]}
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    rows = (
        ("/v2", "server", "Server metadata", {200: json_answer(ref("Server"))}, False),
        ("/v2/health/live", "live", "Whether the process answers", {200: json_answer(ref("Live"))}, True),
        (
            "/v2/health/ready",
            "ready",
            "Whether all models are ready",
            {200: json_answer(ref("Ready")), 503: json_answer(ready, "Not ready, or shutting down.")},
            True,
        ),
        ("/metrics", "metrics", "Prometheus metrics", {200: answer(metrics)}, False),
    )
    return {
        path: {"get": operation("Server", key, text, answers, token=token and not free, sample=path, free=free)}
        for path, key, text, answers, free in rows
    }


def _models(token: bool) -> Operation:
    return operation(
        "Models", "models", "All models", {200: json_answer(ref("ModelList"))}, token=token, sample="/v2/models"
    )


def _model_paths(root: str, models: Sequence[Described], token: bool, *, versioned: bool) -> dict[str, Any]:
    first = _first(models)
    home = root.replace("{model}", first.name).replace("{version}", first.version)
    end, of = ("Version", " of one version") if versioned else ("", "")
    ready = {"anyOf": [ref("ModelReady"), ref("Error")]}
    answers: dict[str, tuple[str, str, str, dict[int, Any]]] = {
        "": ("Models", "model", "Model metadata", {200: json_answer(ref("Model"))}),
        "/ready": (
            "Models",
            "modelReady",
            "Whether the model is ready",
            {200: json_answer(ref("ModelReady")), 503: json_answer(ready, "Not ready, or shutting down.")},
        ),
        "/report": ("Report", "report", "The report of the run that made the model", {200: json_answer(ref("Report"))}),
    }
    paths: dict[str, Any] = {
        root + rest: {
            "get": operation(tag, key + end, text + of, found, errors=(404,), token=token, sample=home + rest)
        }
        for rest, (tag, key, text, found) in answers.items()
    }
    paths[f"{root}/classify"] = {"post": _classify(home, end, of, token)}
    paths[f"{root}/infer"] = {"post": _infer(home, first, end, of, token)}
    paths[f"{root}/report/{{file}}"] = {"get": _picture(end, of, token)}
    for item in paths.values():
        item["parameters"] = _path_parameters(models, versioned)
    return paths


def _path_parameters(models: Sequence[Described], versioned: bool) -> list[Schema]:
    names = {"type": "string", "enum": list(dict.fromkeys(model.name for model in models))}
    versions = {"type": "string", "enum": sorted({model.version for model in models}, key=lambda v: (len(v), v))}
    found: list[Schema] = [{"name": "model", "in": "path", "required": True, "schema": names}]
    if versioned:
        found.append({"name": "version", "in": "path", "required": True, "schema": versions})
    return found


def _classify(home: str, end: str, of: str, token: bool) -> Operation:
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGES}
    content["multipart/form-data"] = {
        "schema": {
            "type": "object",
            "properties": {"image": {"type": "string", "format": "binary"}},
            "required": ["image"],
        }
    }
    found = operation(
        "Classify",
        "classify" + end,
        "Classify an image" + of,
        {200: json_answer(ref("Classification"))},
        errors=_WORK,
        token=token,
        description="The body is the image file, under any content type but multipart/form-data, or a form with "
        "one file. The image is turned as its EXIF data says, brought to the model's size and colours, and classified.",
    )
    top = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}
    found["parameters"] = [
        {"name": "top", "in": "query", "description": "How many classes to tell, at most.", "schema": top}
    ]
    found["requestBody"] = {"required": True, "content": content}
    path = f"{home}/classify"
    return with_samples(found, image_file=samples.image(path, token=token), form=samples.form(path, token=token))


def _infer(home: str, model: Described, end: str, of: str, token: bool) -> Operation:
    length = {"type": "integer", "minimum": 0}
    binary = {"schema": {"type": "string", "format": "binary"}}
    tensors = answer({JSON: {"schema": ref("InferResponse")}, BYTES: binary}, "JSON, or JSON and binary data.")
    tensors["headers"] = {
        _LENGTH: {"description": "Bytes of JSON before the binary data, where there is any.", "schema": length}
    }
    found = operation(
        "Infer",
        "infer" + end,
        "Run the model" + of,
        {200: tensors},
        errors=_WORK,
        token=token,
        description=f"JSON, or JSON followed by the tensors' values, little-endian: `{_LENGTH}` then tells where the "
        "JSON ends. NaN and infinities are refused.",
    )
    found["parameters"] = [
        {"name": _LENGTH, "in": "header", "description": "Bytes of JSON before binary data.", "schema": length}
    ]
    path, inputs = f"{home}/infer", model.session.inputs
    given: Schema = {"schema": ref("InferRequest")}
    if samples.infer_values(inputs) is not None:
        given["examples"] = {"values": {"$ref": "#/components/examples/Infer"}}
    found["requestBody"] = {"required": True, "content": {JSON: given, BYTES: binary}}
    return with_samples(
        found,
        JSON=samples.infer_json(path, inputs, token=token),
        binary=samples.infer_binary(path, inputs, token=token),
    )


def _picture(end: str, of: str, token: bool) -> Operation:
    png = {200: answer({"image/png": {"schema": {"type": "string", "format": "binary"}}})}
    found = operation(
        "Report", "picture" + end, "A picture that the report names" + of, png, errors=(404,), token=token
    )
    found["parameters"] = [{"name": "file", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found


def _pages() -> dict[str, Any]:
    page = {HTML: {"schema": {"type": "string"}}}
    whole = {JSON: {"schema": {"type": "object"}}}
    rows = (
        ("/", "page", "The page that takes images", page),
        ("/docs", "docs", "This document, drawn", page),
        ("/openapi.json", "openapi", "This document", whole),
    )
    paths: dict[str, Any] = {
        path: {"get": operation("Pages", key, text, {200: answer(content)}, sample=path, free=True)}
        for path, key, text, content in rows
    }
    kinds = ("text/css", "text/javascript", "image/svg+xml")
    files = {200: answer({kind: {"schema": {"type": "string"}} for kind in kinds})}
    found = operation("Pages", "static", "A file of these pages", files, errors=(404,), free=True)
    names = {"type": "string", "enum": sorted(name for name in static_files() if not name.endswith(".html"))}
    found["parameters"] = [{"name": "file", "in": "path", "required": True, "schema": names}]
    return {**paths, "/static/{file}": {"get": found}}
