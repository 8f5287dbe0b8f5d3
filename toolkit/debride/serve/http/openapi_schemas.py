"""The JSON of the HTTP interface as JSON Schema (2020-12), the dialect of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from .datatypes import DATATYPES

Schema = dict[str, Any]

_NUMERIC = [kind.name for kind in DATATYPES.values()]
_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def ref(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed(properties: dict[str, Schema], *, optional: tuple[str, ...] = (), description: str = "") -> Schema:
    """An object of exactly these `properties`, all of them required but the `optional` ones."""
    found: Schema = {"type": "object", "description": description} if description else {"type": "object"}
    required = [name for name in properties if name not in optional]
    return {**found, "properties": properties, "required": required, "additionalProperties": False}


def _text(description: str = "") -> Schema:
    return {"type": "string", "description": description} if description else {"type": "string"}


def _list(items: Schema, description: str = "") -> Schema:
    return {"type": "array", "items": items, **({"description": description} if description else {})}


_SHAPE = _list({"type": "integer", "minimum": 0})
_DATA = {
    "type": "array",
    "description": "Flat in row-major order, or nested as `shape` says.",
    "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}, ref("TensorData")]},
}
_INPUT = {
    "type": "object",
    "description": "One input of the model: its values are in `data`, or behind the JSON (`binary_data_size`).",
    "properties": {
        "name": _text("As the model's metadata has it."),
        "datatype": {"enum": _NUMERIC, "description": "The model's own. FP16 comes as binary data only."},
        "shape": _list({"type": "integer", "minimum": 1}, "The model's, with a number where that has -1."),
        "parameters": {
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
        },
        "data": ref("TensorData"),
    },
    "required": ["name", "datatype", "shape"],
}
_WANTED = {
    "type": "object",
    "description": "One output that is asked for.",
    "properties": {
        "name": _text("As the model's metadata has it."),
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data": {"type": "boolean", "description": "Send it behind the JSON."},
                "classification": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "That many best classes as text, `score:index:label`, instead of the tensor.",
                },
            },
        },
    },
    "required": ["name"],
}
_OUTPUT = closed(
    {
        "name": _text(),
        "datatype": {"enum": [*_NUMERIC, "BYTES"]},
        "shape": _SHAPE,
        "parameters": closed({"binary_data_size": {"type": "integer", "minimum": 0}}),
        "data": _list({"type": ["number", "boolean", "string"]}, "Flat, in row-major order."),
    },
    optional=("parameters", "data"),
)
_END = closed(
    {
        "name": _text(),
        "datatype": {"enum": [*_NUMERIC, "BYTES"]},
        "shape": _list({"type": "integer", "minimum": -1}, "-1: any size."),
    }
)
_FILE = {
    "type": "object",
    "properties": {"name": _text(), "sha256": _text(), "size": {"type": "integer"}},
    "required": ["name", "sha256", "size"],
}
_NULL: Schema = {"type": "null"}

SCHEMAS: dict[str, Schema] = {
    "Error": closed({"error": _text("What is wrong, with the field's name, and the mend.")}),
    "Server": closed({"name": {"const": "debride"}, "version": _text(), "extensions": _list(_text())}),
    "Live": closed({"live": {"type": "boolean"}}),
    "Ready": closed({"ready": {"type": "boolean"}}),
    "ModelReady": closed({"name": _text(), "ready": {"type": "boolean"}}),
    "ModelList": closed({"models": _list(ref("ModelEntry"))}),
    "ModelEntry": closed(
        {
            "name": _text(),
            "version": _text(),
            "ready": {"type": "boolean"},
            "sha256": {**_SHA256, "description": "Of the file that is served."},
            "report": {"type": "boolean", "description": "Whether a report of that very file is there."},
        }
    ),
    "Model": closed(
        {
            "name": _text(),
            "versions": _list(_text(), "Lowest first; the highest answers where none is named."),
            "platform": {"const": "onnxruntime_onnx"},
            "inputs": _list(_END),
            "outputs": _list(_END),
            "parameters": closed(
                {
                    "sha256": _SHA256,
                    "classes": {"type": "integer", "minimum": 2},
                    "size": {
                        "type": "array",
                        "description": "Height and width that images are brought to.",
                        "items": {"type": "integer", "minimum": 1},
                        "minItems": 2,
                        "maxItems": 2,
                    },
                    "channels": {"enum": ["RGB", "BGR", "L"]},
                }
            ),
        }
    ),
    "TensorData": _DATA,
    "InferInput": _INPUT,
    "InferWanted": _WANTED,
    "InferRequest": {
        "type": "object",
        "description": "Parameters that are not known are ignored.",
        "properties": {
            "id": _text("Comes back in the answer."),
            "inputs": {"type": "array", "items": ref("InferInput"), "minItems": 1},
            "outputs": _list(ref("InferWanted"), "Missing or empty: all."),
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data_output": {"type": "boolean", "description": "Send all outputs as binary data."}
                },
            },
        },
        "required": ["inputs"],
    },
    "InferResponse": closed(
        {"model_name": _text(), "model_version": _text(), "id": _text(), "outputs": _list(_OUTPUT)},
        optional=("id",),
    ),
    "Classification": closed(
        {
            "model_name": _text(),
            "model_version": _text(),
            "predictions": _list(ref("Prediction"), "Most probable first."),
        }
    ),
    "Prediction": closed(
        {
            "label": _text("The class's name; its index as text where the model has no names."),
            "index": {"type": "integer", "minimum": 0},
            "probability": {"type": "number", "description": "0 to 1."},
        }
    ),
    "Report": {
        "type": "object",
        "description": "What the run found and cut, in full; `docs/report.schema.json` of debride describes all of it.",
        "properties": {
            "schema": {"const": "debride.report/1"},
            "command": {"enum": ["scan", "sanitize", "retrain"]},
            "verdict": {"enum": ["clean", "backdoored", "sanitized", "not sanitized", "inconclusive"]},
            "reason": _text(),
            "model": {**_FILE, "description": "The file that was audited."},
            "output": {"anyOf": [_FILE, _NULL], "description": "The file that was written."},
            "suspects": _list({"type": "integer", "minimum": 0}, "Indices of the target classes of a backdoor."),
            "pruned": _list({"type": "object"}, "The channels cut, with their Shapley values."),
            "retraining": {
                "anyOf": [{"type": "object"}, _NULL],
                "description": "How the network was retrained, and which initializers that changed.",
            },
            "files": _list(_text(), "Files written with the report; its pictures are served."),
        },
        "required": ["schema", "command", "verdict", "reason", "model", "output", "suspects", "pruned", "files"],
    },
}
"""All schemas by name. Answers are closed: what they may hold is all said; requests may hold more, which is ignored."""
