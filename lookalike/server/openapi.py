"""The OpenAPI 3.1 document, written from the same table that routes and checks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lookalike import __version__
from lookalike.server import schemas
from lookalike.server.calls import FORM, LINES, OPTIONS, Operation
from lookalike.server.schemas import Schema
from lookalike.server.settings import Settings

__all__ = ["document"]

_MEANING = {
    400: "The request is not as it should be.",
    401: "The token is missing or wrong.",
    403: "This server does not do that.",
    404: "There is no such thing.",
    408: "The client sends too slowly.",
    413: "Larger than what is taken.",
    415: "A body of another type.",
    421: "The Host header names another server.",
    422: "A picture cannot be read.",
    429: "Too many requests from one address.",
    500: "A defect of the server.",
    503: "Busy, starting or stopping; Retry-After says when to come back.",
    504: "It took too long.",
}

# What `endpoints` asks of a search without pictures.
_ONE_QUESTION: Schema = {
    "oneOf": [{"required": [name]} for name in ("key", "text", "url", "vector", "liked")],
    "dependentRequired": {"disliked": ["liked"]},
    "dependentSchemas": {"region": {"anyOf": [{"required": ["key"]}, {"required": ["url"]}]}, "weight": False},
}


def document(operations: Sequence[Operation], dim: int, settings: Settings) -> dict[str, Any]:
    """The document.

    Args:
        operations: what there is.
        dim: length of the index's vectors.
        settings: what may be done and how much of it.
    """
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, dim, settings.pictures)
    named = {name: _referring(schema, skip=name) for name, schema in schemas.NAMED.items()}
    named["Search"]["properties"]["vector"] |= {"minItems": dim, "maxItems": dim}
    components: dict[str, Any] = {"schemas": named}
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Lookalike",
            "version": __version__,
            "description": "Visual search over one index. Scores are cosines: higher is closer, best first. "
            "Errors have one shape: code, message, hint.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }
    if settings.token is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"token": []}]
        for path in ("/v1/health", "/v1/ready", "/v1/session"):
            for operation_document in paths[path].values():
                operation_document["security"] = []
    return whole


def _operation(operation: Operation, dim: int, pictures: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.about,
        "tags": [operation.group],
        "parameters": [
            {
                "name": parameter.name,
                "in": "query",
                "required": parameter.required,
                "description": parameter.about,
                "schema": parameter.schema,
            }
            for parameter in operation.parameters
        ],
        "responses": _responses(operation),
    }
    if operation.lines is not None:
        line = copy.deepcopy(operation.lines)
        line["properties"]["vector"] |= {"minItems": dim, "maxItems": dim}
        found["requestBody"] = {
            "required": True,
            "description": f"JSON lines; the schema of one line: {line}",
            "content": {LINES: {"schema": {"type": "string", "minLength": 1}}},
        }
    elif operation.body is not None:
        found["requestBody"] = _body(operation, operation.body, pictures)
    return found


def _body(operation: Operation, body: Schema, pictures: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    shape = _referring(body)
    if "application/json" in operation.takes:
        content["application/json"] = {
            "schema": {"allOf": [shape, _ONE_QUESTION]} if operation.name == "search" else shape
        }
    if FORM in operation.takes:
        one: Schema = {"type": "string", "format": "binary"}
        several = {"type": "array", "items": one, "maxItems": pictures, "minItems": 1}
        parts = {
            name: one if name == "picture" and operation.name != "add_items" else several for name in operation.files
        }
        content[FORM] = {
            "schema": {
                "type": "object",
                "properties": {OPTIONS: shape, **parts},
                "additionalProperties": False,
                **({"required": ["picture"]} if operation.name == "add_items" else {}),
            },
            "encoding": {OPTIONS: {"contentType": "application/json"}},
        }
    return {"required": True, "content": content}


def _responses(operation: Operation) -> dict[str, Any]:
    good = "201" if operation.name == "add_items" else "200"
    if operation.answer is not None:
        content: dict[str, Any] = {operation.media: {"schema": _referring(operation.answer)}}
    else:
        content = {operation.media: {"schema": {"type": "string"}}}
    answers: dict[str, Any] = {good: {"description": "The answer.", "content": content}}
    if operation.name == "thumbnail":
        answers["304"] = {"description": "The client has it already."}
    fails = {400, 401, 403, 413, 415, 421, 429, 500, 503, 504, *operation.fails}
    if operation.body is None:
        fails -= {413, 415}
    for status in sorted(fails):
        shape: Schema = {"$ref": "#/components/schemas/Error"}
        if operation.name == "ready" and status == 503:
            shape = {"anyOf": [_referring(schemas.STATE), shape]}
        answers[str(status)] = {"description": _MEANING[status], "content": {"application/json": {"schema": shape}}}
        if status in (429, 503):
            answers[str(status)]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            }
    return answers


def _referring(schema: Any, skip: str = "") -> Any:
    """A copy of a schema in which those that have a name are referred to."""
    if isinstance(schema, Mapping):
        for name, known in schemas.NAMED.items():
            if schema is known and name != skip:
                return {"$ref": f"#/components/schemas/{name}"}
        return {key: _referring(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_referring(value) for value in schema]
    return copy.copy(schema)
