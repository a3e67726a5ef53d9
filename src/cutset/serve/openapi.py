"""The OpenAPI document of the server, served at ``/openapi.json`` and shown at ``/docs``."""

from __future__ import annotations

from typing import Any

import msgspec

from cutset.serve.requests import DATATYPES, MAX_ID_LENGTH, Contract, InferBody
from cutset.version import __version__

_ERRORS = {
    "400": "The request is wrong; the message names the field.",
    "401": "No token, or a wrong one.",
    "403": "A page of another site sent it.",
    "404": "There is no such model, version or endpoint.",
    "408": "The body did not arrive in time.",
    "413": "The body, or what it would need, is too large.",
    "415": "The content type or encoding is not known.",
    "421": "The Host header is not one of this machine's names.",
    "431": "The request line and headers are too long.",
    "500": "A stage failed on these rows.",
    "503": "The queue is full, or the server is not ready; Retry-After says when to try again.",
    "504": "The deadline passed.",
}
_FLAG = {"type": "boolean"}
_TEXT = {"type": "string"}


def openapi_document(contract: Contract, *, with_token: bool) -> dict[str, Any]:
    """The document for one model."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Cutset",
            "version": __version__,
            "description": "Open Inference Protocol v2 over a pipeline of stages.",
        },
        "paths": _paths(contract),
        "components": {"schemas": _schemas(contract)},
    }
    if with_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(contract: Contract) -> dict[str, Any]:
    model = _path_parameter("model", contract.model_name)
    version = _path_parameter("version", "1")
    paths: dict[str, Any] = {
        "/v2": {"get": _get("Server", "What the server is", "ServerMetadata", ())},
        "/v2/health/live": {"get": _get("Live", "Whether the server lives", "Live", ("503",), [])},
        "/v2/health/ready": {
            "get": _get("Ready", "Whether it takes requests", "Ready", ("503",), [])
        },
        "/status": {"get": _get("Status", "What the pipeline does just now", "Status", ())},
        "/metrics": {"get": _metrics()},
        "/classify": {"post": _classify()},
    }
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        suffix = "Version" if len(parameters) > 1 else ""
        paths[prefix] = {
            "parameters": parameters,
            "get": _get(f"Model{suffix}", "What the model takes and gives", "Model", ("404",)),
        }
        paths[f"{prefix}/ready"] = {
            "parameters": parameters,
            "get": _get(f"ModelReady{suffix}", "Whether it is ready", "ModelReady", ("404", "503")),
        }
        paths[f"{prefix}/infer"] = {"parameters": parameters, "post": _infer(f"Infer{suffix}")}
    return paths


def _path_parameter(name: str, only: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": [only]},
    }


def _get(
    operation: str,
    summary: str,
    schema: str,
    errors: tuple[str, ...],
    security: list[Any] | None = None,
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": _json_response(summary, schema), **_error_responses("401", *errors)},
    }
    if security is not None:
        described["security"] = security
    return described


def _metrics() -> dict[str, Any]:
    return {
        "operationId": "Metrics",
        "summary": "Counters in Prometheus' text format",
        "responses": {
            "200": {"description": "Counters", "content": {"text/plain": {"schema": _TEXT}}},
            **_error_responses("401"),
        },
    }


def _infer(operation: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": "Compute rows",
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Length of the JSON where raw tensors follow it",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("InferBody")},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs",
                "content": {
                    "application/json": {"schema": _ref("InferResponse")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_error_responses(*_ERRORS),
        },
    }


def _classify() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": binary}, "required": ["image"]}
    return {
        "operationId": "Classify",
        "summary": "Labels of an image",
        "parameters": [
            _query("top", "How many labels", {"type": "integer", "minimum": 1, "maximum": 1000}),
            _query("stages", "1: tell the time in each stage", {"type": "integer", "enum": [0, 1]}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": {"schema": binary},
                "image/png": {"schema": binary},
                "application/octet-stream": {"schema": binary},
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": {
            "200": _json_response("Labels, the best first", "Labels"),
            **_error_responses(*_ERRORS),
        },
    }


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _json_response(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _error_responses(*codes: str) -> dict[str, Any]:
    errors: dict[str, Any] = {}
    for code in sorted({*codes, "421", "431"}):
        # A server or model that is not ready says so in its own words.
        errors[code] = {
            "description": _ERRORS[code],
            "content": {"application/json": {"schema": {}}}
            if code == "503"
            else {"application/json": {"schema": _ref("Error")}},
        }
    return errors


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _schemas(contract: Contract) -> dict[str, Any]:
    parameters = {"type": "object", "additionalProperties": True}
    shape = _array({"type": "integer", "minimum": -1})
    described = _object({"name": _TEXT, "datatype": _TEXT, "shape": shape})
    seconds = {"type": "number", "minimum": 0}
    answer = {"name": _TEXT, "datatype": _TEXT, "shape": shape}
    stage_time = _object({"index": {"type": "integer"}, "compute_s": seconds, "total_s": seconds})
    return {
        **_infer_schemas(contract),
        "Error": _object({"error": _TEXT}),
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}),
        "Live": _object({"live": _FLAG}),
        "Ready": _object({"ready": _FLAG}),
        "ModelReady": _object({"name": _TEXT, "ready": _FLAG}),
        "Model": _object(
            {
                "name": _TEXT,
                "versions": _array(_TEXT),
                "platform": _TEXT,
                "inputs": _array(described),
                "outputs": _array(described),
            }
        ),
        "InferResponse": _object(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "outputs": _array(
                    _object(answer, {"parameters": parameters, "data": {"type": "array"}})
                ),
            },
            {"id": _TEXT},
        ),
        "Labels": _object(
            {
                "model_name": _TEXT,
                "labels": _array(_object({"label": _TEXT, "score": {"type": "number"}})),
                "seconds": _object({"read": seconds, "wait": seconds, "pipeline": seconds}),
            },
            {"stages": {"oneOf": [_array(stage_time), {"type": "null"}]}},
        ),
        "Status": {"type": "object", "required": ["model", "state", "stages", "links"]},
    }


def _infer_schemas(contract: Contract) -> dict[str, Any]:
    """The schemas of the types that a request is decoded into, with what this model allows."""
    _, schemas = msgspec.json.schema_components(
        (InferBody,), ref_template="#/components/schemas/{name}"
    )
    datatypes = sorted({DATATYPES[spec.dtype] for spec in contract.inputs})
    count = len(contract.inputs)
    allowed: dict[str, dict[str, Any]] = {
        "InferBody": {
            "id": {"maxLength": MAX_ID_LENGTH},
            "inputs": {"minItems": count, "maxItems": count},
        },
        "InferInput": {
            "name": {"enum": [spec.name for spec in contract.inputs]},
            "datatype": {"enum": datatypes},
            "shape": {"items": {"type": "integer", "minimum": -1}},
            "data": {"type": "array"},
        },
        "InferOutput": {"name": {"enum": list(contract.output_names)}},
    }
    for name, properties in allowed.items():
        for key, more in properties.items():
            schemas[name]["properties"][key] |= more
    return schemas
