"""An OpenAPI 3.1 description of the HTTP side, made from the table of paths and the schema."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from oarlock.api import proto
from oarlock.api.gateway.convert import is_repeated
from oarlock.api.gateway.paths import Binding, bindings

_INT_STRING: Final = {"oneOf": [{"type": "string", "pattern": "^-?[0-9]{1,20}$"}, {"type": "integer"}]}
_UINT_STRING: Final = {"oneOf": [{"type": "string", "pattern": "^[0-9]{1,20}$"}, {"type": "integer", "minimum": 0}]}
_BASE64: Final = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_SCALARS: Final[dict[int, dict[str, Any]]] = {
    FieldDescriptor.TYPE_INT64: _INT_STRING,
    FieldDescriptor.TYPE_UINT64: _UINT_STRING,
    FieldDescriptor.TYPE_INT32: {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: _BASE64,
}


def description(version: str) -> dict[str, Any]:
    """The whole description; `version` is that of the API."""
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "required": ["error", "code", "message"],
            "properties": {
                "error": {"type": "string"},
                "code": {"type": "integer", "description": "gRPC status code"},
                "message": {"type": "string"},
            },
        },
        "StreamError": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "properties": {
                        "grpc_code": {"type": "integer"},
                        "http_code": {"type": "integer"},
                        "message": {"type": "string"},
                        "http_status": {"type": "string"},
                    },
                }
            },
        },
    }
    paths: dict[str, Any] = {}
    for binding in bindings():
        for number, path in enumerate(binding.paths):
            paths[path] = {"post": _operation(binding, number, schemas)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Oarlock",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "etcd's v3 API over HTTP/1.1 and JSON. Keys and values are base64, 64-bit integers are "
            "decimal strings, fields that have their default value are left out.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "The token that /v3/auth/authenticate returns, while authentication is on.",
                }
            },
        },
        "security": [{}, {"token": []}],
    }


def _operation(binding: Binding, number: int, schemas: dict[str, Any]) -> dict[str, Any]:
    request, response = _reference(binding.request, schemas), _reference(binding.response, schemas)
    service = binding.service.rpartition(".")[2]
    summary = f"{binding.service}/{binding.name}"
    if binding.client_streams:
        summary += "; the body is one or more JSON messages after each other"
    if binding.streams:
        response = {"type": "object", "properties": {"result": response}}
        summary += "; the answer is one JSON message a line"
    refused = {"$ref": "#/components/schemas/StreamError"}, {"$ref": "#/components/schemas/Error"}
    return {
        "operationId": f"{service}_{binding.name}" + (f"_{number + 1}" if number else ""),
        "tags": [service],
        "summary": summary,
        "requestBody": {"content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": response}}},
            "default": {
                "description": "Refused.",
                "content": {
                    "application/json": {"schema": {"anyOf": list(refused)} if binding.streams else refused[1]},
                    "text/plain": {"schema": {"type": "string"}},
                },
            },
        },
    }


def _reference(name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    if name not in schemas:
        schemas[name] = {}  # messages refer to themselves
        descriptor = proto.message(name).DESCRIPTOR
        schemas[name] = {
            "type": "object",
            "properties": {field.name: _field(field, schemas) for field in descriptor.fields},
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _field(field: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        one = _reference(field.message_type.full_name, schemas)
    elif field.enum_type is not None:
        one = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    else:
        one = _SCALARS[field.type]
    return {"type": "array", "items": one} if is_repeated(field) else one
