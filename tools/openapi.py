"""Make the OpenAPI 3.1 document of the REST surface from the compiled contracts.

It says what the gateway does with `google.api.http`: paths, query parameters and bodies as Envoy's
transcoder binds them, answers in the response envelope, streams of bare messages.
"""

import json
import re
from collections.abc import Iterator

from google.api import annotations_pb2, field_behavior_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from tools.openapi_schemas import (
    Contracts,
    Json,
    Message,
    Schemas,
    Service,
    behaviors,
    is_map,
    is_repeated,
)

__all__ = ["http_rules", "make_document", "render"]

_REQUIRED = field_behavior_pb2.FieldBehavior.REQUIRED
_OUTPUT_ONLY = field_behavior_pb2.FieldBehavior.OUTPUT_ONLY
_VARIABLE = re.compile(r"\{([^}=]+)(?:=[^}]*)?\}")
_SEGMENT = r"^[^/\\\u0000]+$"
_EXAMPLES = {"exchange": "binance", "symbol": "BTC-USDT", "base": "BTC", "quote": "USDT"}
_HTTP_BODY = "google.api.HttpBody"

_ERRORS = {
    "400": (
        "INVALID_PARAMETER",
        "A parameter is missing, unknown or out of its range (details name the field), or the "
        "state of things does not allow it (FAILED_PRECONDITION or a reason of the service).",
    ),
    "401": ("UNAUTHENTICATED", "The token or key is missing, wrong or has ended."),
    "403": ("PERMISSION_DENIED", "The caller's roles do not allow it."),
    "404": ("NOT_FOUND", "There is no such thing, or no such path."),
    "409": ("ALREADY_EXISTS", "It exists already, or somebody else is changing it."),
    "429": ("RESOURCE_EXHAUSTED", "A limit is reached; retry-after says when to try again."),
    "500": ("INTERNAL", "A fault of ours; tell us the request_id."),
    "501": ("UNIMPLEMENTED", "This mesh runs no service that does it."),
    "503": ("UNAVAILABLE", "The service or what it needs is away; try again."),
    "504": ("DEADLINE_EXCEEDED", "It took too long; ask for less or try again."),
}

_TIMESTAMP: Json = {"type": "string", "format": "date-time", "description": "When it was answered."}
_REQUEST_ID: Json = {
    "type": "string",
    "description": "Id of the request, also in the header x-request-id and in the logs.",
}

_ERROR_SCHEMA: Json = {
    "type": "object",
    "description": "What every failed request is answered with.",
    "required": ["success", "error", "timestamp", "request_id"],
    "properties": {
        "success": {"const": False},
        "error": {
            "type": "object",
            "required": ["code", "message", "details"],
            "properties": {
                "code": {
                    "type": "string",
                    "pattern": "^[A-Z][A-Z0-9_]+$",
                    "description": "For programs: INVALID_PARAMETER, else the reason of the "
                    "error, else its gRPC code.",
                },
                "message": {
                    "type": "string",
                    "description": "For people: what was expected, what came, what to do.",
                },
                "details": {
                    "type": "array",
                    "description": "One a field that is wrong, and further google.rpc details, "
                    "which have an @type.",
                    "items": {
                        "type": "object",
                        "properties": {
                            "@type": {"type": "string"},
                            "field": {"type": "string", "description": "Path of the field."},
                            "description": {
                                "type": "string",
                                "description": "What is wrong with it.",
                            },
                            "reason": {
                                "type": "string",
                                "description": "The same for programs, UPPER_SNAKE.",
                            },
                        },
                        "additionalProperties": True,
                    },
                },
            },
        },
        "timestamp": _TIMESTAMP,
        "request_id": _REQUEST_ID,
    },
}

_HEALTH_SCHEMA: Json = {
    "type": "object",
    "description": "How a service and what it needs are. Not in the envelope.",
    "required": ["status", "timestamp", "uptime_seconds", "version", "dependencies"],
    "properties": {
        "status": {
            "type": "string",
            "enum": ["healthy", "degraded", "unhealthy"],
            "description": "The worst of what it needs; 503 when unhealthy.",
        },
        "timestamp": {"type": "string", "format": "date-time"},
        "uptime_seconds": {"type": "number", "minimum": 0},
        "version": {"type": "string"},
        "dependencies": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["status"],
                "properties": {
                    "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
                    "detail": {"type": "string", "description": "What is wrong, for a person."},
                },
                "additionalProperties": True,
            },
        },
    },
}

_INTRODUCTION = """\
Crypto market data over REST. The same calls exist over gRPC and gRPC-Web on the same port.

Answers are wrapped: `{"success": true, "data": ..., "message": "OK", "timestamp": ..., \
"request_id": ...}`; failures are `{"success": false, "error": {"code", "message", "details"}, \
"timestamp", "request_id"}`. Streams are bare messages, one JSON document a line, or server-sent \
events with `Accept: text/event-stream`; their last message says why they end.

64-bit integers and decimals are text, enums are names, times are RFC 3339 in UTC, durations are \
seconds like `1.5s`. Lists in the query repeat the parameter; nested fields are written \
`outer.inner`. Unknown query parameters are refused."""


def http_rules(method: MethodDescriptorProto) -> Iterator[tuple[str, str, http_pb2.HttpRule]]:
    """Yield (HTTP method, path template, rule) of a method, additional bindings included."""
    if not method.options.HasExtension(annotations_pb2.http):
        return
    rule = method.options.Extensions[annotations_pb2.http]
    for each in (rule, *rule.additional_bindings):
        kind = each.WhichOneof("pattern")
        if kind == "custom":
            yield each.custom.kind.lower(), each.custom.path, each
        elif kind is not None:
            yield kind, getattr(each, kind), each


class _Document:
    """Puts one document together."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._schemas = Schemas(contracts)

    def paths(self) -> Json:
        paths: dict[str, Json] = {"/health": {"get": _health_operation()}}
        for service in self._contracts.services:
            for method, comment in service.methods():
                for number, (verb, template, rule) in enumerate(http_rules(method)):
                    path = _VARIABLE.sub(r"{\1}", template)
                    operation = self._operation(service, method, comment, verb, template, rule)
                    if number:
                        operation["operationId"] += f"_{number + 1}"
                    paths.setdefault(path, {})[verb] = operation
        return dict(sorted(paths.items()))

    def components(self) -> Json:
        schemas = dict(self._schemas.components)
        schemas["Error"] = _ERROR_SCHEMA
        schemas["Health"] = _HEALTH_SCHEMA
        return {
            "schemas": dict(sorted(schemas.items())),
            "responses": {status: _error_response(status) for status in _ERRORS},
            "headers": {
                "x-request-id": {"schema": {"type": "string"}, "description": "Id of the request."}
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        }

    def _operation(
        self,
        service: Service,
        method: MethodDescriptorProto,
        comment: str,
        verb: str,
        template: str,
        rule: http_pb2.HttpRule,
    ) -> Json:
        request = self._contracts.message(method.input_type)
        in_path = _VARIABLE.findall(template)
        summary, _, rest = comment.partition(". ")
        operation: Json = {
            "operationId": f"{service.proto.name}_{method.name}",
            "tags": [service.proto.name],
            "summary": summary.rstrip(".") + ".",
        }
        if rest:
            operation["description"] = comment
        operation["x-grpc-method"] = f"{service.full_name}/{method.name}"
        parameters = [self._path_parameter(request, name) for name in in_path]
        if rule.body != "*":
            taken = {*in_path, rule.body}
            parameters += self._query_parameters(request, "", taken, required=True, outer=())
        if parameters:
            operation["parameters"] = parameters
        if rule.body:
            operation["requestBody"] = self._body(request, rule.body, frozenset(in_path))
        operation["responses"] = {"200": self._success(method, rule)}
        for status in _ERRORS:
            if status != "409" or verb != "get":
                operation["responses"][status] = {"$ref": f"#/components/responses/{status}"}
        return operation

    def _path_parameter(self, request: Message, name: str) -> Json:
        message = request
        *outer, last = name.split(".")
        for part in outer:
            message = self._contracts.message(message.field(part).type_name)
        field = message.field(last)
        parameter: Json = {"name": name, "in": "path", "required": True}
        if comment := message.comment_of(field):
            parameter["description"] = comment
        schema = dict(self._schemas.single(field))
        if field.type == field.TYPE_STRING:
            # An empty segment is another path, and a slash divides segments, however it is encoded.
            schema |= {"minLength": 1, "pattern": _SEGMENT}
            if last in _EXAMPLES:
                schema["examples"] = [_EXAMPLES[last]]
        parameter["schema"] = schema
        return parameter

    def _query_parameters(
        self,
        message: Message,
        prefix: str,
        taken: set[str],
        *,
        required: bool,
        outer: tuple[str, ...],
    ) -> Iterator[Json]:
        """Yield what the transcoder binds from the query: scalars, lists of them, nested ones."""
        for field in message.proto.field:
            name = prefix + field.name
            if name in taken or _OUTPUT_ONLY in behaviors(field):
                continue
            held = self._contracts.message_of(field)
            needed = required and _REQUIRED in behaviors(field)
            if Schemas.is_leaf(held):
                yield self._query_parameter(message, field, name, required=needed)
            elif (
                held is not None
                and not is_repeated(field)
                and not is_map(held)
                and not held.full_name.startswith("google.")
                and held.full_name not in outer
            ):
                yield from self._query_parameters(
                    held,
                    f"{name}.",
                    taken,
                    required=needed,
                    outer=(*outer, message.full_name),
                )

    def _query_parameter(
        self, message: Message, field: FieldDescriptorProto, name: str, *, required: bool
    ) -> Json:
        parameter: Json = {"name": name, "in": "query"}
        if required:
            parameter["required"] = True
        if comment := message.comment_of(field):
            parameter["description"] = comment
        if is_repeated(field):
            parameter["style"] = "form"
            parameter["explode"] = True
        parameter["schema"] = self._schemas.narrowed(message, field)
        return parameter

    def _body(self, request: Message, body: str, in_path: frozenset[str]) -> Json:
        if body == "*":
            if in_path:
                schema = self._schemas.message(request, without=in_path)
                schema.pop("description", None)
            else:
                schema = self._schemas.reference(request.full_name)
            fields = [field for field in request.proto.field if field.name not in in_path]
            required = any(_REQUIRED in behaviors(field) for field in fields)
        else:
            field = request.field(body)
            schema = self._schemas.value(field)
            required = _REQUIRED in behaviors(field)
        return {"required": required, "content": {"application/json": {"schema": schema}}}

    def _success(self, method: MethodDescriptorProto, rule: http_pb2.HttpRule) -> Json:
        answer = self._contracts.message(method.output_type)
        headers = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
        if rule.response_body:
            field = answer.field(rule.response_body)
            if field.type_name.removeprefix(".") != _HTTP_BODY:
                raise ValueError(
                    f"{method.name}: Envoy takes response_body only for {_HTTP_BODY}, "
                    f"and {rule.response_body} is {field.type_name}"
                )
            return {
                "description": answer.comment_of(field),
                "headers": headers,
                "content": {"*/*": {"schema": self._schemas.single(field)}},
            }
        schema = self._schemas.reference(answer.full_name)
        if method.server_streaming:
            return {
                "description": "Bare messages without end or until their last one says why: one "
                "JSON document a line, or one a server-sent event.",
                "headers": headers,
                "content": {
                    "application/json": {"schema": schema, "x-stream": "newline-delimited"},
                    "text/event-stream": {"schema": schema, "x-stream": "server-sent-events"},
                },
            }
        envelope: Json = {
            "type": "object",
            "required": ["success", "data", "message", "timestamp", "request_id"],
            "properties": {
                "success": {"const": True},
                "data": schema,
                "message": {"type": "string"},
                "timestamp": _TIMESTAMP,
                "request_id": _REQUEST_ID,
            },
        }
        return {
            "description": answer.comment or "The answer.",
            "headers": headers,
            "content": {"application/json": {"schema": envelope}},
        }


def _error_response(status: str) -> Json:
    code, description = _ERRORS[status]
    headers: Json = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    if status == "429":
        headers["retry-after"] = {
            "schema": {"type": "integer"},
            "description": "Seconds to wait before the next attempt, where that is known.",
        }
    example = {
        "success": False,
        "error": {"code": code, "message": description, "details": []},
        "timestamp": "2026-01-31T12:00:00.123Z",
        "request_id": "6f1c2f5e-4a0f-4c0e-9c1e-1d9b7a0c5e11",
    }
    return {
        "description": description,
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": example,
            }
        },
    }


def _health_operation() -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}
    return {
        "operationId": "health",
        "tags": ["Health"],
        "summary": "How the service behind this port is.",
        "security": [{}],
        "responses": {
            "200": {"description": "It works, perhaps with less than usual.", "content": content},
            "503": {"description": "It does not work.", "content": content},
        },
    }


def make_document(files: FileDescriptorSet, version: str) -> Json:
    """Make the document; `files` need source information for the descriptions."""
    contracts = Contracts(files)
    document = _Document(contracts)
    paths = document.paths()
    tags = [
        {"name": service.proto.name, "description": service.comment}
        for service in contracts.services
        if any(True for method in service.proto.method for _ in http_rules(method))
    ]
    return {
        "openapi": "3.1.0",
        "x-generated": "Made from proto/ by tools/openapi.py. Do not edit.",
        "info": {
            "title": "MarketPrism",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [
            {
                "url": "http://{host}:{port}",
                "description": "The gateway",
                "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "8080"}},
            }
        ],
        "security": [{}, {"token": []}, {"api_key": []}],
        "tags": [*tags, {"name": "Health", "description": "Whether it works."}],
        "paths": paths,
        "components": document.components(),
    }


def render(document: Json) -> str:
    """Write the document as text, the same on every machine."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
